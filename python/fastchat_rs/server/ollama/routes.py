"""POST /api/chat and /api/generate, and Ollama's lists of models."""

import re
from collections.abc import Iterator

import msgspec

from fastchat_rs.server.api_error import ApiError
from fastchat_rs.server.bridge import __version__
from fastchat_rs.server.chat import Dialect, converse
from fastchat_rs.server.decode import BodyDecoder
from fastchat_rs.server.handle import Context
from fastchat_rs.server.http import Reply, Request, Wording, encode_json, json_reply
from fastchat_rs.server.ollama import protocol
from fastchat_rs.server.ollama.shape import ChatShape, GenerateShape, timestamp
from fastchat_rs.server.ollama.translate import Translated, chat, generate
from fastchat_rs.server.state import Embedding, Served, State

_CHAT = BodyDecoder(protocol.ChatBody)
_GENERATE = BodyDecoder(protocol.GenerateBody)
_SHOW = BodyDecoder(protocol.ShowBody)
_CHAT_DIALECT = Dialect("", ChatShape)
_GENERATE_DIALECT = Dialect("", GenerateShape)


def _error(error: ApiError) -> protocol.Error:
    # Pictures stand before the text in the chat route's parts.
    return protocol.Error(re.sub(r"\.content\.(\d+)(\.image_url)?", r".images.\1", error.message))


def _line(value: msgspec.Struct) -> bytes:
    return encode_json(value) + b"\n"


# A line without a meaning is none that Ollama's clients can read: a silent stream stays silent.
WORDING = Wording(_error, _error, chunk=_line, ping=b"", last=b"", content_type="application/x-ndjson")


async def chat_route(context: Context, request: Request) -> Reply | None:
    """POST /api/chat."""
    body = await context.decode(request, _CHAT)
    body.model = known_name(context.state, body.model)
    if not body.messages:
        line = protocol.ChatReply(
            model=body.model, created_at=timestamp(), message=protocol.OutputMessage(""), done=True, done_reason="load"
        )
        return _loaded(context.state, body.model, line)
    _tell(request, given := chat(body))
    return await converse(context, request, given.body, _CHAT_DIALECT)


async def generate_route(context: Context, request: Request) -> Reply | None:
    """POST /api/generate."""
    body = await context.decode(request, _GENERATE)
    body.model = known_name(context.state, body.model)
    if not body.prompt and not body.images:
        line = protocol.GenerateReply(
            model=body.model, created_at=timestamp(), response="", done=True, done_reason="load"
        )
        return _loaded(context.state, body.model, line)
    _tell(request, given := generate(body))
    return await converse(context, request, given.body, _GENERATE_DIALECT)


def known_name(state: State, model: str) -> str:
    """Ollama's clients add a tag to names that have none."""
    plain = model.removesuffix(":latest")
    return plain if model not in state.models and model not in state.embeddings else model


def _loaded(state: State, model: str, line: msgspec.Struct) -> Reply:
    """Nothing to say: this is how clients have a model loaded, which it is."""
    state.find(model)
    return json_reply(line)


def _tell(request: Request, given: Translated) -> None:
    request.names = given.names
    request.unknown_fields += given.unused


async def tags(context: Context, request: Request) -> Reply:
    """GET /api/tags and /api/ps: what is served is loaded."""
    context.state.must_serve()
    return json_reply(
        protocol.ModelEntries(
            [_entry(name, served) for name, served in _everything(context.state) if request.may_use(name)]
        )
    )


async def show(context: Context, request: Request) -> Reply:
    """POST /api/show."""
    body = await context.decode(request, _SHOW)
    name = known_name(context.state, body.model)
    served = context.state.embeddings.get(name) or context.state.find(name)[1]
    return json_reply(
        protocol.ShowReply(
            timestamp(served.files.modified),
            protocol.Details(served.files.format),
            _info(served),
            _capabilities(served),
            served.template.source if isinstance(served, Served) and served.template else "",
        )
    )


async def version(context: Context, request: Request) -> Reply:
    """GET /api/version: this server's own."""
    return json_reply(protocol.VersionReply(__version__))


def _everything(state: State) -> Iterator[tuple[str, Served | Embedding]]:
    yield from state.models.items()
    yield from state.embeddings.items()


def _entry(name: str, served: Served | Embedding) -> protocol.ModelEntry:
    files = served.files
    print_ = served.info.fingerprint if isinstance(served, Served) else served.embedder.fingerprint
    return protocol.ModelEntry(
        name, name, timestamp(files.modified), files.bytes, print_, protocol.Details(files.format)
    )


def _info(served: Served | Embedding) -> dict[str, object]:
    """The keys end as Ollama's do; the architecture is this server's description of it."""
    facts = served.info if isinstance(served, Served) else served.embedder
    info: dict[str, object] = {
        "general.architecture": "fastchat_rs",
        "fastchat_rs.context_length": facts.max_model_len,
        "fastchat_rs.vocab_size": facts.vocab_size,
    }
    if isinstance(served, Embedding):
        info["fastchat_rs.embedding_length"] = served.embedder.dimensions
    return info


def _capabilities(served: Served | Embedding) -> list[str]:
    if isinstance(served, Embedding):
        return ["rerank" if served.embedder.makes_scores else "embedding"]
    found = ["completion"]
    if served.format is not None:
        # Every model with a template can be told of tools; see toolless.py.
        found.append("tools")
        if served.format.reasoning:
            found.append("thinking")
    return found
