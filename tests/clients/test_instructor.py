"""instructor on the official clients: objects by JSON schema and by tool calls."""

from typing import Literal

import pytest
from pydantic import BaseModel

from live import Live
from where import need_package


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Rome"]
    sunny: bool


ASK = [{"role": "user", "content": "It is sunny in Paris."}]


@pytest.mark.parametrize("mode", ["JSON_SCHEMA", "TOOLS", "TOOLS_STRICT"])
def test_an_object_in_every_mode(live: Live, mode: str) -> None:
    instructor, openai = need_package("instructor"), need_package("openai")
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0) as api:
        made = instructor.from_openai(api, mode=getattr(instructor.Mode, mode)).chat.completions.create(
            model=live.model, messages=ASK, response_model=Weather, temperature=0, max_tokens=100, max_retries=0
        )
    assert isinstance(made, Weather)
