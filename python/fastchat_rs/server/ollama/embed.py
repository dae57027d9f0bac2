"""POST /api/embed and /api/embeddings: put into the words of /v1/embeddings."""

import asyncio
import time

from fastchat_rs.server.bridge import Embedder
from fastchat_rs.server.decode import BodyDecoder
from fastchat_rs.server.embeddings import embed
from fastchat_rs.server.handle import Context
from fastchat_rs.server.http import Reply, Request
from fastchat_rs.server.ollama.protocol import EmbedBody, EmbedReply, LegacyEmbedBody, LegacyEmbedReply
from fastchat_rs.server.ollama.routes import known_name
from fastchat_rs.server.protocol import EmbeddingReply, EmbeddingRequest

_EMBED = BodyDecoder(EmbedBody)
_LEGACY = BodyDecoder(LegacyEmbedBody)


async def embed_route(context: Context, request: Request) -> Reply:
    """POST /api/embed."""
    started = time.monotonic_ns()
    body = await context.decode(request, _EMBED)
    request.unknown_fields += _unused(body)

    def word(reply: EmbeddingReply) -> EmbedReply:
        spent = time.monotonic_ns() - started
        return EmbedReply(body.model, _vectors(reply), spent, 0, reply.usage.prompt_tokens)

    name = known_name(context.state, body.model)
    _, served = context.state.find_embedding(name)
    texts = [body.input] if isinstance(body.input, str) else body.input
    inputs: list[str | int | list[int]] = [*texts]
    if body.truncate is not False:
        loop = asyncio.get_running_loop()
        inputs = await loop.run_in_executor(served.pool, lambda: [_cut(served.embedder, text) for text in texts])
    asked = EmbeddingRequest(model=name, input=inputs, dimensions=body.dimensions)
    return await embed(context, request, asked, word)


async def legacy_route(context: Context, request: Request) -> Reply:
    """POST /api/embeddings."""
    body = await context.decode(request, _LEGACY)
    request.unknown_fields += _unused(body)
    request.names = {"input": "prompt"}
    asked = EmbeddingRequest(model=known_name(context.state, body.model), input=body.prompt)
    return await embed(context, request, asked, lambda reply: LegacyEmbedReply(_vectors(reply)[0]))


def _unused(body: EmbedBody | LegacyEmbedBody) -> list[str]:
    return [name for name in ("options", "keep_alive") if getattr(body, name) is not None]


def _cut(embedder: Embedder, text: str) -> str | int | list[int]:
    """As token ids. What is longer than the model takes loses its end, but not the token that closes it."""
    ids = embedder.encode(text)
    limit = embedder.max_model_len
    return [*ids[: limit - 1], ids[-1]] if len(ids) > limit else ids


def _vectors(reply: EmbeddingReply) -> list[list[float]]:
    return [item.embedding for item in reply.data if isinstance(item.embedding, list)]
