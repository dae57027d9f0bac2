"""POST /v1/completions, /v1/tokenize, /v1/detokenize."""

from functools import partial
from typing import Any

from openai.types import Completion

from live import Live, streamed

ROUTE = "/v1/completions"
PROMPT = "The capital of France is"


def complete(live: Live, **fields: Any) -> dict[str, Any]:
    """A greedy completion."""
    response = live.post(ROUTE, {"model": live.model, "prompt": PROMPT, "temperature": 0, "max_tokens": 8, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def ids(live: Live, text: str) -> list[int]:
    """The tokens of a prompt."""
    return live.post("/v1/tokenize", {"model": live.model, "prompt": text}).json()["tokens"]


def test_the_official_client(live: Live) -> None:
    client = live.openai()
    create = partial(client.completions.create, model=live.model, prompt=PROMPT, temperature=0, max_tokens=12)
    whole: Completion = create()
    assert whole.object == "text_completion"
    assert whole.id.startswith("cmpl-")
    assert "Paris" in whole.choices[0].text
    # Its types know no completion chunk: they want a finish reason in each, where OpenAI's server too sends null.
    lenient = live.openai(strict=False).completions.create
    chunks: Any = list(partial(lenient, **create.keywords)(stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_sixteen_tokens_by_default(live: Live) -> None:
    reply = complete(live, max_tokens=None, ignore_eos=True)
    assert reply["usage"]["completion_tokens"] == 16
    assert reply["choices"][0]["finish_reason"] == "length"


def test_prompts_as_text_ids_and_lists(live: Live) -> None:
    text = complete(live)["choices"][0]["text"]
    tokens = ids(live, PROMPT)
    assert complete(live, prompt=tokens)["choices"][0]["text"] == text
    many = complete(live, prompt=[PROMPT, "One, two, three,"], n=2)
    assert [choice["index"] for choice in many["choices"]] == [0, 1, 2, 3]
    assert many["choices"][0]["text"] == many["choices"][1]["text"] == text
    assert many["choices"][2]["text"] != text
    assert complete(live, prompt=[tokens, tokens])["choices"][1]["text"] == text
    for bad in ([], [-1], [10**9], [tokens, -1], None):
        error = live.post(ROUTE, {"model": live.model, "prompt": bad}).json()["error"]
        assert error["param"] == "prompt", bad


def test_echo_and_the_legacy_logprobs(live: Live) -> None:
    reply = complete(live, echo=True, logprobs=2)
    choice = reply["choices"][0]
    logprobs = choice["logprobs"]
    assert choice["text"].startswith(PROMPT)
    usage = reply["usage"]
    lengths = {len(logprobs[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
    assert lengths == {usage["prompt_tokens"] + usage["completion_tokens"]}
    assert logprobs["token_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    assert all(2 <= len(top) <= 3 for top in logprobs["top_logprobs"][1:])
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    split = complete(live, prompt="日本語 🙂 ok", echo=True, logprobs=0, max_tokens=4)["choices"][0]
    places = list(zip(split["logprobs"]["text_offset"], split["logprobs"]["tokens"], strict=True))
    assert any("\ufffd" in token for _, token in places)
    assert all(split["text"][place:].startswith(token) for place, token in places if "\ufffd" not in token), split
    only = complete(live, echo=True, logprobs=0, max_tokens=0)
    assert only["choices"][0]["text"] == PROMPT
    assert only["usage"]["completion_tokens"] == 0


def test_prompt_logprobs(live: Live) -> None:
    reply = complete(live, prompt_logprobs=2)
    shaped = reply["choices"][0]["prompt_logprobs"]
    assert len(shaped) == reply["usage"]["prompt_tokens"]
    assert shaped[0] is None
    assert all(2 <= len(row) <= 3 for row in shaped[1:])


def test_stream_of_several_prompts(live: Live) -> None:
    body: dict[str, Any] = {"model": live.model, "prompt": [PROMPT, "One, two,"], "temperature": 0, "max_tokens": 6}
    whole = live.post(ROUTE, body).json()
    chunks = streamed(live, ROUTE, {**body, "stream_options": {"include_usage": True}})
    for index in range(2):
        pieces = [c["text"] for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert "".join(pieces) == whole["choices"][index]["text"]
    assert chunks[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


def test_best_of_and_suffix_are_refused_by_name(live: Live) -> None:
    for field, value in (
        ("suffix", "x"),
        ("best_of", 3),
        ("logprobs", 21),
    ):
        response = live.post(ROUTE, {"model": live.model, "prompt": PROMPT, field: value})
        assert (response.status_code, response.json()["error"]["param"]) == (400, field)


def test_vllms_names_at_the_root(live: Live) -> None:
    asked = {"model": live.model, "prompt": "Hello world"}
    with live.client() as client:
        reply = client.post("/tokenize", json=asked).json()
        assert reply == client.post("/v1/tokenize", json=asked).json()
        back = client.post("/detokenize", json={"model": live.model, "tokens": reply["tokens"]}).json()
        assert back == {"prompt": "Hello world"}
        assert client.get("/ping").json() == client.post("/ping").json() == {"status": "ready"}
        assert client.get("/version").json().keys() == {"version"}


def test_tokenize_and_back(live: Live) -> None:
    text = "Größe: 数学 🙂\n\tend"
    body = {"model": live.model, "prompt": text, "return_token_strs": True, "add_special_tokens": False}
    response = live.post("/v1/tokenize", {**body, "special": 1})
    assert response.headers["x-fastchat-applied"] == "special=ignored"
    reply = response.json()
    assert reply["count"] == len(reply["tokens"]) == len(reply["token_strs"])
    assert reply["max_model_len"] == 2048
    back = live.post("/v1/detokenize", {"model": live.model, "tokens": reply["tokens"]}).json()
    assert back == {"prompt": text}
    user = {"role": "user", "content": "hi"}
    tool = {"type": "function", "function": {"name": "f", "description": "Does much."}}
    begun = {"messages": [user, {"role": "assistant", "content": "Hel"}], "continue_final_message": True}
    for fields in ({"messages": [user]}, {"messages": [user], "tools": [tool]}, begun):
        counted = live.post("/v1/tokenize", {"model": live.model, **fields}).json()
        usage = live.post("/v1/chat/completions", {"model": live.model, **fields, "max_tokens": 1}).json()["usage"]
        assert counted["count"] == usage["prompt_tokens"]
    for field, body in (
        ("prompt", {}),
        ("tools", {"prompt": "x", "tools": [tool]}),
        ("tools", {"messages": [user], "tools": [tool, tool]}),
        ("continue_final_message", {"messages": [user], "continue_final_message": True}),
        ("tokens", {"tokens": [10**9]}),
    ):
        path = "/v1/detokenize" if "tokens" in body else "/v1/tokenize"
        error = live.post(path, {"model": live.model, **body}).json()["error"]
        assert error["param"] == field
