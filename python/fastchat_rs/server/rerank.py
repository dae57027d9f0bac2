"""POST /v1/rerank, in the shape that Cohere and Jina share: how well documents answer a query."""

import uuid
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from fastchat_rs.server.api_error import bad_field
from fastchat_rs.server.decode import BodyDecoder
from fastchat_rs.server.encoding import encoded
from fastchat_rs.server.handle import Context
from fastchat_rs.server.http import Reply, Request, json_reply
from fastchat_rs.server.protocol import EmbeddingUsage, Positive
from fastchat_rs.server.receipt import tell
from fastchat_rs.server.sampling import unsupported
from fastchat_rs.server.state import Embedding


class Document(Struct, kw_only=True):
    """A text."""

    text: str


class RerankRequest(Struct, kw_only=True):
    """Body of /v1/rerank."""

    model: str
    query: Annotated[str, Meta(min_length=1)]
    documents: Annotated[list[str | Document], Meta(min_length=1, max_length=2048)]
    top_n: Positive | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Positive | None = None
    # Refused when they are given.
    rank_fields: list[str] | None = None
    max_chunks_per_doc: int | None = None
    # Accepted, no effect here.
    user: str | None = None


class RerankResult(Struct):
    """One document, by its place in the request."""

    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class InputTokens(Struct):
    """Part of `RerankMeta`."""

    input_tokens: int


class RerankMeta(Struct):
    """Where Cohere's clients look for the tokens."""

    tokens: InputTokens


class RerankReply(Struct):
    """Reply of /v1/rerank: the best document first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: EmbeddingUsage
    meta: RerankMeta
    object: str = "list"


_DECODER = BodyDecoder(RerankRequest)


async def rerank(context: Context, request: Request) -> Reply:
    """Every document is read together with the query."""
    body = await context.decode(request, _DECODER)
    name, served = context.state.find_reranker(body.model)
    for field, what in (("rank_fields", "documents with several fields"), ("max_chunks_per_doc", "cutting documents")):
        if getattr(body, field) is not None:
            unsupported(field, what)
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    if "" in texts:
        raise bad_field("documents", f"documents: entry {texts.index('')} is empty")

    def work() -> tuple[int, Reply]:
        made = _reply(name, served, body, texts)
        return made.usage.prompt_tokens, json_reply(made)

    # Each document is read together with the query.
    pairs = [text for document in texts for text in (body.query, document)]
    tell(request, body.user)
    return await encoded(context, request, served, pairs, work)


def _reply(name: str, served: Embedding, body: RerankRequest, texts: list[str]) -> RerankReply:
    scores, lengths = served.embedder.score(body.query, texts, max_tokens_per_doc=body.max_tokens_per_doc)
    # Equal scores keep the order of the request.
    best = sorted(range(len(texts)), key=lambda index: -scores[index])[: body.top_n]
    results = [
        RerankResult(index, scores[index], Document(text=texts[index]) if body.return_documents else UNSET)
        for index in best
    ]
    tokens = sum(lengths)
    usage = EmbeddingUsage(tokens, tokens)
    return RerankReply(f"rerank-{uuid.uuid4().hex}", name, results, usage, RerankMeta(InputTokens(tokens)))
