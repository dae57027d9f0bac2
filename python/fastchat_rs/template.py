"""Chat templates, rendered as Hugging Face transformers renders them. Knows messages and Jinja, not HTTP or the engine.

Templates come from model repositories, so they are code of strangers: the sandbox is immutable, has no loader, and the
output's size and the time are bounded. Rendering takes milliseconds of CPU; servers call it off the event loop.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastchat_rs.errors import TemplateError
from fastchat_rs.toolless import introduced

MAX_OUTPUT_CHARS = 16 * 1024 * 1024
DEADLINE_SECONDS = 10.0
# Stands where the last message ends, so that the text behind it can be cut off (continue_final_message).
_END_OF_MESSAGE = "\ue000end-of-final-message\ue000"
# Variables that the renderer itself supplies; a request may not replace them.
_RESERVED = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "continue_final_message"}
)


class _GenerationBlock(Extension):
    """`{% generation %} .. {% endgeneration %}` marks the assistant's part for training; here it is only its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Running(threading.local):
    """The deadline of the rendering on this thread."""

    deadline = float("inf")


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with a clock looked at wherever a template calls or looks something up, and no huge strings."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.running = _Running()

    def _check_clock(self) -> None:
        if time.monotonic() > self.running.deadline:
            raise TemplateError(f"the chat template ran longer than {DEADLINE_SECONDS:g} s")

    def call(self, *args: Any, **kwargs: Any) -> Any:
        self._check_clock()
        return super().call(*args, **kwargs)

    def getattr(self, obj: Any, attribute: str) -> Any:
        self._check_clock()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self._check_clock()
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise TemplateError("the chat template uses the operator **, which is not allowed")
        for count, other in ((left, right), (right, left)):
            if isinstance(count, int) and isinstance(other, Sequence) and count * len(other) > MAX_OUTPUT_CHARS:  # pyright: ignore[reportUnknownArgumentType]
                raise TemplateError("the chat template repeats a sequence too often")
        return super().call_binop(context, operator, left, right)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes HTML and sorts keys; models were trained on plain JSON.
    allowed = {key: options[key] for key in ("separators", "sort_keys") if key in options}
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **allowed)


def _raise_exception(message: str) -> None:
    raise TemplateError(f"the chat template refused the messages: {str(message)[:500]}")


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
    environment.filters.update(tojson=_tojson)  # pyright: ignore[reportUnknownMemberType]
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)  # pyright: ignore[reportUnknownMemberType]
    return environment


class ChatTemplate:
    """One compiled template. `bos_token` and `eos_token` are the texts the template may print."""

    def __init__(self, source: str, bos_token: str | None = None, eos_token: str | None = None) -> None:
        self.source = source
        """As the model has it; it also shows how the model writes calls and reasoning."""
        self._tokens = {"bos_token": bos_token or "", "eos_token": eos_token or ""}
        self._environment = environment = _environment()
        try:
            self._template = environment.from_string(source)
            free = meta.find_undeclared_variables(environment.parse(source))
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateError(f"the model's chat template is not valid: {error}") from error
        known: set[str] = set(environment.globals)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        self.variables: frozenset[str] = frozenset(free) - _RESERVED - known
        """Names a request may set through `chat_template_kwargs`: the template's free variables."""
        self._reads_tools = "tools" in free

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt as text. With `continue_final_message` it ends where the last message ends."""
        if not self._reads_tools:
            try:
                messages, tools = introduced(messages, tools), None
            except (KeyError, TypeError, IndexError) as error:
                raise TemplateError(f"messages or tools are not in OpenAI's shape: {error}") from error
        messages = [_with_reasoning(message) for message in messages]
        shown = _mark_end(messages) if continue_final_message else messages
        values: dict[str, Any] = {
            **(variables or {}),
            **self._tokens,
            "messages": shown,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
        }
        text = self._run(values)
        return _cut_at_end(text) if continue_final_message else text

    def _run(self, values: Mapping[str, Any]) -> str:
        running = self._environment.running
        running.deadline = time.monotonic() + DEADLINE_SECONDS
        try:
            return "".join(_bounded(self._template.generate(**values), running.deadline))
        except TemplateError:
            raise
        except Exception as error:
            # A stranger's code can raise whatever Python's operators do.
            raise TemplateError(f"the chat template failed on these messages: {str(error)[:500]}") from error
        finally:
            running.deadline = float("inf")


def _bounded(pieces: Iterator[str], deadline: float) -> Iterator[str]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_OUTPUT_CHARS:
            raise TemplateError(f"the chat template made more than {MAX_OUTPUT_CHARS} characters")
        if time.monotonic() > deadline:
            raise TemplateError(f"the chat template ran longer than {DEADLINE_SECONDS:g} s")
        yield piece


def _with_reasoning(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Reasoning under both names that templates read, as transformers has it; clients send it under any of three."""
    named = (message.get(name) for name in ("reasoning_content", "thinking", "reasoning"))
    reasoning = next((text for text in named if text is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _mark_end(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    last = dict(messages[-1])
    content = last.get("content")
    if not isinstance(content, str):
        raise TemplateError("continue_final_message needs a last message whose content is text")
    # The blank shows whether the template strips what it prints; transformers then strips the message too.
    last["content"] = content + _END_OF_MESSAGE + " "
    return [*messages[:-1], last]


def _cut_at_end(text: str) -> str:
    head, found, rest = text.rpartition(_END_OF_MESSAGE)
    if not found:
        raise TemplateError("continue_final_message: the chat template does not print the last message")
    return head if rest.startswith(" ") else head.rstrip()
