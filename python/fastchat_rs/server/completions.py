"""POST /v1/completions: prompts as text or token ids, several at once, echo and the legacy logprobs."""

from dataclasses import dataclass, field
from typing import Any

from msgspec import UNSET, Struct

from fastchat_rs.server.api_error import bad_field
from fastchat_rs.server.bridge import Delta, Generation
from fastchat_rs.server.decode import BodyDecoder
from fastchat_rs.server.handle import Context, Ids, Submission, answer
from fastchat_rs.server.http import Reply, Request
from fastchat_rs.server.logprobs import LegacyLogprobs, joined, prompt_logprobs
from fastchat_rs.server.protocol import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from fastchat_rs.server.receipt import Notes
from fastchat_rs.server.sampling import RouteParams, cache_salt, sampling_params, unsupported
from fastchat_rs.server.state import Limits, Served
from fastchat_rs.server.structured import structured_output
from fastchat_rs.server.usage import UsageCounter

DECODER = BodyDecoder(CompletionRequest)
_DEFAULT_MAX_TOKENS = 16
_MAX_PROMPTS = 256


async def completions(context: Context, request: Request) -> Reply | None:
    """The route."""
    body = await context.decode(request, DECODER)
    name, served = context.state.find(body.model)
    limits = context.state.limits
    _check(body, limits)
    wanted_output = structured_output(body)
    notes = Notes()
    notes.sampling(body)
    if wanted_output is not None:
        notes.constrained(body)
    notes.unknown(request.unknown_fields)
    prompts = _prompts(body)
    max_tokens = _DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    wanted = [k for k in (body.prompt_logprobs, body.logprobs if body.echo else None) if k is not None]
    params = sampling_params(
        body,
        served,
        context.state.limits,
        RouteParams(
            # 0 is "only look at the prompt"; the engine always makes a token, which is then left out.
            max_tokens=max(max_tokens, 1),
            logprobs=body.logprobs,
            prompt_logprobs=max(wanted) if wanted else None,
            structured=wanted_output.output if wanted_output else None,
        ),
    )
    ids = Ids.new("cmpl-", name, served)
    submission = Submission(
        prompts=prompts,
        params=params,
        add_special_tokens=body.add_special_tokens is not False,
        cache_salt=cache_salt(request.tenant, body.cache_salt),
        priority=body.priority or 0,
        stream=bool(body.stream),
        prompt_field="prompt",
        structured_field=wanted_output.field if wanted_output else "response_format",
        ids=ids,
    )
    options = body.stream_options
    want = Want(
        prompts=prompts,
        n=params.n,
        echo=bool(body.echo),
        logprobs=body.logprobs,
        prompt_logprobs=body.prompt_logprobs,
        silent=max_tokens == 0,
        include_usage=bool(options and (options.include_usage or options.continuous_usage_stats)),
        continuous_usage=bool(options and options.continuous_usage_stats),
        receipt=bool(body.fastchat and body.fastchat.applied),
    )

    def shape(generation: Generation, usage: UsageCounter) -> CompletionShape:
        return CompletionShape(ids, served, generation, usage, want, notes)

    return await answer(context, request, served, submission, notes, shape)


