"""POST /v1/chat/completions: validate, submit, shape. Other APIs go the same way, with words of their own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, Struct

from fastchat_rs.server.api_error import ApiError, bad_field
from fastchat_rs.server.bridge import (
    ChatParser,
    ContextLengthError,
    Delta,
    Generation,
    InvalidRequestError,
    StructuredOutput,
    ThinkingBudget,
    TokenLogprobs,
)
from fastchat_rs.server.decode import BodyDecoder
from fastchat_rs.server.errors import to_api_error
from fastchat_rs.server.handle import Context, Ids, Submission, answer
from fastchat_rs.server.http import Reply, Request
from fastchat_rs.server.images import Pictures
from fastchat_rs.server.logprobs import chat_logprobs
from fastchat_rs.server.messages import (
    Rendering,
    chat_template,
    goes_on,
    render,
    template_messages,
    template_variables,
)
from fastchat_rs.server.protocol import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatLogprobs,
    ChatRequest,
    MessageDelta,
)
from fastchat_rs.server.reader import ChoiceReader
from fastchat_rs.server.receipt import Notes
from fastchat_rs.server.sampling import RouteParams, cache_salt, sampling_params
from fastchat_rs.server.state import Limits, Served
from fastchat_rs.server.stream import Shape
from fastchat_rs.server.structured import Wanted, reworded, structured_output
from fastchat_rs.server.tools import ToolUse, tool_use
from fastchat_rs.server.usage import UsageCounter
from fastchat_rs.template import ChatTemplate

DECODER = BodyDecoder(ChatRequest)
# What templates call the switch for thinking.
_THINKING = ("enable_thinking", "thinking")


async def chat_completions(context: Context, request: Request) -> Reply | None:
    """The route."""
    return await converse(context, request, await context.decode(request, DECODER), _OPENAI)


@dataclass(frozen=True)
class Turn:
    """What an answer's words are made of."""

    ids: Ids
    served: Served
    usage: UsageCounter
    want: "Want"
    choices: list[ChoiceReader]
    notes: Notes


@dataclass(frozen=True)
class Dialect:
    """An API's words for the answer to a conversation."""

    id_prefix: str
    shape: Callable[[Turn], Shape]


async def converse(context: Context, request: Request, body: ChatRequest, dialect: Dialect) -> None:
    """The one way from a conversation to its answer."""
    name, served = context.state.find(body.model)
    notes = _notes(body, request)
    logprobs = _logprobs(body, context.state.limits)
    tools = tool_use(body, context.state.limits.tools, notes)
    wanted = structured_output(body)
    if tools is not None and wanted is not None:
        if tools.forced is None:
            notes.ignored("functions" if tools.legacy else "tools", f"{wanted.field} decides the answer")
        else:
            notes.ignored(wanted.field, f"{'function_call' if tools.legacy else 'tool_choice'} forces a call")
    pictures = Pictures(served, context.images)
    rendered = await _prompt(served, body, tools, notes, pictures)
    prompt = pictures.plain(rendered)
    # Too large an n is refused below.
    count = min(body.n or 1, context.state.limits.n)
    plan = await _plan(served, None if body.messages is None else prompt, tools, wanted, count)
    if plan.structured is not None:
        notes.constrained(body)
    thinking = _thinking_budget(served, body, prompt, notes)
    params = sampling_params(
        body,
        served,
        context.state.limits,
        RouteParams(
            max_tokens=body.max_completion_tokens or body.max_tokens,
            logprobs=logprobs,
            structured=plan.structured,
            thinking=thinking,
            keep_special_tokens=plan.keep_special_tokens,
        ),
    )
    ids = Ids.new(dialect.id_prefix, name, served)
    submission = Submission(
        prompts=[await pictures.submitted(rendered)],
        params=params,
        add_special_tokens=body.messages is None,
        cache_salt=cache_salt(request.tenant, body.cache_salt),
        priority=body.priority or 0,
        stream=bool(body.stream),
        prompt_field="prompt" if body.messages is None else "messages",
        max_tokens_field="max_completion_tokens" if body.max_completion_tokens else "max_tokens",
        structured_field=plan.structured_field,
        ids=ids,
    )
    options = body.stream_options
    want = Want(
        logprobs=logprobs is not None,
        include_usage=bool(options and (options.include_usage or options.continuous_usage_stats)),
        continuous_usage=bool(options and options.continuous_usage_stats),
        receipt=bool(body.fastchat and body.fastchat.applied),
    )

    def tokens(text: str) -> int:
        return len(served.bridge.engine.encode(text, add_special_tokens=False))

    readers = [ChoiceReader(parser, tools=tools, count=tokens) for parser in plan.parsers or [None] * params.n]

    def shape(_: Generation, usage: UsageCounter) -> Shape:
        usage.reasoning = lambda: sum(choice.reasoning_tokens for choice in readers)
        return dialect.shape(Turn(ids, served, usage, want, readers, notes))

    try:
        await answer(context, request, served, submission, notes, shape)
    except ApiError as error:
        raise pictures.placed(error) from error


