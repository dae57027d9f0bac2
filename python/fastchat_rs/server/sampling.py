"""Request fields -> SamplingParams: the shared half of chat and completions. Ranges that depend on limits are here."""

from dataclasses import dataclass
from typing import Any

from fastchat_rs.server.api_error import bad_field
from fastchat_rs.server.bridge import EngineError, InvalidRequestError, SamplingParams, StructuredOutput, ThinkingBudget
from fastchat_rs.server.protocol import SamplingFields
from fastchat_rs.server.state import Limits, Served

# More than any context.
_MOST_TOKENS = 2**31 - 1
# Sampling fields whose default may come from the model's generation_config.json.
_FROM_MODEL = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def unsupported(field: str, what: str) -> None:
    """Raises the 400 of a field that this server does not serve."""
    raise bad_field(field, f"{field}: {what} is not supported", code="unsupported")


@dataclass(frozen=True)
class RouteParams:
    """What the routes spell differently, or work out first."""

    max_tokens: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured: StructuredOutput | None = None
    thinking: ThinkingBudget | None = None
    keep_special_tokens: bool = False
    """The route reads markers that are special tokens."""


def sampling_params(request: SamplingFields, served: Served, limits: Limits, route: RouteParams) -> SamplingParams:
    """Checks what protocol.py could not and builds the engine's parameters."""
    if request.stream_options is not None and not request.stream:
        raise bad_field("stream_options", "stream_options is only allowed when stream is true")
    n = request.n or 1
    if n > limits.n:
        raise bad_field("n", f"n: {n} is more than the limit of {limits.n}")
    values: dict[str, Any] = {
        "n": n,
        "max_tokens": None if route.max_tokens is None else min(route.max_tokens, _MOST_TOKENS),
        "logprobs": route.logprobs,
        "prompt_logprobs": route.prompt_logprobs,
        "stop": _stop(request.stop, limits.stop),
        "logit_bias": _logit_bias(request.logit_bias, served),
        "seed": request.seed,
        "structured": route.structured,
        "thinking": route.thinking,
    }
    for field in _FROM_MODEL:
        value = getattr(request, field)
        values[field] = served.defaults.get(field) if value is None else value
    if values["top_k"] is not None:
        values["top_k"] = int(values["top_k"])
    if values["top_p"] == 0:
        # OpenAI allows 0, which leaves the most likely token.
        values["top_p"] = 1e-6
    for field in (
        "min_tokens",
        "stop_token_ids",
        "ignore_eos",
        "include_stop_str_in_output",
        "skip_special_tokens",
        "frequency_penalty",
        "presence_penalty",
    ):
        values[field] = getattr(request, field)
    if route.keep_special_tokens:
        values["skip_special_tokens"] = False
    try:
        return SamplingParams(**{name: value for name, value in values.items() if value is not None})
    except InvalidRequestError as error:
        raise bad_field(error.param, str(error)) from error
    except EngineError as error:
        raise bad_field(None, str(error)) from error


# Every property is a keyword of the constructor.
_FIELDS = [name for name in dir(SamplingParams) if not name.startswith("_") and name != "max_tokens"]


def with_max_tokens(params: SamplingParams, max_tokens: int) -> SamplingParams:
    """The same parameters with another length."""
    values: dict[str, Any] = {name: getattr(params, name) for name in _FIELDS}
    values["min_tokens"] = min(params.min_tokens, max_tokens)
    return SamplingParams(**values, max_tokens=max_tokens)


def deterministic(params: SamplingParams) -> bool:
    """Whether the same request always has the same answer."""
    return params.temperature == 0 or params.seed is not None


def cache_salt(tenant: str | None, salt: str | None) -> str | None:
    """Callers with different keys never share cached prompts, whatever salt they send."""
    parts = [part for part in (tenant, salt) if part]
    return "/".join(parts) or None


def _stop(stop: str | list[str] | None, limit: int) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > limit:
        raise bad_field("stop", f"stop: {len(stops)} strings are more than the limit of {limit}")
    if "" in stops:
        raise bad_field("stop", "stop: an empty string would stop everything")
    return stops


def _logit_bias(bias: dict[str, float] | None, served: Served) -> dict[int, float] | None:
    if bias is None:
        return None
    checked: dict[int, float] = {}
    for text, value in bias.items():
        if not (text.isascii() and text.isdecimal()) or int(text[:12]) >= served.info.vocab_size:
            raise bad_field("logit_bias", f"logit_bias: keys are token ids below {served.info.vocab_size}")
        checked[int(text)] = value
    return checked
