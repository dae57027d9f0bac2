"""Whatever a client sends, it gets an answer or an error that keeps the rules; never a 5xx."""

import random
from typing import Any

import pytest

from fastchat_rs.server.protocol import ChatRequest, CompletionRequest
from live import Live

NUMBERS: list[Any] = [0, 1, -1, 3.5, 1e308, -(2**63), 2**63, 2**80]
TEXTS: list[Any] = ["", "x", "\u0000", "\U0001f642", "a" * 5000]
NESTED: list[Any] = [[], [1], ["x"], [[]], [None], [{}], {}, {"type": "text"}, {"x": 1}, {"1": 1}, {"1": "x"}]
ODD = [None, True, False, *NUMBERS, *TEXTS, *NESTED, [{"role": "user", "content": "x"}]]


@pytest.mark.parametrize(
    ("path", "kind", "good"),
    [
        ("/v1/chat/completions", ChatRequest, {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/v1/completions", CompletionRequest, {"prompt": "Hi"}),
    ],
)
def test_every_field_with_odd_values(live: Live, path: str, kind: Any, good: dict[str, Any]) -> None:
    rng = random.Random(11)
    fields = [name for name in kind.__struct_fields__ if name not in ("stream", "max_tokens", "max_completion_tokens")]
    base = {"model": live.model, "max_tokens": 1, "max_completion_tokens": 1, **good}
    cases = [{name: value} for name in fields for value in rng.sample(ODD, 8)]
    cases += [{name: rng.choice(ODD) for name in rng.sample(fields, 3)} for _ in range(100)]
    with live.client() as client:
        for fields_out in cases:
            response = client.post(path, json={**base, **fields_out})
            assert response.status_code in (200, 400, 404), (fields_out, response.text)
            assert len(response.content) < 32_000
            if response.status_code != 200:
                error = response.json()["error"]
                assert set(error) == {"message", "type", "param", "code"}
                assert error["param"] is not None, (fields_out, error)
