"""A Ray Serve application: replicas of the server, scaled by their queues, requests routed by their prompt's beginning.

`serve run fastchat_rs.ray:build model=demo max_replicas=4`, or `serve.run(build({...}))`. Every other setting is one of
`fastchat-rs serve`; Ray has the address and the port. Each replica has its own engine and prefix cache; limits a minute
count together through `limits_url`. Needs `pip install fastchat-rs[ray]`.
"""
# Ray is an extra, and its types are partial.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

import asyncio
from collections.abc import AsyncIterator, Mapping
from hashlib import blake2b
from typing import Any

import msgspec
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from fastchat_rs.config import ServeConfig, load_config, parse_bytes
from fastchat_rs.errors import ConfigError
from fastchat_rs.server.app import App
from fastchat_rs.server.exchange import Call, Head, exchange
from fastchat_rs.server.guard import Guard
from fastchat_rs.server.loading import load_models
from fastchat_rs.server.state import Limits, Phase, State

REPLICA_HEADER = "x-fastchat-replica"
# Of the prompt; conversations that begin alike up to here share a replica's prefix cache.
_PREFIX_CHARACTERS = 1024
# Requests a replica may have more than the idlest one and still be preferred for its cache.
_LEAN = 4
_OPTIONS = {"min_replicas": 1, "max_replicas": 1, "target_ongoing_requests": 8, "max_ongoing_requests": 512}


def prefix_of(body: bytes) -> str:
    """A name for the beginning of a request's prompt: of its messages, or of whatever text it brings."""
    try:
        fields: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError:
        return ""
    for name in ("messages", "prompt", "input"):
        if fields.get(name):
            start = msgspec.json.encode([fields.get("model"), fields.get("system"), fields[name]])
            return blake2b(start[:_PREFIX_CHARACTERS], digest_size=16).hexdigest()
    return ""


class PrefixRouter(RequestRouter):
    """The same beginning goes to the same replica, unless that one is much busier than another."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks, best first; Ray takes the first that has room."""
        load = {replica.replica_id: self._load(replica) for replica in candidate_replicas}
        by_load = sorted(candidate_replicas, key=lambda replica: load[replica.replica_id])
        call = pending_request.args[0] if pending_request and pending_request.args else None
        if not by_load or not isinstance(call, Call) or not call.prefix:
            return [[replica] for replica in by_load]

        def weight(replica: RunningReplica) -> bytes:
            # The highest wins: a replica that comes or goes moves only its own share.
            return blake2b(f"{call.prefix}/{replica.replica_id.unique_id}".encode(), digest_size=8).digest()

        preferred = max(by_load, key=weight)
        if load[preferred.replica_id] > load[by_load[0].replica_id] + _LEAN:
            return [[replica] for replica in by_load]
        return [[preferred], *([replica] for replica in by_load if replica is not preferred)]

    def _load(self, replica: RunningReplica) -> int:
        return self.replica_queue_len_cache.get(replica.replica_id) or 0


class Replica:
    """One engine."""

    async def __init__(self, settings: dict[str, Any]) -> None:
        config = load_config(ServeConfig, settings, {})
        self._state = State(config, Limits.of(config))
        self._app = App(self._state)
        await load_models(self._state)
        self._state.phase = Phase.READY
        self._watch = asyncio.get_running_loop().create_task(Guard(self._app.context).watch())
        self._name = serve.get_replica_context().replica_id.unique_id

    async def handle(self, call: Call) -> AsyncIterator[Head | bytes]:
        """One request; Ray closes the iterator when the client leaves."""
        async for piece in exchange(self._app, call):
            if isinstance(piece, Head):
                piece = Head(piece.status, [*piece.headers, (REPLICA_HEADER, self._name)])
            yield piece

    def check_health(self) -> None:
        """Ray replaces a replica whose engine is dead."""
        if self._state.health == "dead":
            raise RuntimeError("the engine is dead")


class Ingress:
    """Between Ray's HTTP and the replicas: reads the body, names its beginning, passes on what comes back."""

    def __init__(self, replicas: Any, max_body: int) -> None:
        self._replicas = replicas.options(stream=True, method_name="handle")
        self._max_body = max_body

    async def __call__(self, request: Request) -> Response:
        """One request."""
        headers: dict[str, str] = {}
        for name, value in request.headers.items():
            headers.setdefault(name, value)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > self._max_body:
                # The replica refuses it by this length.
                headers["content-length"] = str(max(len(body), int(headers.get("content-length", "0"))))
                break
        client = f"{request.client.host}:{request.client.port}" if request.client else ""
        call = Call(request.method, request.url.path, request.url.query, headers, body, client, prefix_of(body))
        pieces = self._replicas.remote(call)
        try:
            head = await anext(pieces)
        except BaseException:
            pieces.cancel()
            raise
        response = StreamingResponse(_rest(pieces), head.status)
        for name, value in head.headers:
            response.headers.append(name, value)
        return response


async def _rest(pieces: Any) -> AsyncIterator[bytes]:
    try:
        async for piece in pieces:
            yield piece
    finally:
        # Leaving early is the client's leaving, and frees what the engine holds.
        pieces.cancel()


def build(settings: dict[str, Any]) -> Any:
    """The application. `settings` are those of `serve`, and min_replicas, max_replicas, target_ongoing_requests."""
    given = dict(settings)
    options = {name: int(given.pop(name, default)) for name, default in _OPTIONS.items()}
    given.setdefault("allowed_host", ["*"])
    # A client that comes back may meet another replica.
    given["resume"] = 0.0
    given = {name: msgspec.convert(value, kind, strict=False) for name, value, kind in _typed(given)}
    config = load_config(ServeConfig, given, {})
    if options["min_replicas"] > options["max_replicas"]:
        raise ConfigError(
            f"min_replicas: {options['min_replicas']} is more than max_replicas {options['max_replicas']}"
        )
    replicas = serve.deployment(
        name="fastchat",
        max_ongoing_requests=options["max_ongoing_requests"],
        autoscaling_config={
            "min_replicas": options["min_replicas"],
            "max_replicas": options["max_replicas"],
            "target_ongoing_requests": options["target_ongoing_requests"],
        },
        request_router_config=RequestRouterConfig(request_router_class="fastchat_rs.ray:PrefixRouter"),
        ray_actor_options={"num_cpus": config.threads or 1},
        graceful_shutdown_timeout_s=config.drain,
    )(Replica)
    ingress = serve.deployment(name="fastchat-http", max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0})
    return ingress(Ingress).bind(replicas.bind(given), parse_bytes(config.max_body, "max_body"))


def _typed(given: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    kinds = {field.name: field.type for field in msgspec.structs.fields(ServeConfig)}
    unknown = sorted(set(given) - set(kinds))
    if unknown:
        raise ConfigError(f"unknown setting '{unknown[0]}'")
    return [(name, value, kinds[name]) for name, value in given.items()]
