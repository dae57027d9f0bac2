"""GET /health (or /ping), /metrics and /version: cheap, no names of clients."""

from fastchat_rs.server.bridge import __version__
from fastchat_rs.server.handle import Context
from fastchat_rs.server.http import Reply, Request, json_reply
from fastchat_rs.server.protocol import VersionReply


async def health(context: Context, request: Request) -> Reply:
    """200 when requests are served; 503 while loading, draining, or when the engine is dead."""
    status = context.state.health
    return json_reply({"status": status}, 200 if status == "ready" else 503)


async def version(context: Context, request: Request) -> Reply:
    """The server's own."""
    return json_reply(VersionReply(__version__))


async def metrics(context: Context, request: Request) -> Reply:
    """Prometheus."""
    return Reply(context.metrics.text(), content_type="text/plain; version=0.0.4; charset=utf-8")
