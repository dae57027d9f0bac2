"""Builds the one wheel, for CPU and CUDA, and proves on a box without a GPU what can be proved there.

The checks load the wheel as it is, unpacked beside the interpreter that runs them, in processes of their own.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from cuda_toolkit import ROOT

CRATE = ROOT / "crates" / "fastchat-kernels"
TOOLKIT = ROOT / ".cuda"
DIST = ROOT / "dist" / "cuda"
MOST_BYTES = 100 * 1000 * 1000
OLDEST_GLIBC = (2, 28)
NVIDIA = re.compile(r"\bU (cu[A-Z]\w*|cublas\w*|curand\w*|nvrtc\w*|cuda[A-Z]\w*|__cuda\w*)")
# Loads a model on a device and prints what it makes of four tokens.
PROGRAM = """
import json, sys
from fastchat_rs import LLM
try:
    with LLM(sys.argv[1], device=sys.argv[2], skip_tokenizer_init=True, kv_memory="16MiB") as llm:
        from fastchat_rs import SamplingParams
        ids = json.loads(sys.argv[3])
        out = llm.generate(ids, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))[0]
        print(json.dumps({"kernels": llm.info.kernels, "tokens": list(out.outputs[0].token_ids)}))
except Exception as error:
    print(json.dumps({"error": str(error), "class": type(error).__name__}))
"""


class FailedError(Exception):
    """A check that ran and did not like what it saw."""


def build() -> Path:
    """The wheel, by maturin, with its own target folder: candle's kernels take some ten minutes and are kept there."""
    wrapper = TOOLKIT / "candle" / "nvcc"
    wrapper.parent.mkdir(exist_ok=True)
    wrapper.unlink(missing_ok=True)
    shutil.copy2(ROOT / "scripts" / "nvcc" / "candle", wrapper)
    home = str(TOOLKIT)
    cuda = {"CUDA_HOME": home, "CUDA_PATH": home, "NVCC": str(wrapper), "CUDA_COMPUTE_CAP": "80"}
    here = Path(sys.executable).parent
    # maturin asks the first python3 for zig, whose linker knows the symbols of an older glibc than this Linux has.
    path = os.pathsep.join([str(here), os.environ["PATH"]])
    environment = {**os.environ, **cuda, "CUDARC_CUDA_VERSION": "13000", "PATH": path}
    shutil.rmtree(DIST, ignore_errors=True)
    command = [here / "maturin", "build", "--release", "--locked", "--features", "cuda"]
    command += ["--zig", "--compatibility", "manylinux_2_28"]
    subprocess.run(
        [*command, "--target-dir", ROOT / "target" / "cuda", "--out", DIST], env=environment, check=True, cwd=ROOT
    )
    return next(DIST.glob("*.whl"))


