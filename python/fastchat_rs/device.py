"""What can be asked of a device without a model, and where NVIDIA's libraries may lie beside this package: in folders
of the wheels that `fastchat-rs[cuda]` brings. The engine opens them, when a CUDA device is asked for.
"""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict

from fastchat_rs._engine import ModelInfo, check_kernels, probe_device
from fastchat_rs.config import DType, check_device
from fastchat_rs.errors import ConfigError

log = logging.getLogger("fastchat_rs")

# CUDA 13 wheels share one folder; some components keep their own.
_FOLDERS = ("cu13/lib", "cublas/lib", "curand/lib", "cuda_nvrtc/lib", "nccl/lib")


def cuda_libraries() -> list[str]:
    """Existing folders of the `nvidia` namespace package, in the order of the import path."""
    spec = find_spec("nvidia")
    roots = [] if spec is None else list(spec.submodule_search_locations or [])
    return [str(folder) for root in roots for part in _FOLDERS if (folder := Path(root) / part).is_dir()]


class Placement(TypedDict):
    """Where a model is loaded, in the words of `Engine` and `Embedder`."""

    device: str
    cuda_libraries: list[str]


class Loading(Placement):
    """The same, and how it computes there."""

    bf16_products: bool | None


def loading(device: str, dtype: DType) -> Loading:
    """On a device that exists somewhere; `dtype` as `LLM` takes it."""
    return {**placement(device), "bf16_products": None if dtype == "auto" else dtype == "bfloat16"}


def placement(device: str) -> Placement:
    """Of a device that exists somewhere."""
    check_device(device)
    return {"device": device, "cuda_libraries": cuda_libraries()}


def need_one_device(model: str, tensor_parallel_size: int) -> None:
    """Refuses several devices for a model that only one computes."""
    if tensor_parallel_size > 1:
        raise ConfigError(
            f"tensor_parallel_size: {tensor_parallel_size} devices, but {model} makes embeddings, which one computes"
        )


def say_device(model: str, info: ModelInfo, dtype: DType, enforce_eager: bool) -> None:
    """Logs what is news about where a model runs: graphs of decode steps, where a device has them or somebody asked;
    products in bf16, where they were asked for and cannot be had."""
    if dtype == "bfloat16" and info.kernels.startswith("cpu") and not info.kernels.endswith("bf16"):
        log.warning("dtype: %s: this processor multiplies no bf16 (%s); products are in f32", model, info.kernels)
    if enforce_eager or not info.kernels.startswith("cpu"):
        nothing = "; enforce_eager changes nothing" if enforce_eager and info.kernels.startswith("cpu") else ""
        log.info("graphs of decode steps: %s: %s%s", model, info.graphs, nothing)


def kernel_findings(device: str) -> tuple[str, list[tuple[str, float, float, str | None]]]:
    """The name of a device's kernels, and (operation, difference, bound, error) of each against the CPU's default."""
    return check_kernels(**placement(device))


def probe(device: str) -> tuple[str, float, float, tuple[int, int] | None]:
    """The name of a device's kernels, bytes a second, operations a second, and (free, all) bytes of its own memory."""
    return probe_device(**placement(device))
