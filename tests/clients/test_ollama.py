"""The official client of Ollama, unchanged."""

from pydantic import BaseModel

from live import Live
from where import need_package

ASK = [{"role": "user", "content": "Say hello."}]
OPTIONS = {"temperature": 0, "num_predict": 12}


class Person(BaseModel):
    """What the model is asked for."""

    age: int


def client(live: Live):
    return need_package("ollama").Client(host=live.url)


def test_chat_and_generate(live: Live) -> None:
    api = client(live)
    whole = api.chat(live.model, ASK, options=OPTIONS)
    assert whole.message.content and whole.done and whole.eval_count <= 12
    pieces = list(api.chat(live.model, ASK, options=OPTIONS, stream=True))
    assert "".join(piece.message.content for piece in pieces) == whole.message.content
    assert api.generate(live.model, "Say hello.", options=OPTIONS).response == whole.message.content
    limits = {"temperature": 0, "num_predict": 30}
    made = api.chat(live.model, ASK, format=Person.model_json_schema(), options=limits)
    assert isinstance(Person.model_validate_json(made.message.content).age, int)


def test_models_and_errors(live: Live) -> None:
    ollama = need_package("ollama")
    api = client(live)
    assert live.model in {model.model for model in api.list().models}
    assert "completion" in api.show(live.model).capabilities
    assert api.ps().models
    try:
        api.chat("nobody", ASK)
    except ollama.ResponseError as error:
        assert error.status_code == 404 and "not found" in error.error
    else:
        raise AssertionError("an unknown model has to be an error")


def test_embed(live: Live, embedder: str) -> None:
    reply = client(live).embed(embedder, ["A cat sleeps.", "word " * 400])
    assert [len(vector) for vector in reply.embeddings] == [384, 384]
    assert len(client(live).embeddings(embedder, "A cat sleeps.").embedding) == 384
