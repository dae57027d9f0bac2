"""litellm, by its OpenAI, Anthropic and Ollama providers."""

import pytest

from live import Live
from where import need_package

ASK = [{"role": "user", "content": "Say hello."}]


@pytest.mark.parametrize(("provider", "path"), [("openai", "/v1"), ("anthropic", ""), ("ollama_chat", "")])
def test_every_provider_says_the_same(live: Live, provider: str, path: str) -> None:
    litellm = need_package("litellm")
    fields = {
        "model": f"{provider}/{live.model}",
        "api_base": f"{live.url}{path}",
        "api_key": "any",
        "messages": ASK,
        "temperature": 0,
        "max_tokens": 12,
        "num_retries": 0,
    }
    expected = live.post("/v1/chat/completions", live.chat(max_tokens=12)).json()["choices"][0]["message"]["content"]
    assert litellm.completion(**fields).choices[0].message.content == expected
    chunks = litellm.completion(**fields, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
