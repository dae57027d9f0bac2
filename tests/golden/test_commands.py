"""The commands on the demo model, each in its own process, as a user types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)


def command(*words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Runs it; stderr is for the assertion that follows."""
    whole = [sys.executable, "-m", "fastchat_rs", *words]
    return subprocess.run(whole, input=typed, capture_output=True, text=True, timeout=240)


def test_version() -> None:
    assert command("--version").stdout.startswith("fastchat-rs ")


def test_generate(demo_model: Path) -> None:
    raw = command("generate", str(demo_model), "--prompt", "The capital of France is", "--max-tokens", "8")
    assert (raw.returncode, "Paris" in raw.stdout) == (0, True), raw.stderr
    piped = command("generate", str(demo_model), "--max-tokens", "8", typed="The capital of France is")
    assert piped.stdout == raw.stdout
    chat = command("generate", str(demo_model), "--chat", "-p", "Hello!", "--max-tokens", "8")
    assert (chat.returncode, chat.stdout.strip() != "") == (0, True), chat.stderr


def test_chat(demo_model: Path) -> None:
    typed = "What is the capital of France?\n/reset\n/help\n/system Be terse.\n/exit\n"
    options = ("--system", "You are terse.", "--temperature", "0", "--max-tokens", "24")
    done = command("chat", str(demo_model), *options, typed=typed)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert "Traceback" not in done.stderr


def test_convert(demo_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.gguf"
    done = command("convert", str(demo_model), "-o", str(out))
    assert (done.returncode, "Q4_1" in done.stdout) == (0, True), done.stderr
    kinds = [json.loads(command("inspect", str(path), "--json").stdout)["kinds"] for path in (demo_model, out)]
    assert kinds[0] == kinds[1]
    words = ("--prompt", "The capital of France is", "--max-tokens", "8")
    assert command("generate", str(out), *words).stdout == command("generate", str(demo_model), *words).stdout
    wrong = command("convert", str(demo_model), "-o", str(tmp_path / "again.bin"))
    assert (wrong.returncode, "ends in .gguf" in wrong.stderr) == (1, True), wrong.stderr
    # Its matrices are in blocks already.
    rounded = command("generate", str(demo_model), "--quantize", "q4_0", "--prompt", "a")
    assert (rounded.returncode, "quantize = q4_0" in rounded.stderr) == (1, True), rounded.stderr


def test_inspect(demo_model: Path) -> None:
    found = json.loads(command("inspect", str(demo_model), "--json").stdout)
    assert len(found["spec"]["layers"]) == 30
    assert sum(kind["bytes"] for kind in found["kinds"].values()) == found["total"]["bytes"] > 90_000_000
    table = command("inspect", str(demo_model)).stdout
    assert "30 layers" in table
    # 30 layers of 3 heads of 64, keys and values, 2 bytes each.
    assert "cache 22.5 KiB a token (f16)" in table


def test_doctor(demo_model: Path, tmp_path: Path) -> None:
    done = command("doctor", str(demo_model), "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (0, True), report
    names = [check["name"] for check in report["checks"]]
    assert names == ["machine", "kernels", "files", "tensors", "numbers", "tokenizer", "template", "text", "memory"]
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(demo_model.read_bytes()[:1_000_000])
    done = command("doctor", str(broken))
    assert done.returncode == 1
    assert "\nFAIL files: " in done.stdout
    assert "broken.gguf" in done.stdout


@pytest.mark.slow
def test_bench(demo_model: Path) -> None:
    done = command("bench", str(demo_model), "--quick", "--repeat", "1", "--json")
    figures = json.loads(done.stdout)["figures"]
    names = [figure["name"].split(" ")[0] for figure in figures]
    assert names == ["prefill", "decode", "time", "1", "4", "16", "64"]
    assert all(0 < figure["min"] <= figure["median"] <= figure["max"] for figure in figures)
