"""Writes templates.json.gz: what transformers makes of all conversations with all chat templates of llama.cpp.

Usage: PYTHONPATH=tests python make_templates.py FOLDER [NAME CASE], with transformers installed; the last two print one
rendering. The templates belong to their models' licences, so of texts only hashes are kept, of refusals the message.
"""

import datetime
import gzip
import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import transformers
from transformers.utils import chat_template_utils

from conversations import EOS_AND_BOS, NOW, cases

PACKAGE = Path(__file__).resolve().parents[2] / "python" / "fastchat_rs"


class Clock(datetime.datetime):
    """Stands still, so that goldens do not age."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return datetime.datetime(*NOW)


def introduced() -> Any:
    """How this project tells tools to templates that know none; loaded alone, as the package needs its engine."""
    spec = importlib.util.spec_from_file_location("toolless", PACKAGE / "toolless.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.introduced


def render(source: str, messages: Any, tools: Any, options: dict[str, Any]) -> str:
    variables = {**options}
    prompt = variables.pop("add_generation_prompt", True)
    texts, _ = chat_template_utils.render_jinja_template(
        conversations=[messages],
        tools=tools,
        chat_template=source,
        add_generation_prompt=prompt,
        **EOS_AND_BOS,
        **variables,
    )
    return texts[0]


def outcome(source: str, messages: Any, tools: Any, options: dict[str, Any]) -> Any:
    """The beginning of the text's SHA-256, the template's own refusal, or the kind of error that it runs into."""
    try:
        text = render(source, messages, tools, options)
    except jinja2.TemplateError as error:
        if type(error) is jinja2.TemplateError:
            return {"refuses": str(error)}
        return {"fails": type(error).__name__}
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, RecursionError) as error:
        return {"fails": type(error).__name__}
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main(folder: str, name: str | None = None, case: str | None = None) -> None:
    chat_template_utils.datetime = Clock
    tell = introduced()
    golden: dict[str, Any] = {}
    for path in sorted(Path(folder).glob("*.jinja")):
        source = path.read_text("utf-8")
        knows = "tools" in jinja2.meta.find_undeclared_variables(
            chat_template_utils._compile_jinja_template(source).environment.parse(source)
        )
        found: list[Any] = []
        for label, messages, tools, options in cases():
            if not knows:
                messages, tools = tell(messages, tools), None
            if (name, case) == (path.stem, label):
                print(render(source, messages, tools, options))
                return
            found.append(outcome(source, messages, tools, options))
        golden[path.stem] = {"source": hashlib.sha256(source.encode()).hexdigest()[:16], "cases": found}
    made = {"transformers": transformers.__version__, "cases": [label for label, *_ in cases()], "templates": golden}
    text = json.dumps(made, ensure_ascii=False, separators=(",", ":"))
    # The header must not hold the time, so that the same goldens are the same file.
    Path(__file__).with_name("templates.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
