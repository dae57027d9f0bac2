"""Conversations that chat templates are compared on, and the variants each is rendered in. Data only."""

from typing import Any

Message = dict[str, Any]

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place & a day",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name, as in Zürich"},
                "days": {"type": "integer", "minimum": 1, "default": 3},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    },
}
SEARCH: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Finds documents.",
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "string", "description": "Words"},
                "limits": {"type": "array", "items": {"type": "number"}, "description": "From, to"},
            },
            "required": [],
        },
    },
}
TOOLS: list[dict[str, Any]] = [WEATHER, SEARCH]
ODD_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "odd",
            "description": "",
            "parameters": {
                "type": "object",
                "properties": {
                    "either": {"type": ["string", "null"]},
                    "nested": {"type": "object", "properties": {"key": {"type": "array", "items": {}}}},
                    "any": {"description": "Of no type", "anyOf": [{"type": "string"}, {"type": "integer"}]},
                },
            },
            "strict": True,
        },
    }
]

SYSTEM: Message = {"role": "system", "content": "You are terse. Answer in <b>English</b>.\n"}
USER: Message = {"role": "user", "content": '  Wie heißt die Hauptstadt von "Frankreich"? 🇫🇷\n\nAntworte kurz.  '}
ANSWER: Message = {"role": "assistant", "content": "Paris."}
MORE: Message = {"role": "user", "content": "And of Japan?"}


def _call(name: str, arguments: dict[str, Any], id: str = "call12345") -> Message:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _asked(*calls: Message, content: str | None = "") -> Message:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def _result(text: str, name: str = "get_weather", id: str = "call12345") -> Message:
    return {"role": "tool", "name": name, "tool_call_id": id, "content": text}


WEATHER_QUESTION: Message = {"role": "user", "content": "Weather in Zürich & Paris?"}
ONE_CALL = _asked(_call("get_weather", {"city": "Zürich", "days": 2}))
TWO_CALLS = _asked(
    _call("get_weather", {"city": "Zürich", "unit": "celsius"}, "abcdefgh1"),
    _call("search", {"query": None, "filters": [{"key": "a"}, {}], "deep": {"x": [1, 2.5, True]}}, "abcdefgh2"),
    content="Let me look.",
)
THOUGHT: Message = {"role": "assistant", "content": "Tokyo.", "reasoning_content": "Japan's capital is Tokyo."}
INLINE_THOUGHT: Message = {"role": "assistant", "content": "<think>\nJapan, so Tokyo.\n</think>\n\nTokyo."}
PARTS: Message = {
    "role": "user",
    "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": " this? [image: a cat]"}],
}

CONVERSATIONS: dict[str, list[Message]] = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ANSWER, MORE],
    "system turns": [SYSTEM, USER, ANSWER, MORE],
    "answered": [SYSTEM, USER, ANSWER],
    "long": [SYSTEM, *[USER, ANSWER, MORE, THOUGHT] * 3, MORE],
    "empty": [{"role": "system", "content": ""}, {"role": "user", "content": ""}],
    "two users": [USER, MORE],
    "assistant first": [ANSWER, USER],
    "thought": [USER, ANSWER, MORE, THOUGHT, USER],
    "inline thought": [MORE, INLINE_THOUGHT, USER],
    "parts": [SYSTEM, PARTS],
    "parts turns": [PARTS, ANSWER, MORE],
    "developer": [{"role": "developer", "content": "Be kind."}, USER],
}
"""Rendered without tools."""

TOOL_CONVERSATIONS: dict[str, list[Message]] = {
    "tools offered": [USER],
    "tools offered, system": [SYSTEM, WEATHER_QUESTION],
    "call": [WEATHER_QUESTION, ONE_CALL],
    "result": [WEATHER_QUESTION, ONE_CALL, _result('{"temperature": 21, "sky": "klar"}')],
    "result, system": [SYSTEM, WEATHER_QUESTION, ONE_CALL, _result("21 °C")],
    "two results": [
        WEATHER_QUESTION,
        TWO_CALLS,
        _result("21", id="abcdefgh1"),
        _result("nothing found", "search", "abcdefgh2"),
    ],
    "after the result": [SYSTEM, WEATHER_QUESTION, ONE_CALL, _result("21 °C"), ANSWER, MORE],
    "thought before the call": [
        WEATHER_QUESTION,
        {**ONE_CALL, "reasoning_content": "I need the weather."},
        _result("21 °C"),
    ],
    "call without content": [
        WEATHER_QUESTION,
        _asked(_call("get_weather", {"city": "Paris"}), content=None),
        _result("cold"),
    ],
}
"""Rendered with `TOOLS`."""

VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "no prompt": {"add_generation_prompt": False},
    "thinking": {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"},
    "no thinking": {"enable_thinking": False, "thinking": False, "reasoning_effort": "low"},
}
"""Options of a rendering; all but `add_generation_prompt` are variables of the template."""

BOS, EOS = "<s>", "</s>"
"""What the special tokens print."""
EOS_AND_BOS = {"bos_token": BOS, "eos_token": EOS}
NOW = (2026, 3, 14, 15, 9, 26)
"""The time that templates are told."""


def cases() -> list[tuple[str, list[Message], list[Message] | None, dict[str, Any]]]:
    """(name, messages, tools, options) of every rendering."""
    found: list[tuple[str, list[Message], list[Message] | None, dict[str, Any]]] = []
    for variant, options in VARIANTS.items():
        found += [(f"{name}; {variant}", messages, None, options) for name, messages in CONVERSATIONS.items()]
        found += [(f"{name}; {variant}", messages, TOOLS, options) for name, messages in TOOL_CONVERSATIONS.items()]
        found.append((f"odd tools; {variant}", [SYSTEM, USER], ODD_TOOLS, options))
    return found
