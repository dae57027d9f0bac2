"""pydantic-ai on chat completions and on responses: an agent whose answer is an object, by a forced call."""

from typing import Literal

import pytest
from pydantic import BaseModel

from live import Live
from where import need_package


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Rome"]
    sunny: bool


@pytest.mark.parametrize("kind", ["OpenAIChatModel", "OpenAIResponsesModel"])
def test_an_agent_answers_with_an_object(live: Live, kind: str) -> None:
    pydantic_ai = need_package("pydantic_ai")
    models = need_package("pydantic_ai.models.openai")
    provider = need_package("pydantic_ai.providers.openai").OpenAIProvider(base_url=f"{live.url}/v1", api_key="any")
    model = getattr(models, kind)(live.model, provider=provider)
    agent = pydantic_ai.Agent(model, output_type=Weather, retries=0)
    result = agent.run_sync("It is sunny in Paris.", model_settings={"temperature": 0, "max_tokens": 100})
    assert isinstance(result.output, Weather)
