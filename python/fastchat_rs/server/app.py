"""The RSGI entry: key first, then a dict of routes; every way out is JSON with a request id. Knows no model."""

import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastchat_rs.keystore import open_store
from fastchat_rs.server import chat, completions, embeddings, health, models, openapi, rerank, resume, tokenize
from fastchat_rs.server.accounts import open_accounts
from fastchat_rs.server.anthropic import routes as anthropic
from fastchat_rs.server.api_error import ApiError
from fastchat_rs.server.errors import to_api_error
from fastchat_rs.server.handle import Context
from fastchat_rs.server.http import HTTPProtocol, ProtocolClosed, Reply, Request, Scope
from fastchat_rs.server.keys import Keys
from fastchat_rs.server.logs import access
from fastchat_rs.server.metrics import Metrics
from fastchat_rs.server.ollama import embed as ollama_embed
from fastchat_rs.server.ollama import routes as ollama
from fastchat_rs.server.responses import routes as responses
from fastchat_rs.server.state import Pressure, State
from fastchat_rs.server.tracing import Tracer

log = logging.getLogger("fastchat_rs")

Handler = Callable[[Context, Request], Awaitable[Reply | None]]

# path without /api -> method -> handler. Of paths with an id `route_of` makes one.
ROUTES: dict[str, dict[str, Handler]] = {
    "/health": {"GET": health.health},
    "/ping": {"GET": health.health, "POST": health.health},
    "/version": {"GET": health.version},
    "/metrics": {"GET": health.metrics},
    "/openapi.json": {"GET": openapi.openapi},
    "/v1/models": {"GET": models.list_models},
    "/v1/models/": {"GET": models.get_model},
    "/v1/chat/completions": {"POST": chat.chat_completions},
    resume.ROUTE: {"GET": resume.events},
    "/v1/completions": {"POST": completions.completions},
    "/v1/embeddings": {"POST": embeddings.embeddings},
    "/v1/tokenize": {"POST": tokenize.tokenize},
    "/v1/detokenize": {"POST": tokenize.detokenize},
    "/tokenize": {"POST": tokenize.tokenize},
    "/detokenize": {"POST": tokenize.detokenize},
    "/v1/rerank": {"POST": rerank.rerank},
    "/v2/rerank": {"POST": rerank.rerank},
    "/rerank": {"POST": rerank.rerank},
    "/v1/responses": {"POST": responses.create},
    "/v1/responses/": {"GET": responses.retrieve, "DELETE": responses.delete},
    "/v1/responses//cancel": {"POST": responses.cancel},
    "/v1/messages": {"POST": anthropic.messages},
    "/v1/messages/count_tokens": {"POST": anthropic.count},
    "/api/chat": {"POST": ollama.chat_route},
    "/api/generate": {"POST": ollama.generate_route},
    "/api/embed": {"POST": ollama_embed.embed_route},
    "/api/embeddings": {"POST": ollama_embed.legacy_route},
    "/api/tags": {"GET": ollama.tags},
    "/api/ps": {"GET": ollama.tags},
    "/api/show": {"POST": ollama.show},
    "/api/version": {"GET": ollama.version},
}
# Beginnings of routes whose clients are spoken to in other words than OpenAI's chat clients.
_WORDINGS = {
    "/v1/messages": anthropic.WORDING,
    "/v1/responses": responses.WORDING,
    "/api/": ollama.WORDING,
}
# Reachable without a key; everything else, known or not, needs one.
OPEN_PATHS = frozenset({"/health", "/metrics"})
_MODEL_PREFIX = "/v1/models/"
# Of requests that were well-formed but not served.
_REFUSALS = frozenset({401, 408, 413, 429, 503, 504})
# Headers of replies that a browser's script may read.
_EXPOSED = ", ".join(
    [
        *(
            "x-request-id",
            "retry-after",
            "x-should-retry",
            "x-fastchat-applied",
            "x-fastchat-cache",
            "x-fastchat-resume",
        ),
        *(f"x-ratelimit-{what}-{unit}" for unit in ("requests", "tokens") for what in ("limit", "remaining", "reset")),
    ]
)
_HEADERS = ("authorization", "content-type", "x-request-id", "cache-control", "x-fastchat-resume")
_HEADER_LIST = re.compile(r"[A-Za-z0-9-]{1,64}(, ?[A-Za-z0-9-]{1,64}){0,63}")
_RESPONSE = re.compile(r"/v1/responses/[^/]+(/cancel)?")
_CLIENT_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def route_of(path: str) -> str:
    """The key in `ROUTES` of a path."""
    if path.startswith("/api/v1/"):
        path = path.removeprefix("/api")
    if resume.PATH.fullmatch(path):
        return resume.ROUTE
    if path.startswith(_MODEL_PREFIX) and len(path) > len(_MODEL_PREFIX):
        return _MODEL_PREFIX
    if found := _RESPONSE.fullmatch(path):
        return f"/v1/responses/{found[1] or ''}"
    return path if path != _MODEL_PREFIX else ""


