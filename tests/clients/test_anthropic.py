"""The official client of Anthropic, unchanged: messages, stream helper, a loop of tools, token counts, errors."""

from collections.abc import Iterator
from typing import Any

import pytest

from live import Live
from where import need_package

CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TOOL = {"name": "get_weather", "description": "The weather of a city", "input_schema": CITY}
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture
def api(live: Live) -> Iterator[Any]:
    """The client, checking every reply against its own types."""
    anthropic = need_package("anthropic")
    options: dict[str, Any] = {"_strict_response_validation": True, "max_retries": 0, "timeout": 60}
    with anthropic.Anthropic(base_url=live.url, api_key="any", **options) as client:
        yield client


def test_messages_whole_and_streamed(live: Live, api: Any) -> None:
    fields = {
        "model": live.model,
        "max_tokens": 16,
        "messages": ASK,
        "system": "Be brief.",
        "extra_body": {"temperature": 0},
    }
    whole = api.messages.create(**fields)
    assert whole.content[0].text and whole.stop_reason in ("end_turn", "max_tokens")
    assert whole._request_id
    with api.messages.stream(**fields) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        final = stream.get_final_message()
    assert (final.content[0].text, final.stop_reason) == (whole.content[0].text, whole.stop_reason)
    assert final.usage.output_tokens == whole.usage.output_tokens
    count = api.messages.count_tokens(model=live.model, messages=ASK, system="Be brief.")
    assert count.input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens


def test_a_loop_of_tools(live: Live, api: Any) -> None:
    fields = {"model": live.model, "max_tokens": 64, "tools": [TOOL], "extra_body": {"temperature": 0}}
    first = api.messages.create(messages=ASK, tool_choice={"type": "any", "disable_parallel_tool_use": True}, **fields)
    (call,) = first.content
    assert (first.stop_reason, call.name) == ("tool_use", "get_weather") and call.input["city"] in ("Paris", "Rome")
    with api.messages.stream(messages=ASK, tool_choice={"type": "tool", "name": "get_weather"}, **fields) as stream:
        assert stream.get_final_message().content[0].input == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny."}
    history = [*ASK, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    last = api.messages.create(messages=history, tool_choice={"type": "none"}, **fields)
    assert last.content[0].text


def test_errors_are_its_own(live: Live, api: Any) -> None:
    anthropic = need_package("anthropic")
    with pytest.raises(anthropic.NotFoundError, match="not found"):
        api.messages.create(model="nobody", max_tokens=1, messages=ASK)
    with pytest.raises(anthropic.BadRequestError, match="stop_sequences"):
        api.messages.create(model=live.model, max_tokens=1, messages=ASK, stop_sequences=[""])
