"""GET /v1/models and /v1/models/{id}."""

from fastchat_rs.server.handle import Context
from fastchat_rs.server.http import Reply, Request, json_reply
from fastchat_rs.server.protocol import ModelCard, ModelList
from fastchat_rs.server.state import Served


def _card(name: str, served: Served) -> ModelCard:
    return ModelCard(name, served.created, served.info.max_model_len)


async def list_models(context: Context, request: Request) -> Reply:
    """Every name that a request may use."""
    context.state.must_serve()
    return json_reply(ModelList([_card(name, served) for name, served in context.state.models.items()]))


async def get_model(context: Context, request: Request) -> Reply:
    """One of them."""
    name, served = context.state.find(request.scope.path.partition("/models/")[2])
    return json_reply(_card(name, served))