class Checks:
    """The wheel, unpacked, and the tiny model of the parity set."""

    def __init__(self, wheel: Path, scratch: Path) -> None:
        self.wheel, self.scratch = wheel, scratch
        self.site = scratch / "site"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self.site)
        self.model = Path(os.environ.get("FASTCHAT_SHARED", ROOT.parent / "shared")) / "parity" / "text" / "llama3"
        self.extension = next((self.site / "fastchat_rs").glob("_engine*.so"))
        # (the driver's functions, all the others)
        lines = [line.split("#")[0].split() for line in (CRATE / "cuda" / "symbols.txt").read_text().splitlines()]
        self.functions = [(line[0], line[1]) for line in lines if line]

    def size(self) -> str:
        """Bytes of the file."""
        found = self.wheel.stat().st_size
        if found > MOST_BYTES:
            raise FailedError(f"the wheel has {found / 1e6:.1f} MB; at most {MOST_BYTES / 1e6:.0f} are allowed")
        return f"{found / 1e6:.1f} MB, extension {self.extension.stat().st_size / 1e6:.1f} MB"

    def symbols(self) -> str:
        """Nothing of NVIDIA's may be left for the system's loader to find."""
        listed = subprocess.run(
            ["nm", "-D", "--undefined-only", self.extension], capture_output=True, text=True, check=True
        )
        missing = sorted(set(NVIDIA.findall(listed.stdout)))
        if missing:
            raise FailedError(f"not in cuda/symbols.txt: {' '.join(missing)}")
        dynamic = subprocess.run(["readelf", "-d", self.extension], capture_output=True, text=True, check=True).stdout
        needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
        if any(name.startswith(("libcu", "libnv", "libstdc++")) for name in needed):
            raise FailedError(f"needs {' '.join(needed)}")
        return f"needs only {' '.join(needed)}"

    def oldest(self) -> str:
        """The newest version of glibc that a symbol asks for, as the manylinux tag has it."""
        listed = subprocess.run(["objdump", "-T", self.extension], capture_output=True, text=True, check=True).stdout
        versions = {tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([0-9.]+)", listed)}
        newest = max(versions)
        if newest > OLDEST_GLIBC:
            raise FailedError(f"needs glibc {newest}, later than {OLDEST_GLIBC} of manylinux_2_28")
        return f"glibc {newest[0]}.{newest[1]}, as manylinux_2_28 allows"

    def run(self, device: str, ids: list[int], *, site: Path | None = None, **environment: str) -> dict[str, object]:
        """What PROGRAM prints in a process of its own."""
        path = os.pathsep.join(map(str, filter(None, [site, self.site])))
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(self.model), device, json.dumps(ids)],
            env={**os.environ, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if run.returncode:
            raise FailedError(f"device {device}: status {run.returncode}: {run.stderr[-2000:]}")
        return json.loads(run.stdout.splitlines()[-1])

    def golden(self) -> tuple[list[int], list[int]]:
        """A prompt and how the reference goes on."""
        raw = (self.model / "golden.safetensors").read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])

        def numbers(name: str) -> list[int]:
            start, end = header[name]["data_offsets"]
            width = {"I64": 8, "I32": 4, "U32": 4}[header[name]["dtype"]]
            data = raw[8 + length + start : 8 + length + end]
            return [int.from_bytes(data[at : at + width], "little") for at in range(0, len(data), width)]

        return numbers("input_ids")[:40], numbers("greedy")[:8]

    def cpu(self) -> str:
        """The wheel runs a model on the CPU, with lazy and with immediate binding of symbols."""
        ids, expected = self.golden()
        for now in ({}, {"LD_BIND_NOW": "1"}):
            for device in ("cpu", "auto"):
                found = self.run(device, ids, **now)
                if found.get("tokens") != expected or not str(found.get("kernels")).startswith("cpu-"):
                    raise FailedError(f"device {device} {now}: {found}, expected {expected} on the CPU")
        return "runs on the CPU as the reference does, LD_BIND_NOW=1 or not"

    def refuse(self, words: list[str], site: Path | None = None) -> str:
        """A CUDA device is refused in one line that holds `words`."""
        for now in ({}, {"LD_BIND_NOW": "1"}):
            found = self.run("cuda", [1, 2, 3], site=site, **now)
            text = str(found.get("error"))
            if found.get("class") != "InvalidRequestError" or "\n" in text or any(word not in text for word in words):
                raise FailedError(f"expected one line with {words}, got {found}")
        return text

    def stand_in(self, name: str, libraries: dict[str, str]) -> Path:
        """A folder that looks like NVIDIA's wheels: each library defines its functions, all but the one named last."""
        folder = self.scratch / name / "nvidia" / "cu13" / "lib"
        folder.mkdir(parents=True)
        files = {
            "cuda": "libcuda.so.1",
            "cublasLt": "libcublasLt.so.13",
            "cublas": "libcublas.so.13",
            "curand": "libcurand.so.10",
            "nvrtc": "libnvrtc.so.13",
        }
        for library, without in libraries.items():
            bodies = {"cuInit": "return 0;", "cuDeviceGetCount": "*count = 0; return 0;"}
            code = "".join(
                f"int {function}(int *count) {{ {bodies.get(function, 'return 999;')} }}\n"
                for owner, function in self.functions
                if owner == library and function != without
            )
            source = folder / f"{library}.c"
            source.write_text(code)
            subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", folder / files[library], source], check=True)
        return self.scratch / name

    def loading(self) -> str:
        """The way to the libraries, with stand-ins for them."""
        owners = dict.fromkeys((owner for owner, _ in self.functions), "")
        self.refuse(
            ["libcublasLt.so.13", "driver_only", "fastchat-rs[cuda]"], self.stand_in("driver_only", {"cuda": ""})
        )
        old = self.stand_in("old", {**owners, "cuda": "cuDeviceGetCount"})
        self.refuse(["libcuda.so.1", "cuDeviceGetCount", "too old"], old)
        # Here the calls arrive: the driver that sees no device is the stand-in.
        self.refuse(["sees 0 CUDA device(s)"], self.stand_in("whole", owners))
        return f"{len(self.functions)} functions found in stand-ins and called; a missing library or function is named"


def main() -> int:
    """Status 1 with the first check that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path, help="check this one instead of building")
    wheel: Path | None = parser.parse_args().wheel
    started = time.monotonic()
    if wheel is None:
        wheel = build()
        print(f"wheel-cuda: {wheel.name} in {time.monotonic() - started:.0f} s")
    with tempfile.TemporaryDirectory() as scratch:
        checks = Checks(wheel, Path(scratch))
        driver = shutil.which("nvidia-smi")
        parts = [checks.size, checks.symbols, checks.oldest, checks.cpu]
        if driver is None:
            parts += [
                lambda: checks.refuse(["libcuda.so.1", "the NVIDIA driver", "the system's library path"]),
                checks.loading,
            ]
        else:
            print("SKIPPED: this box has a driver; refusals are checked on one without", file=sys.stderr)
        for part in parts:
            try:
                print(f"wheel-cuda: {part()}")
            except FailedError as error:
                print(f"wheel-cuda: FAILED: {error}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
