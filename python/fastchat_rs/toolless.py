"""Conversations with tools for chat templates that know none. Knows messages, not Jinja."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

# The answer's form is the one that the engine's parser falls back to.
_INTRODUCTION = """You may call functions to help with the request. The functions, one JSON object per line:
{tools}
To call a function, answer with nothing but a JSON object: {{"name": <function>, "arguments": <object>}}"""


def introduced(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
) -> list[Mapping[str, Any]]:
    """The tools are named in the system message, calls and results told as text; else the conversation as it is."""
    if not tools and not any(message.get("role") == "tool" or message.get("tool_calls") for message in messages):
        return list(messages)
    told: list[Mapping[str, Any]] = []
    after_result = False
    for message in messages:
        plain = _plain(message)
        # Many templates demand that roles take turns.
        if after_result and plain["role"] == "user":
            plain = {**plain, "content": f"{told.pop()['content']}\n{plain['content']}"}
        after_result = message["role"] == "tool"
        told.append(plain)
    if not tools:
        return told
    text = _INTRODUCTION.format(tools="\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools))
    if told[0]["role"] == "system":
        return [{**told[0], "content": f"{told[0]['content']}\n\n{text}"}, *told[1:]]
    return [{"role": "system", "content": text}, *told]


def _plain(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"Result of the call: {message['content']}"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    lines = [json.dumps(call["function"], ensure_ascii=False) for call in calls]
    content = "\n".join([message["content"], *lines] if message["content"] else lines)
    return {"role": "assistant", "content": content}
