"""GET /v1/models and /v1/models/{id}."""

from fastchat_rs.server.handle import Context
from fastchat_rs.server.http import Reply, Request, json_reply
from fastchat_rs.server.protocol import ModelCard, ModelList
from fastchat_rs.server.state import Embedding, Served


def _card(name: str, served: Served | Embedding) -> ModelCard:
    facts = served.embedder if isinstance(served, Embedding) else served.info
    return ModelCard(name, served.created, facts.max_model_len)


async def list_models(context: Context, request: Request) -> Reply:
    """Every name that a request may use."""
    context.state.must_serve()
    everything = {**context.state.models, **context.state.embeddings}
    return json_reply(ModelList([_card(name, served) for name, served in everything.items() if request.may_use(name)]))


async def get_model(context: Context, request: Request) -> Reply:
    """One of them."""
    asked = request.scope.path.partition("/models/")[2]
    context.state.must_allow(request, asked)
    find = context.state.find_embedding if asked in context.state.embeddings else context.state.find
    name, served = find(asked)
    return json_reply(_card(name, served))
