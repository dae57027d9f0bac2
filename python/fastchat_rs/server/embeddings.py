"""POST /v1/embeddings: texts or token ids to vectors."""

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from msgspec import Struct

from fastchat_rs.server.api_error import bad_field
from fastchat_rs.server.bridge import Embedder
from fastchat_rs.server.decode import BodyDecoder
from fastchat_rs.server.encoding import encoded
from fastchat_rs.server.handle import Context
from fastchat_rs.server.http import Reply, Request, json_reply
from fastchat_rs.server.protocol import EmbeddingItem, EmbeddingReply, EmbeddingRequest, EmbeddingUsage
from fastchat_rs.server.receipt import tell

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# OpenAI's own limit.
MAX_INPUTS = 2048

_DECODER = BodyDecoder(EmbeddingRequest)


async def embeddings(context: Context, request: Request) -> Reply:
    """All vectors of one request, in order."""
    return await embed(context, request, await context.decode(request, _DECODER), lambda reply: reply)


async def embed(
    context: Context, request: Request, body: EmbeddingRequest, word: Callable[[EmbeddingReply], Struct]
) -> Reply:
    """The one way from texts to vectors; `word` says them in an API's words."""
    name, served = context.state.find_embedding(body.model)
    inputs = _inputs(body.input)
    full = served.embedder.dimensions
    if body.dimensions is not None and body.dimensions > full:
        raise bad_field("dimensions", f"dimensions: {body.dimensions} is more than the {full} of this model")

    def work() -> tuple[int, Reply]:
        made = _reply(served.embedder, name, inputs, body)
        return made.usage.prompt_tokens, json_reply(word(made))

    tell(request, body.user)
    return await encoded(context, request, served, inputs, work)


def _inputs(given: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """One or many -> many; all of one kind."""
    if isinstance(given, str):
        given = [given]
    if all(isinstance(item, int) for item in given):
        return [cast(list[int], given)]
    kind = type(given[0])
    if any(type(item) is not kind for item in given):
        raise bad_field("input", "input: expected a string, strings, token ids or lists of token ids, not a mixture")
    if "" in given or [] in given:
        raise bad_field("input", "input: an entry is empty; each needs at least one token")
    if len(given) > MAX_INPUTS:
        raise bad_field("input", f"input: {len(given)} entries; at most {MAX_INPUTS} are taken at a time")
    return cast(list[str | list[int]], given)


def _reply(embedder: Embedder, model: str, inputs: list[str | list[int]], body: EmbeddingRequest) -> EmbeddingReply:
    # Late: servers of chat models start faster without it.
    import numpy as np

    vectors, lengths = embedder.embed(inputs)
    items: list[EmbeddingItem] = []
    for index, raw in enumerate(vectors):
        vector = np.frombuffer(raw, "<f4")
        if body.dimensions is not None and body.dimensions < len(vector):
            vector = shortened(vector, body.dimensions)
        if body.encoding_format == "base64":
            items.append(EmbeddingItem(index, base64.b64encode(vector.tobytes()).decode("ascii")))
        else:
            items.append(EmbeddingItem(index, vector.tolist()))
    tokens = sum(lengths)
    return EmbeddingReply(items, model, EmbeddingUsage(tokens, tokens))


def shortened(vector: "NDArray[np.float32]", dimensions: int) -> "NDArray[np.float32]":
    """The first elements, brought to length one again."""
    import numpy as np

    head = vector[:dimensions]
    length = float(np.sqrt(np.sum(head.astype(np.float64) ** 2)))
    return head if length == 0 else (head / length).astype("<f4")
