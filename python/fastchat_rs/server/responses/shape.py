"""Words the answer to a conversation as a response, whole or as events. Both come from the same pieces."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict, cast

from msgspec import UNSET, Struct

from fastchat_rs.server.api_error import ApiError
from fastchat_rs.server.bridge import Delta, TokenLogprobs
from fastchat_rs.server.chat import Turn
from fastchat_rs.server.logprobs import chat_logprobs
from fastchat_rs.server.protocol import MessageDelta
from fastchat_rs.server.responses import events
from fastchat_rs.server.responses.events import Event
from fastchat_rs.server.responses.protocol import (
    FunctionCallItem,
    Incomplete,
    InputDetails,
    MessageItem,
    OutputDetails,
    OutputItem,
    OutputLogprob,
    OutputText,
    OutputTopLogprob,
    ReasoningConfig,
    ReasoningItem,
    ReasoningText,
    Response,
    ResponsesRequest,
    Status,
    TextConfig,
    TextFormat,
    Usage,
)


class _About(TypedDict):
    """The item that an event is about."""

    item_id: str
    output_index: int


@dataclass
class _Open:
    """An item as it grows."""

    kind: str
    id: str
    index: int
    call_id: str = ""
    name: str = ""
    texts: list[str] = field(default_factory=list[str])
    logprobs: list[OutputLogprob] = field(default_factory=list[OutputLogprob])

    @property
    def text(self) -> str:
        """So far."""
        return "".join(self.texts)

    @property
    def about(self) -> _About:
        """For its events."""
        return {"item_id": self.id, "output_index": self.index}

    def item(self, status: str) -> OutputItem:
        """As it is now."""
        if self.kind == "reasoning":
            return ReasoningItem(self.id, status, [ReasoningText(self.text)] if self.texts else [])
        if self.kind == "message":
            return MessageItem(self.id, status, [OutputText(self.text, [], self.logprobs)] if self.texts else [])
        return FunctionCallItem(self.id, status, self.call_id, self.name, self.text)


class ResponseShape:
    """See `stream.Shape`."""

    def __init__(self, turn: Turn, request: ResponsesRequest, keep: Callable[[Response], None]) -> None:
        self._turn = turn
        self._request = request
        self._keep = keep
        self.usage = turn.usage
        (self._choice,) = turn.choices
        self._items: list[_Open] = []
        self._number = 0

    def opening(self) -> list[Struct]:
        """The response, empty, twice."""
        begun = self.response("in_progress")
        return self._numbered([events.Created(response=begun), events.InProgress(response=begun)])

    def chunks(self, prompt: int, delta: Delta) -> list[Struct]:
        """Items and their parts begin, grow and end."""
        return self._numbered(self._events(delta))

    def closing(self) -> list[Struct]:
        """The last item's end, and the whole response."""
        done = self._final()
        last = events.Completed if done.status == "completed" else events.Incompleted
        return self._numbered([*self._end(done.status), last(response=done)])

    def collect(self, prompt: int, delta: Delta) -> None:
        """For `whole`."""
        self._events(delta)

    def whole(self) -> Struct:
        """The reply."""
        return self._final()

    def error(self, error: ApiError) -> Struct:
        """The last event of a stream that failed."""
        failed = events.Error(message=error.message, code=error.code, param=error.param, error=error.body.error)
        return self._numbered([failed])[0]

    def _numbered(self, made: list[Event]) -> list[Struct]:
        for one in made:
            one.sequence_number = self._number
            self._number += 1
        return [*made]

    def _events(self, delta: Delta) -> list[Event]:
        made: list[Event] = []
        for piece in self._choice.feed(delta):
            made += self._piece(piece, self._choice.take_steps())
        return made

    def _piece(self, piece: MessageDelta, steps: list[TokenLogprobs]) -> list[Event]:
        if piece.content is not UNSET:
            made, item = self._grow("message", "msg_", piece.content)
            shaped = self._logprobs(steps)
            item.logprobs += shaped
            return [*made, events.TextDelta(**item.about, delta=piece.content, logprobs=shaped)]
        if piece.reasoning_content is not UNSET:
            made, item = self._grow("reasoning", "rs_", piece.reasoning_content)
            return [*made, events.ReasoningDelta(**item.about, delta=piece.reasoning_content)]
        made: list[Event] = []
        for call in [] if piece.tool_calls is UNSET else piece.tool_calls:
            function = call.function
            if function is UNSET:
                continue
            if call.id is not UNSET:
                made += self._begin("function_call", "fc_", call.id, cast(str, function.name))
            if function.arguments:
                item = self._items[-1]
                item.texts.append(function.arguments)
                made.append(events.ArgumentsDelta(**item.about, delta=function.arguments))
        return made

    def _grow(self, kind: str, prefix: str, text: str) -> tuple[list[Event], _Open]:
        made: list[Event] = []
        if not self._items or self._items[-1].kind != kind:
            made = self._begin(kind, prefix)
            item = self._items[-1]
            empty = OutputText("") if kind == "message" else ReasoningText("")
            made.append(events.PartAdded(item_id=item.id, output_index=item.index, part=empty))
        self._items[-1].texts.append(text)
        return made, self._items[-1]

    def _begin(self, kind: str, prefix: str, call_id: str = "", name: str = "") -> list[Event]:
        made = self._end("completed")
        index = len(self._items)
        own = self._turn.ids.id.removeprefix("resp_")
        item = _Open(kind, f"{prefix}{own}_{index}", index, call_id, name)
        self._items.append(item)
        return [*made, events.ItemAdded(output_index=index, item=item.item("in_progress"))]

    def _end(self, status: str) -> list[Event]:
        """What says that the last item is complete."""
        if not self._items:
            return []
        item = self._items[-1]
        made: list[Event] = []
        if item.kind == "message":
            part = OutputText(item.text, [], item.logprobs)
            made.append(events.TextDone(**item.about, text=part.text, logprobs=item.logprobs))
            made.append(events.PartDone(**item.about, part=part))
        elif item.kind == "reasoning":
            made.append(events.ReasoningDone(**item.about, text=item.text))
            made.append(events.PartDone(**item.about, part=ReasoningText(item.text)))
        else:
            made.append(events.ArgumentsDone(**item.about, name=item.name, arguments=item.text))
        return [*made, events.ItemDone(output_index=item.index, item=item.item(status))]

    def _logprobs(self, steps: list[TokenLogprobs]) -> list[OutputLogprob]:
        if not self._turn.want.logprobs:
            return []
        return [
            OutputLogprob(
                one.token,
                one.logprob,
                one.bytes,
                [OutputTopLogprob(top.token, top.logprob, top.bytes) for top in one.top_logprobs],
            )
            for one in chat_logprobs(self._turn.served, steps).content
        ]

    def _final(self) -> Response:
        cut = self._choice.finish_reason == "length"
        done = self.response("incomplete" if cut else "completed")
        done.output = [item.item("completed") for item in self._items[:-1]]
        done.output += [item.item(done.status) for item in self._items[-1:]]
        done.incomplete_details = Incomplete("max_output_tokens") if cut else None
        usage = self.usage.usage()
        done.usage = Usage(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.total_tokens,
            InputDetails(usage.prompt_tokens_details.cached_tokens),
            OutputDetails(usage.completion_tokens_details.reasoning_tokens),
        )
        self._keep(done)
        return done

    def response(self, status: Status) -> Response:
        """Without an answer."""
        asked, ids, defaults = self._request, self._turn.ids, self._turn.served.defaults
        text = asked.text or TextConfig()
        return Response(
            id=ids.id,
            created_at=ids.created,
            status=status,
            background=bool(asked.background),
            instructions=asked.instructions,
            max_output_tokens=asked.max_output_tokens,
            metadata=asked.metadata or {},
            model=ids.model,
            output=[],
            parallel_tool_calls=asked.parallel_tool_calls is not False,
            previous_response_id=asked.previous_response_id,
            reasoning=asked.reasoning or ReasoningConfig(),
            store=asked.store is not False,
            temperature=defaults.get("temperature", 1.0) if asked.temperature is None else asked.temperature,
            text=TextConfig(format=text.format or TextFormat(type="text"), verbosity=text.verbosity),
            tool_choice="auto" if asked.tool_choice is None else asked.tool_choice,
            tools=asked.tools or [],
            top_p=defaults.get("top_p", 1.0) if asked.top_p is None else asked.top_p,
            user=asked.user,
        )
