"""Compiles every `.cu` file for all architectures, or those that are named, with warnings as errors, and compares
registers and spills with `cuda/registers.txt`. `--bless` writes that file. Needs the toolkit of cuda_toolkit.py and no
GPU.
"""

import argparse
import difflib
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cuda_toolkit import ROOT, UNAVAILABLE

FOLDER = ROOT / "crates" / "fastchat-kernels" / "cuda"
GOLDEN = FOLDER / "registers.txt"
ARCHITECTURES = ("80", "90a", "100", "120")
FLAGS = ["-std=c++17", "-O3", "-Werror", "all-warnings", "--expt-relaxed-constexpr", "-lineinfo", "-Xptxas", "-v"]
HEADER = "# kernel, architecture: registers a thread, bytes spilled (stores, loads). Written by `make bless-cuda`.\n"


class FailedError(Exception):
    """A file that does not compile."""


def report(source: Path, nvcc: Path, architectures: list[str]) -> list[str]:
    """One line per kernel and architecture."""
    with tempfile.TemporaryDirectory() as scratch:
        codes = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in architectures]
        command = [nvcc, *FLAGS, *codes, f"-I{FOLDER}", "-c", source, "-o", Path(scratch) / "out.o"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        said = [
            line for line in run.stderr.splitlines() if line.strip() and not line.startswith(("ptxas info", "    "))
        ]
        raise FailedError("\n".join([f"{source.name} does not compile:", *said]))
    lines: list[str] = []
    name = architecture = ""
    spilled = ("0", "0")
    for line in run.stderr.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            name, architecture = found.groups()
        elif found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = found.groups()
        elif found := re.search(r"Used (\d+) registers", line):
            lines.append(f"{source.name} {_readable(name)} {architecture}: {found[1]} {spilled[0]} {spilled[1]}")
    return sorted(lines)


def _readable(symbol: str) -> str:
    text = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout.strip()
    return text.replace("(anonymous namespace)::", "").split("(", 1)[0].removeprefix("void ").replace(" ", "")


def main() -> int:
    """Status 1 when a file does not compile or the report is another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bless", action="store_true", help="take what is found as right")
    parser.add_argument("architectures", nargs="*", help=f"of {', '.join(ARCHITECTURES)}; all if none is named")
    arguments = parser.parse_args()
    bless: bool = arguments.bless
    architectures: list[str] = arguments.architectures or list(ARCHITECTURES)
    if unknown := set(architectures) - set(ARCHITECTURES):
        parser.error(f"architectures: {', '.join(sorted(unknown))}: not among {', '.join(ARCHITECTURES)}")
    if bless and arguments.architectures:
        parser.error("--bless records all architectures")
    nvcc = ROOT / ".cuda" / "bin" / "nvcc"
    if not nvcc.is_file():
        print("SKIPPED: no CUDA toolkit: run `make cuda-toolkit`; no .cu file was compiled", file=sys.stderr)
        return UNAVAILABLE
    sources = sorted(FOLDER.glob("*.cu"))
    try:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            lines = [
                line
                for lines in pool.map(lambda source: report(source, nvcc, architectures), sources)
                for line in lines
            ]
    except FailedError as error:
        print(f"check-cuda: {error}", file=sys.stderr)
        return 1
    text = HEADER + "".join(f"{line}\n" for line in lines)
    if bless:
        GOLDEN.write_text(text)
    golden = GOLDEN.read_text() if GOLDEN.is_file() else ""
    if golden == HEADER:
        print("SKIPPED: registers.txt records nothing yet; `make bless-cuda` writes it", file=sys.stderr)
        return 0
    wanted = tuple(f" sm_{architecture}:" for architecture in architectures)
    recorded = [line for line in golden.splitlines() if line.startswith("#") or any(name in line for name in wanted)]
    difference = list(difflib.unified_diff(recorded, text.splitlines(), "recorded", "found", lineterm=""))
    print(
        f"check-cuda: {len(sources)} files, {len(lines)} kernels for {', '.join(architectures)}", *difference, sep="\n"
    )
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())