class App:
    """One server. `granian` calls `__rsgi__` for each request."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.metrics = Metrics(state)
        self.context = Context(state, self.metrics)
        config = state.config
        self._keys = Keys(config.api_key, open_store(Path(config.keys)) if config.keys else None)
        self.accounts = open_accounts(config, state.port)
        self.tracer = None if config.otlp_endpoint is None else Tracer(config.otlp_endpoint)
        self._origins = frozenset(state.config.cors_origin)
        self._hosts = _allowed_hosts(state.config.host, state.config.allowed_host)

    async def __rsgi__(self, scope: Scope, proto: HTTPProtocol) -> None:
        """One request, whatever comes."""
        given = scope.headers.get("x-request-id", "")
        request_id = given if _CLIENT_REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"
        request = Request(scope, proto, request_id)
        route = route_of(scope.path)
        for start, wording in _WORDINGS.items():
            if route in ROUTES and route.startswith(start):
                request.wording = wording
        self.state.in_flight += 1
        if self.state.pressure is not Pressure.NONE:
            request.headers_out.append(("connection", "close"))
        try:
            reply = await self._answer(request, route)
            if reply is not None:
                request.send(reply)
        except ProtocolClosed:
            pass
        except Exception as error:
            shown = to_api_error(error, request.id)
            if shown.status in _REFUSALS:
                self.metrics.refused.labels(code=shown.code or "").inc()
            request.send_error(shown)
        finally:
            self.state.in_flight -= 1
            if request.lease is not None:
                request.lease.close()
            self._record(request, route)

    async def _answer(self, request: Request, route: str) -> Reply | None:
        self._add_cors(request)
        if self._hosts is not None and _host_name(request.header("host")) not in self._hosts:
            raise ApiError(403, "This Host header is not accepted on a loopback address; see --allowed-host")
        if request.scope.method == "OPTIONS":
            return self._options(request, route)
        if route not in OPEN_PATHS:
            request.caller = self._keys.check(_credentials(request))
            request.tenant = request.caller.tenant
        methods = ROUTES.get(route)
        if methods is None:
            raise ApiError(404, "There is nothing at this path", code="not_found")
        method = "GET" if request.scope.method == "HEAD" else request.scope.method
        handler = methods.get(method)
        if handler is None:
            error = ApiError(405, f"This path takes {_allow(methods)}", code="method_not_allowed")
            error.headers.append(("allow", _allow(methods)))
            raise error
        if method == "POST":
            self.state.must_have_room()
        if method == "POST" and request.caller is not None:
            request.lease = await self.accounts.enter(request.caller.record, request.headers_out)
        return await handler(self.context, request)

    def _add_cors(self, request: Request) -> None:
        if not self._origins:
            return
        # Also of replies to others, which caches would else hand on.
        request.headers_out.append(("vary", "origin"))
        origin = request.header("origin")
        if origin and (origin in self._origins or "*" in self._origins):
            request.headers_out += [
                ("access-control-allow-origin", origin),
                ("access-control-expose-headers", _EXPOSED),
            ]

    def _options(self, request: Request, route: str) -> Reply:
        methods = ROUTES.get(route)
        if methods is None:
            raise ApiError(404, "There is nothing at this path", code="not_found")
        headers = [("allow", _allow(methods))]
        if any(name == "access-control-allow-origin" for name, _ in request.headers_out):
            headers += [
                ("access-control-allow-methods", _allow(methods)),
                ("access-control-allow-headers", _allowed_headers(request.header("access-control-request-headers"))),
                ("access-control-max-age", "600"),
            ]
        return Reply(b"", 204, headers=headers)

    def _record(self, request: Request, route: str) -> None:
        path = route if route in ROUTES else "other"
        # Nobody was there to get a status.
        request.status = request.status or 499
        self.metrics.requests.labels(path=path, status=str(request.status)).inc()
        if self.tracer is not None:
            self.tracer.record(request, path)
        if access.isEnabledFor(logging.INFO):
            access.info("request", extra={"fields": _log_line(request)})


def _credentials(request: Request) -> str:
    """Anthropic's clients have a header of their own."""
    return request.header("authorization") or f"Bearer {request.header('x-api-key')}"


def _log_line(request: Request) -> dict[str, Any]:
    # JSON escapes control characters; the path is cut because clients choose its length.
    key = request.caller.record.name if request.caller and request.caller.record else None
    return {
        "request": request.id,
        "client": request.scope.client,
        "method": request.scope.method,
        "path": request.scope.path[:200],
        "key": key,
        "prompt_tokens": request.tokens[0],
        "completion_tokens": request.tokens[1],
        "status": request.status,
        "seconds": round(time.monotonic() - request.started, 4),
    }


def _allow(methods: dict[str, Handler]) -> str:
    names = [*methods, "OPTIONS"]
    if "GET" in methods:
        names.insert(1, "HEAD")
    return ", ".join(names)


def _allowed_headers(asked: str) -> str:
    """What an allowed origin asks for: clients have headers of their own, and none of them decides anything here."""
    return asked if _HEADER_LIST.fullmatch(asked) else ", ".join(_HEADERS)


def _allowed_hosts(address: str, extra: list[str]) -> frozenset[str] | None:
    """On loopback only local names are accepted, so that a web page cannot reach in by DNS rebinding."""
    if not ipaddress.ip_address(address).is_loopback or "*" in extra:
        return None
    return frozenset({"", "localhost", "127.0.0.1", "[::1]", address, *(name.lower() for name in extra)})


def _host_name(host: str) -> str:
    return re.sub(r":\d*$", "", host).lower()