def _check(body: CompletionRequest, limits: Limits) -> None:
    if body.suffix:
        unsupported("suffix", "filling in before a suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        unsupported("best_of", "a value other than n")
    for name in ("logprobs", "prompt_logprobs"):
        value = getattr(body, name)
        if value is not None and value > limits.logprobs:
            raise bad_field(name, f"{name}: at most {limits.logprobs}")


def _prompts(body: CompletionRequest) -> list[str | list[int]]:
    prompt = body.prompt
    if prompt is None:
        raise bad_field("prompt", "prompt: is needed", code="missing_required_parameter")
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise bad_field("prompt", "prompt: an empty list")
    ids = [item for item in prompt if isinstance(item, int)]
    if len(ids) == len(prompt):
        if min(ids) < 0:
            raise bad_field("prompt", "prompt: token ids are not negative")
        return [ids]
    texts = [item for item in prompt if not isinstance(item, int)]
    if len(texts) != len(prompt):
        raise bad_field("prompt", "prompt: token ids and texts cannot be mixed")
    if len(texts) > _MAX_PROMPTS:
        raise bad_field("prompt", f"prompt: at most {_MAX_PROMPTS} prompts")
    return texts


@dataclass(frozen=True)
class Want:
    """What the client asked to see."""

    prompts: list[str | list[int]]
    n: int
    echo: bool
    logprobs: int | None
    prompt_logprobs: int | None
    silent: bool
    include_usage: bool
    continuous_usage: bool
    receipt: bool


@dataclass
class _Choice:
    """What one choice has so far."""

    legacy: LegacyLogprobs
    opened: bool = False
    texts: list[str] = field(default_factory=list[str])
    logprobs: list[CompletionLogprobs] = field(default_factory=list[CompletionLogprobs])
    finish_reason: str | None = None


class CompletionShape:
    """Words deltas as text completions (see `stream.Shape`). Choice = prompt * n + index."""

    def __init__(
        self, ids: Ids, served: Served, generation: Generation, usage: UsageCounter, want: Want, notes: Notes
    ) -> None:
        self._ids = ids
        self._served = served
        self._notes = notes
        self._told = False
        self._generation = generation
        self._want = want
        self.usage = usage
        usage.only_prompt = want.silent
        count = len(generation.prompt_token_ids) * want.n
        self._choices = [_Choice(LegacyLogprobs(served, want.logprobs or 0)) for _ in range(count)]

    def opening(self) -> list[Struct]:
        """Nothing goes first on this route."""
        return []

    def chunks(self, prompt: int, delta: Delta) -> list[Struct]:
        """A piece of one choice; the first brings the echo and the prompt's logprobs."""
        first = not self._choice(prompt, delta).opened
        text, logprobs = self._piece(prompt, delta)
        if not text and logprobs is None and delta.finish_reason is None:
            return []
        shaped = CompletionChoice(self._number(prompt, delta), text, logprobs, self._reason(delta))
        if first and self._want.prompt_logprobs is not None:
            shaped.prompt_logprobs = self._prompt_logprobs(prompt)
        reply = self._reply([shaped], self.usage.usage() if self._want.continuous_usage else self._no_usage())
        if not self._told:
            self._told = True
            reply.fastchat = self._notes.body(self._want.receipt)
        return [reply]

    def closing(self) -> list[Struct]:
        """No choices, only usage, when it was asked for."""
        return [self._reply([], self.usage.usage())] if self._want.include_usage else []

    def collect(self, prompt: int, delta: Delta) -> None:
        """For `whole`."""
        choice = self._choice(prompt, delta)
        text, logprobs = self._piece(prompt, delta)
        choice.texts.append(text)
        if logprobs is not None:
            choice.logprobs.append(logprobs)
        choice.finish_reason = self._reason(delta) or choice.finish_reason

    def whole(self) -> Struct:
        """The reply."""
        shaped: list[CompletionChoice] = []
        for number, choice in enumerate(self._choices):
            logprobs = None if self._want.logprobs is None else joined(choice.logprobs)
            one = CompletionChoice(number, "".join(choice.texts), logprobs, choice.finish_reason or "stop")
            if self._want.prompt_logprobs is not None:
                one.prompt_logprobs = self._prompt_logprobs(number // self._want.n)
            shaped.append(one)
        reply = self._reply(shaped, self.usage.usage())
        reply.fastchat = self._notes.body(self._want.receipt)
        return reply

    def _piece(self, prompt: int, delta: Delta) -> tuple[str, CompletionLogprobs | None]:
        choice = self._choice(prompt, delta)
        text = "" if self._want.silent else delta.text
        parts: list[CompletionLogprobs] = []
        if not choice.opened:
            choice.opened = True
            if self._want.echo:
                text = self._echo_text(prompt) + text
                if self._want.logprobs is not None:
                    parts.append(self._echo_logprobs(prompt, choice.legacy))
        if delta.logprobs and not self._want.silent:
            parts.append(choice.legacy.more(delta.logprobs))
        return text, joined(parts) if parts else None

    def _echo_text(self, prompt: int) -> str:
        ids = self._want.prompts[prompt]
        return ids if isinstance(ids, str) else self._served.bridge.engine.decode(ids, skip_special_tokens=True)

    def _echo_logprobs(self, prompt: int, legacy: LegacyLogprobs) -> CompletionLogprobs:
        logprobs = self._generation.prompt_logprobs(prompt)
        return legacy.echo(self._generation.prompt_token_ids[prompt], logprobs.tokens if logprobs else [])

    def _prompt_logprobs(self, prompt: int) -> Any:
        logprobs = self._generation.prompt_logprobs(prompt)
        return UNSET if logprobs is None else prompt_logprobs(self._served, logprobs)

    def _reason(self, delta: Delta) -> str | None:
        return "length" if self._want.silent and delta.finish_reason else delta.finish_reason

    def _number(self, prompt: int, delta: Delta) -> int:
        return prompt * self._want.n + delta.index

    def _choice(self, prompt: int, delta: Delta) -> _Choice:
        return self._choices[self._number(prompt, delta)]

    def _no_usage(self) -> Any:
        return None if self._want.include_usage else UNSET

    def _reply(self, choices: list[CompletionChoice], usage: Any) -> Completion:
        return Completion(**self._ids.fields(), choices=choices, usage=usage)
