"""The official client of OpenAI, unchanged: chat, stream helper, parse, a loop of tools, embeddings, responses."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from live import Live
from where import need_package


class Weather(BaseModel):
    """What the model is asked for."""

    city: Literal["Paris", "Rome"]
    sunny: bool


CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture
def api(live: Live) -> Iterator[Any]:
    """The client as it comes."""
    openai = need_package("openai")
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def strict(live: Live) -> Iterator[Any]:
    """The client, checking every reply against its own types."""
    openai = need_package("openai")
    options: dict[str, Any] = {"_strict_response_validation": True, "max_retries": 0, "timeout": 60}
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", **options) as client:
        yield client


def test_chat_whole_and_streamed(live: Live, strict: Any) -> None:
    api = strict
    whole = api.chat.completions.create(model=live.model, messages=ASK, temperature=0, max_tokens=16)
    text = whole.choices[0].message.content
    chunks = api.chat.completions.create(model=live.model, messages=ASK, temperature=0, max_tokens=16, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text != ""
    # The helper takes an answer that was cut off for an error.
    with api.chat.completions.stream(model=live.model, messages=ASK, temperature=0, stop=[" "]) as stream:
        said = "".join(event.delta for event in stream if event.type == "content.delta")
        assert said == stream.get_final_completion().choices[0].message.content == text.partition(" ")[0]
    assert live.model in {model.id for model in api.models.list()}


def test_parse_gives_objects(live: Live, api: Any) -> None:
    reply = api.chat.completions.parse(
        model=live.model, messages=ASK, response_format=Weather, temperature=0, max_tokens=100
    )
    assert isinstance(reply.choices[0].message.parsed, Weather)


def test_a_loop_of_tools(live: Live, api: Any) -> None:
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": CITY, "strict": True}}]
    fields = {"model": live.model, "tools": tools, "temperature": 0, "max_tokens": 64}
    first = api.chat.completions.create(messages=ASK, tool_choice="required", parallel_tool_calls=False, **fields)
    (call,) = first.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    history = [*ASK, first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}]
    last = api.chat.completions.create(messages=history, tool_choice="none", **fields)
    assert last.choices[0].message.content and not last.choices[0].message.tool_calls


def test_embeddings(api: Any, embedder: str) -> None:
    reply = api.embeddings.create(model=embedder, input=["A cat sleeps.", "A cat is sleeping."])
    first, second = (item.embedding for item in reply.data)
    assert len(first) == 384 and sum(a * b for a, b in zip(first, second, strict=True)) > 0.9


def test_responses(live: Live, strict: Any) -> None:
    api = strict
    fields = {"model": live.model, "temperature": 0, "max_output_tokens": 24}
    whole = api.responses.create(input="Say hello.", **fields)
    assert whole.output_text and whole.usage.output_tokens <= 24
    with api.responses.stream(input="Say hello.", **fields) as stream:
        said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert said == final.output_text == whole.output_text
    assert api.responses.retrieve(whole.id).output_text == whole.output_text
    later = api.responses.create(input="Again.", previous_response_id=whole.id, **fields)
    assert later.usage.input_tokens > whole.usage.input_tokens
    api.responses.delete(whole.id)
    begun = api.responses.create(input="Count.", background=True, **{**fields, "max_output_tokens": 1500})
    assert begun.status == "in_progress" and api.responses.cancel(begun.id).status == "cancelled"


def test_responses_parse_and_call(live: Live, api: Any) -> None:
    fields = {"model": live.model, "input": "What is the weather in Paris?", "temperature": 0}
    parsed = api.responses.parse(text_format=Weather, max_output_tokens=100, **fields)
    assert isinstance(parsed.output_parsed, Weather)
    tools = [{"type": "function", "name": "get_weather", "parameters": CITY, "strict": True}]
    called = api.responses.create(tools=tools, tool_choice="required", max_output_tokens=64, **fields)
    assert json.loads(called.output[0].arguments)["city"] in ("Paris", "Rome")
