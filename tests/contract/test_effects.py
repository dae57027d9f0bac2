"""What the fields of a chat request do to the answer, beyond being accepted (test_fields.py has them all)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from live import Live, serving, streamed

ROUTE = "/v1/chat/completions"


def reply(live: Live, **fields: Any) -> dict[str, Any]:
    response = live.post(ROUTE, live.chat(**fields))
    assert response.status_code == 200, response.text
    return response.json()


def text(live: Live, **fields: Any) -> str:
    return reply(live, **fields)["choices"][0]["message"]["content"]


@pytest.mark.parametrize("fields", [{"top_k": 1}, {"top_p": 0}, {"min_p": 1}])
def test_what_leaves_one_candidate_is_greedy(live: Live, fields: dict[str, Any]) -> None:
    assert text(live, temperature=1.5, seed=3, **fields) == text(live)


def test_seed_and_temperature(live: Live) -> None:
    drawn = [text(live, temperature=1.5, seed=seed) for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1
    several = reply(live, temperature=1.5, seed=1, n=3)["choices"]
    assert several[0]["message"]["content"] == drawn[0]


LOOP = "Repeat after me: la la la la la la la la la la la la"


@pytest.mark.parametrize(
    "fields",
    [{"frequency_penalty": 2}, {"presence_penalty": 2}, {"repetition_penalty": 5}],
    ids=lambda f: next(iter(f)),
)
def test_penalties_change_what_repeats(live: Live, fields: dict[str, Any]) -> None:
    plain = reply(live, content=LOOP, max_tokens=24, logprobs=True)["choices"][0]["logprobs"]["content"]
    pressed = reply(live, content=LOOP, max_tokens=24, logprobs=True, **fields)["choices"][0]["logprobs"]["content"]
    assert len({step["token"] for step in pressed}) > len({step["token"] for step in plain})


def ids(live: Live, words: str) -> list[int]:
    return live.post("/v1/tokenize", {"model": live.model, "prompt": words, "add_special_tokens": False}).json()[
        "tokens"
    ]


def test_logit_bias_bans_and_forces(live: Live) -> None:
    first = ids(live, text(live))[0]
    assert ids(live, text(live, logit_bias={str(first): -100}))[0] != first
    (forced,) = ids(live, " la")
    assert text(live, logit_bias={str(forced): 100}, ignore_eos=True, max_tokens=4) == " la la la la"


def test_ends(live: Live) -> None:
    whole = reply(live)
    third = ids(live, whole["choices"][0]["message"]["content"])[2]
    stopped = reply(live, stop_token_ids=[third])
    assert (stopped["usage"]["completion_tokens"], stopped["choices"][0]["finish_reason"]) == (3, "stop")
    later = reply(live, stop_token_ids=[third], min_tokens=8)
    assert later["usage"]["completion_tokens"] >= 8
    shown = text(live, content="Say yes.", ignore_eos=True, skip_special_tokens=False, max_tokens=120)
    assert "<|im_end|>" in shown
    assert "<|im_end|>" not in text(live, content="Say yes.", ignore_eos=True, max_tokens=120)


def test_stop_strings_are_cut_or_kept(live: Live) -> None:
    whole = text(live)
    stop = whole[4:7]
    place = whole.index(stop)
    assert text(live, stop=[stop]) == whole[:place]
    assert text(live, stop=stop, include_stop_str_in_output=True) == whole[: place + len(stop)]


def test_usage_in_every_chunk(live: Live) -> None:
    chunks = streamed(live, ROUTE, live.chat(stream_options={"continuous_usage_stats": True}))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == reply(live)["usage"]["completion_tokens"]


def test_salts_keep_caches_apart(live: Live) -> None:
    content = "salted " * 60
    cached = [
        reply(live, content=content, max_tokens=1, cache_salt=salt)["usage"]["prompt_tokens_details"]["cached_tokens"]
        for salt in ("a", "a", "b", "b")
    ]
    assert cached[0] == cached[2] == 0 and cached[1] == cached[3] > 0


def test_the_generation_prompt_is_the_templates(live: Live) -> None:
    def tokens(**fields: Any) -> int:
        return reply(live, max_tokens=1, **fields)["usage"]["prompt_tokens"]

    assert tokens(add_generation_prompt=False) < tokens()
    system, developer = (
        [{"role": role, "content": "x"}, {"role": "user", "content": "y"}] for role in ("system", "developer")
    )
    assert reply(live, messages=system)["choices"] == reply(live, messages=developer)["choices"]


@pytest.fixture(scope="module")
def thinker(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The demo model with a template that reads what requests may set."""
    template = tmp_path_factory.mktemp("template") / "t.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if enable_thinking is defined and not enable_thinking %} a a a{% endif %}"
        "{% if reasoning_effort is defined %} {{ reasoning_effort }} b b b b b{% endif %}{{ extra }}"
    )
    with serving(demo_model, "--max-model-len", "256", "--chat-template", str(template)) as live:
        yield live


def test_variables_reach_the_template(thinker: Live) -> None:
    def grown(**fields: Any) -> int:
        base = reply(thinker, max_tokens=1)["usage"]["prompt_tokens"]
        return reply(thinker, max_tokens=1, **fields)["usage"]["prompt_tokens"] - base

    assert (
        grown(enable_thinking=False)
        == grown(reasoning_effort="none")
        == grown(chat_template_kwargs={"enable_thinking": False})
        == 3
    )
    assert grown(enable_thinking=True) == 0
    assert grown(reasoning_effort="high") == 6
    assert grown(chat_template_kwargs={"extra": " c c"}) == 2
    assert thinker.post(ROUTE, thinker.chat(enable_thinking=False)).headers.get("x-fastchat-applied") is None
