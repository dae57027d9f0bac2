"""All chat templates of llama.cpp's collection against transformers: the same text, or the template's own refusal.

`make_templates.py` made the goldens. `python tests/assets.py llama-cpp` fetches the templates, which stay outside this
repository: each belongs to its model's licence.
"""

import gzip
import hashlib
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from conversations import BOS, EOS, NOW, cases
from fastchat_rs import template as rendering
from fastchat_rs.errors import TemplateError
from fastchat_rs.template import ChatTemplate
from where import models, need

GOLDEN: dict[str, Any] = json.loads(gzip.decompress(Path(__file__).with_name("templates.json.gz").read_bytes()))


class Clock(datetime):
    """Stands still at the goldens' time."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime(*NOW)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def outcome(template: ChatTemplate, messages: Any, tools: Any, options: dict[str, Any]) -> str:
    variables = {**options}
    prompt = variables.pop("add_generation_prompt", True)
    try:
        return digest(template.render(messages, tools=tools, add_generation_prompt=prompt, variables=variables))
    except TemplateError as error:
        return str(error)


def agrees(found: str, expected: Any) -> bool:
    """A failure of the template's code need not have the same words in every version of Python."""
    if isinstance(expected, str):
        return found == expected
    if "refuses" in expected:
        return found == f"the chat template refused the messages: {expected['refuses'][:500]}"
    return found.startswith("the chat template failed on these messages")


def test_the_goldens_are_of_this_corpus() -> None:
    assert GOLDEN["cases"] == [name for name, *_ in cases()]
    assert len(GOLDEN["templates"]) == 70
    assert all(len(golden["cases"]) == len(GOLDEN["cases"]) for golden in GOLDEN["templates"].values())


@pytest.mark.parametrize("name", sorted(GOLDEN["templates"]))
def test_a_template_renders_as_transformers_renders_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.environ.get("FASTCHAT_TEMPLATES", models() / "llama-cpp" / "templates"))
    source = need(folder / f"{name}.jinja").read_text("utf-8")
    golden = GOLDEN["templates"][name]
    assert digest(source) == golden["source"], f"{name} is another template than that of the goldens"
    monkeypatch.setattr(rendering, "datetime", Clock)
    template = ChatTemplate(source, BOS, EOS)
    wrong: list[str] = []
    for (label, messages, tools, options), expected in zip(cases(), golden["cases"], strict=True):
        found = outcome(template, messages, tools, options)
        if not agrees(found, expected):
            wrong.append(f"{label}: {found} instead of {expected}")
    assert not wrong, "\n".join(wrong)
