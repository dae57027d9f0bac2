"""langchain-openai: chat, stream, structured output, a bound tool, embeddings."""

from typing import Literal

from pydantic import BaseModel

from live import Live
from where import need_package


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Rome"]
    sunny: bool


def model(live: Live, **options):
    chat = need_package("langchain_openai").ChatOpenAI
    fields = {"temperature": 0, "max_tokens": 64, "max_retries": 0, **options}
    return chat(model=live.model, base_url=f"{live.url}/v1", api_key="any", **fields)


def test_chat_whole_and_streamed(live: Live) -> None:
    whole = model(live, max_tokens=12).invoke("Say hello.")
    assert whole.content and whole.usage_metadata["output_tokens"] <= 12
    pieces = model(live, max_tokens=12).stream("Say hello.")
    assert "".join(piece.content for piece in pieces) == whole.content


def test_objects_and_calls(live: Live) -> None:
    made = model(live).with_structured_output(Weather, method="json_schema").invoke("It is sunny in Paris.")
    assert isinstance(made, Weather)
    called = model(live).bind_tools([Weather], tool_choice="any").invoke("It is sunny in Paris.")
    assert called.tool_calls[0]["name"] == "Weather"
    responses = model(live, use_responses_api=True, max_tokens=24).invoke("Say hello.")
    assert responses.text


def test_embeddings(live: Live, embedder: str) -> None:
    api = need_package("langchain_openai").OpenAIEmbeddings(
        model=embedder, base_url=f"{live.url}/v1", api_key="any", check_embedding_ctx_length=False
    )
    assert len(api.embed_query("A cat sleeps.")) == 384
