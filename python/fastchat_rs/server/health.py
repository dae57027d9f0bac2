"""GET /health and /metrics: open to all, cheap, no names of clients."""

from fastchat_rs.server.handle import Context
from fastchat_rs.server.http import Reply, Request, json_reply


async def health(context: Context, request: Request) -> Reply:
    """200 when requests are served; 503 while loading, draining, or when the engine is dead."""
    status = context.state.health
    return json_reply({"status": status}, 200 if status == "ready" else 503)


async def metrics(context: Context, request: Request) -> Reply:
    """Prometheus."""
    return Reply(context.metrics.text(), content_type="text/plain; version=0.0.4; charset=utf-8")
