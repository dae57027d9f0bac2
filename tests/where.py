"""Where the tests find real models and reference outputs: FASTCHAT_MODELS and FASTCHAT_SHARED."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
DEMO = "smollm2-135m-instruct-q4_1.gguf"


def models() -> Path:
    """Folder with the real models."""
    return Path(os.environ.get("FASTCHAT_MODELS", REPOSITORY / "models"))


def shared() -> Path:
    """Folder with the reference outputs."""
    return Path(os.environ.get("FASTCHAT_SHARED", REPOSITORY.parent / "shared"))


def need(path: Path, *, always_in_ci: bool = False) -> Path:
    """The path, or a loud skip; on CI what must be there is a failure."""
    if not path.exists():
        print(f"SKIPPED: {path.name} is not there; `make models` fetches the models", file=sys.stderr)
        if always_in_ci and os.environ.get("CI") == "true":
            pytest.fail(f"{path.name} is not there")
        pytest.skip(f"{path.name} is not there")
    return path


def need_package(name: str) -> ModuleType:
    """A client's package, or a loud skip; on CI those that the development lock file has must be there."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        print(f"SKIPPED: the package {name} is not there; `make clients` installs it", file=sys.stderr)
        if name in ("openai", "anthropic", "instructor") and os.environ.get("CI") == "true":
            pytest.fail(f"the package {name} is not there")
        pytest.skip(f"the package {name} is not there")
