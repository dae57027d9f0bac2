"""`LLM` with constraints, tools and answers taken apart, on the demo model."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastchat_rs import LLM, InvalidRequestError, SamplingParams, StructuredOutput

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
ASK = [{"role": "user", "content": "How is the weather in Paris?"}]


@pytest.fixture(scope="module")
def llm(demo_model: Path) -> Iterator[LLM]:
    with LLM(demo_model, max_model_len=1024) as llm:
        yield llm


def test_generate_keeps_to_a_constraint(llm: LLM) -> None:
    wanted = [
        SamplingParams(structured=StructuredOutput.choice(["ja", "nein"]), seed=1),
        SamplingParams(structured=StructuredOutput.regex("[0-9]{4}"), seed=2),
        SamplingParams(structured=StructuredOutput.json_schema(json.dumps(PARAMETERS)), max_tokens=64),
    ]
    yes, year, city = llm.generate(["So?", "Year:", "City:"], wanted, use_tqdm=False)
    assert yes.outputs[0].text in ("ja", "nein")
    assert year.outputs[0].text.isdecimal() and len(year.outputs[0].text) == 4
    assert json.loads(city.outputs[0].text)["city"] in ("Paris", "Rome")
    assert [output.outputs[0].finish_reason for output in (yes, year, city)] == ["stop"] * 3
    assert yes.outputs[0].message is None


def test_chat_calls_a_tool(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=64)
    for choice in ("required", "get_weather"):
        (output,) = llm.chat(ASK, params, tools=TOOLS, tool_choice=choice)
        message = output.outputs[0].message
        assert message and message.content == "" and message.reasoning is None
        assert {call.name for call in message.tool_calls} == {"get_weather"}
        assert json.loads(message.tool_calls[0].arguments)["city"] in ("Paris", "Rome")
    (again,) = asyncio.run(llm.achat(ASK, params, tools=TOOLS, tool_choice="get_weather"))
    assert again.outputs[0].message == message
    with pytest.raises(InvalidRequestError) as caught:
        llm.chat(ASK, params, tools=TOOLS, tool_choice="nobody")
    assert caught.value.param == "tool_choice"


def test_chat_without_tools_is_content(llm: LLM) -> None:
    structured = StructuredOutput.json_schema(json.dumps({"const": {"name": "get_weather", "arguments": {}}}))
    (output,) = llm.chat(ASK, SamplingParams(structured=structured), tools=TOOLS, tool_choice="none")
    message = output.outputs[0].message
    assert message and message.tool_calls == [] and message.content == output.outputs[0].text
