"""The conversation of `fastchat-rs chat`: reads lines, streams answers. Knows no settings and no HTTP."""

from collections.abc import Callable

from rich.console import Console

from fastchat_rs.llm import LLM, SamplingParams

_HELP = "/reset forgets the conversation, /system TEXT sets the system message, /exit leaves; Ctrl-C stops an answer."


def converse(
    llm: LLM,
    params: SamplingParams,
    system: str | None,
    console: Console,
    read: Callable[[str], str] = input,
) -> None:
    """Until the end of input or /exit."""
    console.print(f"[bold]{llm.model}[/bold]. {_HELP}")
    messages = _begin(system)
    while True:
        try:
            line = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        command, _, rest = line.partition(" ")
        if command == "/exit":
            return
        if command == "/help":
            console.print(_HELP)
        elif command == "/reset":
            messages = _begin(system)
        elif command == "/system":
            system = rest or None
            messages = _begin(system)
        elif line:
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": _answer(llm, messages, params, console)})


def _begin(system: str | None) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}] if system else []


def _answer(llm: LLM, messages: list[dict[str, str]], params: SamplingParams, console: Console) -> str:
    parts: list[str] = []
    try:
        for chunk in llm.chat_stream(messages, params):
            parts.append(chunk.text)
            console.print(chunk.text, end="", markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print(" [stopped]", end="", markup=False)
    console.print()
    return "".join(parts)
