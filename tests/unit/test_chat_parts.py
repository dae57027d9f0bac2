"""Tools, constraints, history and receipts of a request, without a model."""

import json
from typing import Any

import pytest
from msgspec import Struct

from fastchat_rs.server.api_error import ApiError
from fastchat_rs.server.app import ROUTES
from fastchat_rs.server.decode import BodyDecoder
from fastchat_rs.server.messages import template_messages
from fastchat_rs.server.openapi import document
from fastchat_rs.server.operations import OPERATIONS
from fastchat_rs.server.protocol import ChatRequest
from fastchat_rs.server.receipt import Notes
from fastchat_rs.server.structured import reworded, structured_output
from fastchat_rs.server.tools import tool_use
from fastchat_rs.template import ChatTemplate

CHAT = BodyDecoder(ChatRequest)
WEATHER = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOLS = [{"type": "function", "function": {**WEATHER, "strict": True}}]


def request(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return CHAT.decode(json.dumps(body).encode(), 128)


def mended(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return template_messages(request(messages=list(messages)).messages or [])


def test_tools_as_templates_print_them() -> None:
    use = tool_use(request(tools=TOOLS), 128, Notes())
    assert use and use.shown == [{"type": "function", "function": WEATHER}]
    assert (use.forced, use.parallel) == (None, True)
    bare = tool_use(request(tools=[{"function": {"name": "f"}}], parallel_tool_calls=False), 128, Notes())
    assert bare and bare.shown[0]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert not bare.parallel


@pytest.mark.parametrize(
    ("choice", "forced"),
    [
        ("auto", None),
        ("required", "required"),
        ({"type": "function", "function": {"name": "get_weather"}}, "get_weather"),
    ],
)
def test_what_tool_choice_forces(choice: Any, forced: str | None) -> None:
    use = tool_use(request(tools=TOOLS, tool_choice=choice), 128, Notes())
    assert use and use.forced == forced


def test_forced_arguments_have_no_other_properties() -> None:
    inner = {"type": "object", "properties": {"b": True}}
    free = {"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}
    parameters = {"type": "object", "properties": {"a": {"type": "array", "items": inner}, "free": free, "ref": True}}
    use = tool_use(request(tools=[{"function": {"name": "f", "parameters": parameters}}]), 128, Notes())
    assert use and use.shown[0]["function"]["parameters"] == parameters
    closed = json.loads(use.closed_json)[0]["function"]["parameters"]
    assert closed["additionalProperties"] is False
    assert closed["properties"]["a"]["items"] == {**inner, "additionalProperties": False}
    assert closed["properties"]["free"] == free


def test_no_tools_means_no_calls_and_a_note() -> None:
    for fields in ({"tools": TOOLS, "tool_choice": "none"}, {"parallel_tool_calls": True}, {"tool_choice": "auto"}):
        notes = Notes()
        assert tool_use(request(**fields), 128, notes) is None
        assert len(notes.applied) == 1
    with pytest.raises(ApiError):
        tool_use(request(tools=TOOLS), 0, Notes())


def test_one_constraint_at_most() -> None:
    assert structured_output(request()) is None
    assert structured_output(request(response_format={"type": "text"}, regex=None)) is None
    wanted = structured_output(request(guided_regex="a"))
    assert wanted and wanted.field == "guided_regex"
    with pytest.raises(ApiError) as caught:
        structured_output(request(grammar="start: x", structured_outputs={"regex": "a"}))
    assert caught.value.param == "structured_outputs" and "grammar" in caught.value.message


def test_a_complaint_about_structured_names_the_field() -> None:
    error = reworded(ApiError(400, "structured: json_schema: not", param="structured"), "guided_json")
    assert (error.param, error.message) == ("guided_json", "guided_json: json_schema: not")
    other = reworded(ApiError(400, "top_p: no", param="top_p"), "guided_json")
    assert (other.param, other.message) == ("top_p", "top_p: no")


def test_arguments_become_objects() -> None:
    for given, kept in (
        ('{"a": 1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ("", {}),
        (None, {}),
        ("{broken", {"input": "{broken"}),
        ("[1]", {"input": [1]}),
    ):
        call = {"function": {"name": "f", "arguments": given}}
        (shaped,) = mended({"role": "assistant", "tool_calls": [call]})
        assert shaped["tool_calls"][0]["function"]["arguments"] == kept


def test_ids_are_found_or_made() -> None:
    _, first, second, stray = mended(
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": n}} for n in ("f", "g")]},
        {"role": "tool", "content": "1"},
        {"role": "function", "name": "g", "content": "2"},
        {"role": "tool", "content": "3"},
    )
    assert (first["tool_call_id"], first["name"], first["role"]) == ("call_0_0", "f", "tool")
    assert (second["tool_call_id"], second["role"]) == ("call_0_1", "tool")
    assert stray["tool_call_id"] == "call_unknown"


def test_a_template_without_tools_is_told_in_words() -> None:
    template = ChatTemplate("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    call = {"id": "a", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    messages = mended(
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "Sunny"},
        {"role": "user", "content": "So?"},
    )
    text = template.render(messages, tools=TOOLS)
    assert text.startswith("[system]") and '"get_weather"' in text
    assert '[assistant]{"name": "get_weather", "arguments": {"city": "Rome"}}' in text
    assert text.endswith("[user]Result of the call: Sunny\nSo?")
    assert template.render([{"role": "user", "content": "Hi"}]) == "[user]Hi"
    shows = ChatTemplate("{% if tools %}{{ tools | length }}{% endif %}{{ messages[0].content }}")
    assert shows.render(messages, tools=TOOLS) == "1Hi"


def test_the_document_has_every_route_and_good_examples() -> None:
    paths = json.loads(document())["paths"]
    assert {path.replace("{id}", "") for path in paths} == set(ROUTES)
    for path, operations in paths.items():
        assert {method.upper() for method in operations} == set(ROUTES[path.replace("{id}", "")])
    for one in OPERATIONS:
        assert bool(one.examples) == (one.body is not None)
        for body in one.examples.values():
            decoder = BodyDecoder[Any](one.body or Struct)
            decoder.decode(json.dumps(body).encode(), 128)
            assert decoder.unknown(json.dumps(body).encode()) == []


def test_the_header_carries_no_odd_names() -> None:
    notes = Notes()
    notes.unknown(["fine", "a\r\nb", "x" * 65, "", "ä"])
    assert [line.field for line in notes.applied] == ["fine"]
