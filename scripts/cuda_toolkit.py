"""Assembles the CUDA compiler from the PyPI wheels that cuda-toolkit.lock pins, without a GPU, a driver or root.

Status 0: the folder holds a working nvcc. Status 3: a package is gone or the machine is another, said loudly on stderr.
"""

import argparse
import hashlib
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "crates" / "fastchat-kernels" / "cuda-toolkit.lock"
UNAVAILABLE = 3
# Where the wheels keep the toolkit's tree.
INSIDE = "nvidia/cu13/"
# cicc and the others are run by nvcc; zip archives carry no execute bit when they are unpacked this way.
PROGRAMS = ("bin/", "nvvm/bin/")


class UnavailableError(Exception):
    """The toolkit cannot be assembled here; not a fault of the project."""


def download(folder: Path) -> list[Path]:
    """The pinned wheels, their hashes checked by pip."""
    platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_17", "2014", "2010")]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ]
    command += [*platforms, "--python-version=3.12", f"--dest={folder}", f"--requirement={LOCK}"]
    if subprocess.run(command, check=False).returncode:
        raise UnavailableError(f"pip could not fetch what {LOCK.name} pins (see above)")
    return sorted(folder.glob("*.whl"))


def unpack(wheels: list[Path], target: Path) -> None:
    """One tree `bin include lib lib64 nvvm` out of all wheels."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if not name.startswith(INSIDE) or name.endswith("/"):
                    continue
                place = target / name.removeprefix(INSIDE)
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, place.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
                if name.removeprefix(INSIDE).startswith(PROGRAMS):
                    place.chmod(place.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    (target / "lib64").symlink_to("lib")


def prove(target: Path) -> str:
    """Compiles a kernel for the oldest and the newest architecture; returns nvcc's version line."""
    nvcc = target / "bin" / "nvcc"
    version = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "probe.cu"
        source.write_text("__global__ void probe(float *x) { x[threadIdx.x] *= 2.0f; }\n")
        flags = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in ("80", "120")]
        subprocess.run([nvcc, *flags, "-c", source, "-o", Path(scratch) / "probe.o"], check=True)
    return version


def main() -> int:
    """Does nothing when the folder is already made from the same lock file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=ROOT / ".cuda")
    target: Path = parser.parse_args().into
    mark = target / "made-from"
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if mark.is_file() and mark.read_text() == wanted:
        return 0
    try:
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            raise UnavailableError(
                f"the wheels are for Linux on x86_64, this is {platform.system()} on {platform.machine()}"
            )
        if shutil.which("g++") is None:
            raise UnavailableError("nvcc needs a host compiler, g++")
        shutil.rmtree(target, ignore_errors=True)
        with tempfile.TemporaryDirectory() as scratch:
            unpack(download(Path(scratch)), target)
        print(f"cuda-toolkit: {prove(target)} in {target.name}/")
        mark.write_text(wanted)
    except (UnavailableError, subprocess.CalledProcessError, OSError, zipfile.BadZipFile) as error:
        print(f"SKIPPED: no CUDA toolkit: {error}", file=sys.stderr)
        return UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
