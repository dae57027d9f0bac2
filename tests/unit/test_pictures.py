"""Parts of messages to places in a template's text, and that text cut where it is literal."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastchat_rs.dataurl import decoded
from fastchat_rs.errors import ConfigError
from fastchat_rs.pictures import Places, file_of, pixels_of, taken, takes_parts, takes_text
from fastchat_rs.template import ChatTemplate
from tiny_vision import TEMPLATE

PARTS_ONLY = (
    "{% for m in messages %}{% for p in m['content'] %}"
    "{{ p['text'] if p['type'] == 'text' else '<image>' }}{% endfor %}{% endfor %}"
)
TEXT_ONLY = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def fence(text: str, mark: str) -> str:
    """As the engine does, for one control token."""
    return text.replace("<|im_end|>", f"{mark}<|im_end|>{mark}")


def test_templates_are_asked_what_they_take() -> None:
    both, parts, text = ChatTemplate(TEMPLATE), ChatTemplate(PARTS_ONLY), ChatTemplate(TEXT_ONLY)
    assert [takes_parts(template) for template in (both, parts, text)] == [True, True, False]
    assert [takes_text(template) for template in (both, parts, text)] == [True, False, True]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (PARTS_ONLY, [("a ", False), ("<|im_end|>", True), ("<image>b", False)]),
        (TEXT_ONLY, [("user: a ", False), ("<|im_end|>", True), ("\n<image>\nb\n", False)]),
    ],
)
def test_pictures_stand_where_they_stood_and_words_are_fenced(source: str, expected: list[tuple[str, bool]]) -> None:
    template = ChatTemplate(source)
    places = Places(fence, "<image>")
    parts: list[Any] = [{"type": "text", "text": "a <|im_end|>"}, {"type": "image"}, {"type": "text", "text": "b"}]
    text = template.render(places.shown([{"role": "user", "content": parts}], template))
    assert places.segments(text) == expected
    assert places.plain(text) == "".join(piece for piece, _ in expected)


def test_a_conversation_of_text_stays_text() -> None:
    template = ChatTemplate(TEMPLATE)
    places = Places(fence, "<|image_pad|>")
    shown = places.shown([{"role": "user", "content": "hello"}], template)
    assert shown == [{"role": "user", "content": "hello"}]
    parts = ChatTemplate(PARTS_ONLY)
    assert places.shown(shown, parts)[0]["content"] == [{"type": "text", "text": "hello"}]


def test_pictures_are_taken_out_of_conversations(tmp_path: Path) -> None:
    content = [{"type": "image", "image": b"x"}, {"type": "text", "text": "a"}]
    content += [{"type": "image_url", "image_url": {"url": "data:image/png;base64,eA==", "detail": "low"}}]
    shaped, found = taken([{"role": "user", "content": content}, {"role": "assistant", "content": "b"}])
    assert [part["type"] for part in shaped[0]["content"]] == ["image", "text", "image"]
    places = ("messages.0.content.0", "messages.0.content.2")
    assert found == [(places[0], b"x", "auto"), (places[1], "data:image/png;base64,eA==", "low")]
    with pytest.raises(ConfigError, match=r"messages\.0\.content\.0\.type: 'sound'"):
        taken([{"role": "user", "content": [{"type": "sound"}]}])
    with pytest.raises(ConfigError, match="no picture"):
        taken([{"role": "user", "content": [{"type": "image"}]}])
    path = tmp_path / "x.png"
    path.write_bytes(b"x")
    for source in (b"x", bytearray(b"x"), path, str(path), "data:image/png;base64,eA==", io.BytesIO(b"x")):
        assert file_of(source, "here") == b"x"
    for wrong in ("https://host.example/x.png", tmp_path / "none.png", 7, "data:image/png;base64,?"):
        with pytest.raises(ConfigError, match="here"):
            file_of(wrong, "here")


def test_arrays_and_pil_images_are_pixels() -> None:
    grey = np.array([[0, 1, 2], [3, 4, 5]], np.uint8)
    assert pixels_of(grey, "here") == (bytes(range(6)), 3, 2, 1)
    assert pixels_of(np.zeros((2, 3, 4), np.uint8)[:, ::-1], "here") == (bytes(24), 3, 2, 4)
    assert pixels_of(b"x", "here") is None

    class Pil:
        """What is used of PIL's images."""

        size = (3, 2)

        def convert(self, mode: str) -> "Pil":
            assert mode == "RGB"
            return self

        def tobytes(self) -> bytes:
            return bytes(18)

    assert pixels_of(Pil(), "here") == (bytes(18), 3, 2, 3)
    for wrong in (np.zeros((2, 3)), np.zeros((2, 3, 2), np.uint8), np.zeros(3, np.uint8)):
        with pytest.raises(ConfigError, match="uint8"):
            pixels_of(wrong, "here")


def test_data_urls() -> None:
    assert decoded("data:image/png;base64,eHl6", "here") == b"xyz"
    assert decoded("data:IMAGE/jpeg;charset=x;BASE64,eHl6", "here") == b"xyz"
    for wrong in ("data:image/png,xyz", "data:;base64,eHl6", "data:image/png;base64", "data:image/png;base64,e\u00e9"):
        with pytest.raises(ConfigError, match="here"):
            decoded(wrong, "here")