async def count_tokens(context: Context, request: Request, body: ChatRequest) -> int:
    """Tokens of the prompt that the conversation becomes."""
    _, served = context.state.find(body.model)
    notes = _notes(body, request)
    pictures = Pictures(served, context.images)
    prompt = await _prompt(served, body, tool_use(body, context.state.limits.tools, notes), notes, pictures)
    submitted = await pictures.submitted(prompt)
    count, special = served.bridge.engine.count_tokens, body.messages is None
    try:
        return await served.bridge.offload(lambda: count(submitted, add_special_tokens=special))
    except (InvalidRequestError, ContextLengthError) as error:
        raise pictures.placed(to_api_error(error, request.id)) from error


def _notes(body: ChatRequest, request: Request) -> Notes:
    notes = Notes()
    notes.sampling(body)
    if body.max_tokens and body.max_completion_tokens:
        notes.ignored("max_tokens", "max_completion_tokens wins")
    notes.unknown(request.unknown_fields)
    return notes


def _logprobs(body: ChatRequest, limits: Limits) -> int | None:
    if body.top_logprobs is not None:
        if body.top_logprobs and not body.logprobs:
            raise bad_field("top_logprobs", "top_logprobs is only allowed when logprobs is true")
        if body.top_logprobs > limits.logprobs:
            raise bad_field("top_logprobs", f"top_logprobs: at most {limits.logprobs}")
    return (body.top_logprobs or 0) if body.logprobs else None


async def _prompt(served: Served, body: ChatRequest, tools: ToolUse | None, notes: Notes, pictures: Pictures) -> str:
    if body.messages is not None and body.prompt is not None:
        raise bad_field("prompt", "prompt: send messages or prompt, not both")
    if body.prompt is not None:
        if tools is not None:
            field = "functions" if tools.legacy else "tools"
            raise bad_field(field, f"{field}: need messages, a raw prompt has no place for them", "unsupported")
        for field in ("enable_thinking", "reasoning_effort", "chat_template_kwargs"):
            if getattr(body, field) is not None:
                notes.ignored(field, "a raw prompt has no template")
        return body.prompt
    if body.messages is None:
        raise bad_field("messages", "messages: is needed", code="missing_required_parameter")
    messages = template_messages(body.messages, pictures)
    template = chat_template(served)
    go_on = goes_on(messages, body.continue_final_message, body.add_generation_prompt)
    return await render(
        served.bridge,
        template,
        pictures.shown(messages, template),
        Rendering(
            _variables(template, body, notes),
            tools.shown if tools else None,
            add_generation_prompt=body.add_generation_prompt is not False,
            continue_final_message=go_on,
        ),
    )


def _variables(template: ChatTemplate, body: ChatRequest, notes: Notes) -> dict[str, Any]:
    """Of the template; `enable_thinking` and `reasoning_effort` where it reads them."""
    variables = template_variables(template, body.chat_template_kwargs)
    switch = next((name for name in _THINKING if name in template.variables), None)
    thinking, effort = body.enable_thinking, body.reasoning_effort
    if thinking is not None:
        if switch is None:
            notes.ignored("enable_thinking", "the model's template does not read it")
        else:
            variables[switch] = thinking
    if effort is not None:
        if effort == "none" and switch is not None:
            variables[switch] = False
        elif effort != "none" and "reasoning_effort" in template.variables:
            variables["reasoning_effort"] = effort
        else:
            notes.ignored("reasoning_effort", "the model's template does not read it")
    return variables


