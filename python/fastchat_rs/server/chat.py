"""POST /v1/chat/completions: validate, submit, shape."""

from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, Struct

from fastchat_rs.server.bridge import Delta, TokenLogprobs
from fastchat_rs.server.decode import BodyDecoder
from fastchat_rs.server.handle import Context, Ids, Submission, answer
from fastchat_rs.server.http import Reply, Request, bad_field
from fastchat_rs.server.logprobs import chat_logprobs
from fastchat_rs.server.messages import chat_template, render, template_messages, template_variables
from fastchat_rs.server.protocol import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatLogprobs,
    ChatRequest,
    MessageDelta,
)
from fastchat_rs.server.sampling import cache_salt, refuse_structured, sampling_params, unsupported
from fastchat_rs.server.state import Limits, Served
from fastchat_rs.server.usage import UsageCounter

DECODER = BodyDecoder(ChatRequest)


async def chat_completions(context: Context, request: Request) -> Reply | None:
    """The route."""
    body = await context.decode(request, DECODER)
    name, served = context.state.find(body.model)
    refuse_structured(body)
    _refuse_later(body)
    logprobs = _logprobs(body, context.state.limits)
    params = sampling_params(
        body,
        served,
        context.state.limits,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=logprobs,
    )
    prompt = await _prompt(served, body)
    submission = Submission(
        prompts=[prompt],
        params=params,
        add_special_tokens=body.messages is None,
        cache_salt=cache_salt(request.tenant, body.cache_salt),
        priority=body.priority or 0,
        stream=bool(body.stream),
        prompt_field="prompt" if body.messages is None else "messages",
    )
    ids = Ids.new("chatcmpl-", name, served)
    options = body.stream_options
    return await answer(
        context,
        request,
        served,
        submission,
        lambda _, usage: ChatShape(
            ids,
            served,
            usage,
            Want(
                n=params.n,
                logprobs=logprobs is not None,
                include_usage=bool(options and (options.include_usage or options.continuous_usage_stats)),
                continuous_usage=bool(options and options.continuous_usage_stats),
            ),
        ),
    )


def _refuse_later(body: ChatRequest) -> None:
    """Fields of tools and reasoning: values without effect pass, others are refused by name."""
    if body.tools:
        unsupported("tools", "a list of tools")
    if body.tool_choice not in (None, "none", "auto"):
        unsupported("tool_choice", "a value other than none without tools")
    if body.reasoning_effort not in (None, "none"):
        unsupported("reasoning_effort", "a value other than none")


def _logprobs(body: ChatRequest, limits: Limits) -> int | None:
    if body.top_logprobs is not None:
        if not body.logprobs:
            raise bad_field("top_logprobs", "top_logprobs is only allowed when logprobs is true")
        if body.top_logprobs > limits.logprobs:
            raise bad_field("top_logprobs", f"top_logprobs: at most {limits.logprobs}")
    return (body.top_logprobs or 0) if body.logprobs else None


async def _prompt(served: Served, body: ChatRequest) -> str:
    if body.messages is not None and body.prompt is not None:
        raise bad_field("prompt", "prompt: send messages or prompt, not both")
    if body.prompt is not None:
        return body.prompt
    if body.messages is None:
        raise bad_field("messages", "messages: is needed", code="missing_required_parameter")
    messages = template_messages(body.messages)
    template = chat_template(served)
    variables = template_variables(template, body.chat_template_kwargs)
    if body.enable_thinking is not None:
        variables["enable_thinking"] = body.enable_thinking
    go_on = bool(body.continue_final_message)
    if go_on and body.add_generation_prompt:
        raise bad_field("continue_final_message", "continue_final_message excludes add_generation_prompt")
    if go_on and messages[-1]["role"] != "assistant":
        raise bad_field("continue_final_message", "continue_final_message: the last message must be the assistant's")
    return await render(
        served.bridge,
        template,
        messages,
        variables,
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=go_on,
    )


@dataclass(frozen=True)
class Want:
    """What the client asked to see."""

    n: int
    logprobs: bool
    include_usage: bool
    continuous_usage: bool


@dataclass
class Piece:
    """What a delta adds to a message; later also tool calls and reasoning."""

    content: str = ""


class ChoiceReader:
    """Turns one choice's text into pieces of a message. Streams send the pieces, whole replies join them."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.steps: list[TokenLogprobs] = []
        self.finish_reason = "stop"

    def feed(self, delta: Delta) -> Piece:
        """The next piece."""
        return Piece(delta.text)

    def keep(self, delta: Delta) -> None:
        """Feeds, and keeps the piece for the whole message."""
        self.content.append(self.feed(delta).content)
        self.steps += delta.logprobs or []
        self.finish_reason = delta.finish_reason or self.finish_reason

    def message(self) -> AssistantMessage:
        """The kept pieces, joined."""
        return AssistantMessage("".join(self.content))


class ChatShape:
    """Words deltas as chat completions (see `stream.Shape`)."""

    def __init__(self, ids: Ids, served: Served, usage: UsageCounter, want: Want) -> None:
        self._ids = ids
        self._served = served
        self.usage = usage
        self.include_usage = want.include_usage
        self._want = want
        self._choices = [ChoiceReader() for _ in range(want.n)]

    def opening(self) -> list[Struct]:
        """The role, once per choice."""
        role = MessageDelta("assistant", "")
        return [self._chunk([ChatChunkChoice(index, role)]) for index in range(len(self._choices))]

    def chunk(self, prompt: int, delta: Delta) -> Struct | None:
        """A piece of one choice."""
        piece = self._choices[delta.index].feed(delta)
        logprobs = self._shaped(delta.logprobs or []) if delta.logprobs else None
        if not piece.content and logprobs is None and delta.finish_reason is None:
            return None
        message = MessageDelta(content=piece.content) if piece.content else MessageDelta()
        return self._chunk([ChatChunkChoice(delta.index, message, logprobs, delta.finish_reason)])

    def usage_chunk(self) -> Struct:
        """No choices, only usage."""
        chunk = self._chunk([])
        chunk.usage = self.usage.usage()
        return chunk

    def collect(self, prompt: int, delta: Delta) -> None:
        """For `whole`."""
        self._choices[delta.index].keep(delta)

    def whole(self) -> Struct:
        """The reply."""
        choices = [
            ChatChoice(index, choice.message(), self._shaped(choice.steps), choice.finish_reason)
            for index, choice in enumerate(self._choices)
        ]
        return ChatCompletion(**self._ids.fields(), choices=choices, usage=self.usage.usage())

    def _shaped(self, steps: list[TokenLogprobs]) -> ChatLogprobs | None:
        return chat_logprobs(self._served, steps) if self._want.logprobs else None

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatCompletionChunk:
        usage: Any = UNSET
        if self._want.continuous_usage:
            usage = self.usage.usage()
        elif self.include_usage:
            usage = None
        return ChatCompletionChunk(**self._ids.fields(), choices=choices, usage=usage)
