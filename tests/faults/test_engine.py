"""An engine that breaks: who is touched, and what /health says. The kernels that break are in no wheel: they are an
example of crates/fastchat-py, put beside the package's own files."""

import os
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

import fastchat_rs
from live import Live, serving
from tiny_vision import vision_model
from where import REPOSITORY, need

CHAT = "/v1/chat/completions"
LIBRARY = REPOSITORY / "target/release/examples/libfaulty.so"
# The byte of "~" in the tiny tokenizer.
POISON = 97


@pytest.fixture
def order(tmp_path: Path) -> Path:
    """The file that says what breaks."""
    return tmp_path / "order"


@pytest.fixture
def faulty(tmp_path: Path, order: Path) -> Generator[Live, None, None]:
    """A server whose kernels obey `order`."""
    package = tmp_path / "package/fastchat_rs"
    package.mkdir(parents=True)
    for path in Path(fastchat_rs.__file__).parent.iterdir():
        if not path.name.startswith("_engine"):
            (package / path.name).symlink_to(path)
    (package / "_engine.abi3.so").symlink_to(need(LIBRARY, always_in_ci=True))
    paths = f"{package.parent}:{os.environ.get('PYTHONPATH', '')}"
    environment = {"PYTHONPATH": paths, "FASTCHAT_FAULTY": str(order), "FASTCHAT_POISON": str(POISON)}
    model = vision_model(tmp_path / "tiny")
    with serving(model, "--max-model-len", "512", "--kv-memory", "8MiB", environment=environment) as live:
        yield live


def ask(live: Live, content: str = "hello", **fields: Any) -> httpx.Response:
    """Eight tokens, the poisoned one never among them."""
    return live.post(CHAT, live.chat(content, max_tokens=8, logit_bias={str(POISON): -100}, **fields))


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def health(live: Live) -> tuple[int, str]:
    with live.client() as client:
        found = client.get("/health")
    return found.status_code, found.json()["status"]


@pytest.mark.timeout(120)
def test_a_step_that_breaks(faulty: Live, order: Path, figure: Any) -> None:
    before = text(ask(faulty))
    for what in ("panic", "full", "an error"):
        order.write_text(what)
        broken = ask(faulty)
        assert broken.status_code == 500, what
        assert set(broken.json()["error"]) == {"message", "type", "param", "code"}
        # The step is lost, the engine is not.
        assert health(faulty) == (200, "ready"), what
        order.unlink()
        assert text(ask(faulty)) == before, what
        now = faulty.idle()
        assert now["fastchat_kv_blocks_free"] == now["fastchat_kv_blocks_total"]
    figure("panic, no memory, error: 500 for that request, /health 200, the next one as before")


@pytest.mark.timeout(120)
def test_a_row_without_numbers(faulty: Live, figure: Any) -> None:
    contents = [f"say {number}" for number in range(7)]
    alone = [text(ask(faulty, content)) for content in contents]
    found: dict[str, httpx.Response] = {}

    def keep(content: str) -> None:
        found[content] = ask(faulty, content)

    asked = [*contents[:3], "say ~", *contents[3:]]
    threads = [threading.Thread(target=keep, args=(content,)) for content in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found["say ~"].status_code == 500
    assert [text(found[content]) for content in contents] == alone
    assert health(faulty) == (200, "ready")
    figure("1 of 8 rows not a number: that request 500, the other seven as alone, /health 200")


@pytest.mark.timeout(120)
def test_a_lost_device(faulty: Live, order: Path, figure: Any) -> None:
    assert health(faulty) == (200, "ready")
    order.write_text("lost")
    began = time.monotonic()
    assert ask(faulty).status_code == 500
    answered = time.monotonic() - began
    assert health(faulty) == (503, "dead")
    assert ask(faulty).status_code in (500, 503)
    assert faulty.process.wait(20) == 1
    figure(f"500 after {answered:.2f} s, then /health 503 dead, status 1 after {time.monotonic() - began:.1f} s")