def _thinking_budget(served: Served, body: ChatRequest, prompt: str, notes: Notes) -> ThinkingBudget | None:
    tokens = body.thinking_budget
    if tokens is None:
        return None
    format = served.format if body.messages is not None else None
    budget = format.thinking_budget(prompt, tokens) if format is not None else None
    if budget is None:
        notes.ignored("thinking_budget", "no thoughts will be told from the answer")
    return budget


@dataclass(frozen=True)
class Plan:
    """How the answer is constrained and read."""

    structured: StructuredOutput | None = None
    structured_field: str = "response_format"
    keep_special_tokens: bool = False
    parsers: list[ChatParser] | None = None
    """One per choice; None when the text is the answer."""


async def _plan(served: Served, prompt: str | None, tools: ToolUse | None, wanted: Wanted | None, count: int) -> Plan:
    """`prompt` is None when no template made it."""
    format = served.format
    output = wanted.output if wanted else None
    field = wanted.field if wanted else "response_format"
    if prompt is None or format is None:
        return Plan(output, field)

    def work() -> Plan:
        offered = tools.json if tools else None
        structured, blamed, parsed = output, field, offered
        if tools is not None and tools.forced is not None:
            structured = format.constrain(prompt, tools=tools.closed_json, choice=tools.forced, parallel=tools.parallel)
            blamed = "functions" if tools.legacy else "tools"
        elif output is not None:
            # The answer is the value, which may look like a call.
            structured, parsed = format.after_thinking(prompt, output), None
        parsers = [format.parser(prompt, tools=parsed) for _ in range(count)]
        seen = format.needs_special_tokens and (parsed is not None or format.reasoning)
        return Plan(structured, blamed, seen, parsers)

    try:
        return await served.bridge.offload(work)
    except InvalidRequestError as error:
        raise reworded(to_api_error(error, ""), field) from error


@dataclass(frozen=True)
class Want:
    """What the client asked to see."""

    logprobs: bool
    include_usage: bool
    continuous_usage: bool
    receipt: bool


class ChatShape:
    """Words deltas as chat completions (see `stream.Shape`)."""

    def __init__(self, turn: Turn) -> None:
        self._ids = turn.ids
        self._served = turn.served
        self.usage = turn.usage
        self._want = turn.want
        self._choices = turn.choices
        self._notes = turn.notes

    def opening(self) -> list[Struct]:
        """The role, once per choice."""
        role = MessageDelta("assistant", "")
        chunks = [self._chunk([ChatChunkChoice(index, role)]) for index in range(len(self._choices))]
        chunks[0].fastchat = self._notes.body(self._want.receipt)
        return [*chunks]

    def chunks(self, prompt: int, delta: Delta) -> list[Struct]:
        """The pieces of one choice. Log-probabilities go with the text that their tokens became."""
        choice = self._choices[delta.index]
        pieces = choice.feed(delta)
        finish = choice.finish_reason
        if finish is not None:
            pieces.append(MessageDelta())
        chunks: list[Struct] = []
        for number, piece in enumerate(pieces, start=1):
            logprobs = self._shaped(choice.take_steps()) if choice.steps else None
            reason = finish if number == len(pieces) else None
            chunks.append(self._chunk([ChatChunkChoice(delta.index, piece, logprobs, reason)]))
        return chunks

    def closing(self) -> list[Struct]:
        """No choices, only usage, when it was asked for."""
        if not self._want.include_usage:
            return []
        chunk = self._chunk([])
        chunk.usage = self.usage.usage()
        return [chunk]

    def collect(self, prompt: int, delta: Delta) -> None:
        """For `whole`."""
        self._choices[delta.index].feed(delta)

    def whole(self) -> Struct:
        """The reply."""
        choices = [
            ChatChoice(index, choice.message(), self._shaped(choice.steps), choice.finish_reason or "stop")
            for index, choice in enumerate(self._choices)
        ]
        return ChatCompletion(
            **self._ids.fields(),
            choices=choices,
            usage=self.usage.usage(),
            fastchat=self._notes.body(self._want.receipt),
        )

    def _shaped(self, steps: list[TokenLogprobs]) -> ChatLogprobs | None:
        return chat_logprobs(self._served, steps) if self._want.logprobs else None

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatCompletionChunk:
        usage: Any = UNSET
        if self._want.continuous_usage:
            usage = self.usage.usage()
        elif self._want.include_usage:
            usage = None
        return ChatCompletionChunk(**self._ids.fields(), choices=choices, usage=usage)


_OPENAI = Dialect("chatcmpl-", ChatShape)
