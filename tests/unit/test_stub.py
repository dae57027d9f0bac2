"""The keywords of `SamplingParams` are those of its stub, where PyO3 cannot show every default to stubtest."""

import ast
import inspect
from pathlib import Path

import fastchat_rs
from fastchat_rs._engine import SamplingParams

STUB = Path(fastchat_rs.__file__).with_name("_engine.pyi")


def test_the_defaults_are_those_of_the_stub() -> None:
    classes = [node for node in ast.parse(STUB.read_text("utf-8")).body if isinstance(node, ast.ClassDef)]
    (body,) = [node.body for node in classes if node.name == "SamplingParams"]
    (new,) = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__new__"]
    defaults = [ast.literal_eval(default) for default in new.args.kw_defaults if default is not None]
    stub = dict(zip([argument.arg for argument in new.args.kwonlyargs], defaults, strict=True))
    assert list(inspect.signature(SamplingParams).parameters) == list(stub)
    made = SamplingParams()
    found = {name: getattr(made, name) for name in stub}
    plain: dict[str, object] = {"stop": [], "stop_token_ids": [], "logit_bias": {}}
    assert found == stub | plain
