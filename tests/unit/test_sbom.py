"""The installed package says what it is made of."""

import importlib.metadata
import json
import re
from typing import Any

import pytest

from where import REPOSITORY


def test_every_crate_is_listed() -> None:
    files = importlib.metadata.files("fastchat-rs") or []
    found = [path for path in files if path.parent.name == "sboms"]
    if not found:
        pytest.fail("the package has no sboms/: it was not built by maturin >= 1.9")
    sbom: dict[str, Any] = json.loads(found[0].read_text("utf-8"))
    assert sbom["bomFormat"] == "CycloneDX"
    lock = (REPOSITORY / "Cargo.lock").read_text("utf-8")
    pinned = set(re.findall(r'name = "(.+)"\nversion = "(.+)"', lock))
    listed = {(one["name"], one["version"]): one for one in sbom["components"]}
    assert {"candle-core", "tokenizers", "fastchat-kernels"} <= {name for name, _ in listed}
    assert listed.keys() <= pinned
    for (name, _), one in listed.items():
        # What comes from the registry is pinned by its hash.
        assert name.startswith("fastchat-") or one["hashes"], name
