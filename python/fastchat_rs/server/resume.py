"""GET /v1/chat/completions/{id}/events?after=N: the events of a stream from number N on, and then live."""

import re

from fastchat_rs.server.api_error import bad_field
from fastchat_rs.server.handle import Context
from fastchat_rs.server.http import Request

ROUTE = "/v1/chat/completions//events"
"""Without the id."""
PATH = re.compile(r"/v1/chat/completions/([A-Za-z0-9-]{1,64})/events")


async def events(context: Context, request: Request) -> None:
    """For the key that began the stream. `after` is how many events the client has."""
    match = PATH.search(request.scope.path)
    after = re.fullmatch(r"after=(\d{1,9})", request.scope.query_string) if request.scope.query_string else None
    if request.scope.query_string and after is None:
        raise bad_field("after", "after: expected the number of events that were received")
    ring = context.rings.find(match[1] if match else "", request.tenant)
    await ring.follow(request, int(after[1]) if after else 0, context.state.limits.heartbeat_seconds)
