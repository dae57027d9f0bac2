"""The checks of `fastchat-rs doctor --device D` without a model: kernels, families of the parity set, invariances.

They prove on a machine that no test has seen what the tests prove on ours; they need neither network nor compiler.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastchat_rs.checks import Check, FailedError, check
from fastchat_rs.config import DType
from fastchat_rs.device import kernel_findings
from fastchat_rs.llm import LLM, SamplingParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Largest difference of a log-probability: all in f32 on a CPU, matrices of bf16 on a GPU.
_BOUNDS = {"cpu": 2e-3, "cuda": 5e-2}
_PROMPT, _TOKENS = 40, 12


def examine_device(device: str, parity: str | None) -> list[Check]:
    """The device's kernels; then, with the folder of the parity set, every family in it."""
    found: list[tuple[str, list[Check]]] = []

    def kernels() -> str:
        found.append(_kernels(device))
        return found[0][0]

    checks = [check(f"device {device}", kernels)]
    if not found:
        return checks
    name, operations = found[0]
    checks += operations
    if parity is None:
        return [*checks, Check("families", True, "SKIPPED: no --parity folder was named")]
    folders = sorted(path.parent for path in Path(parity).glob("*/golden.safetensors"))
    if not folders:
        return [*checks, Check("families", False, f"--parity {parity} holds no */golden.safetensors")]
    bound = _BOUNDS["cuda" if name.startswith("cuda") else "cpu"]
    for folder in folders:
        parts: list[tuple[str, Callable[[], str]]] = [
            (f"family {folder.name}", lambda folder=folder: _family(folder, device, bound)),
            (f"company {folder.name}", lambda folder=folder: _company(folder, device, "float32")),
            # Another kernel of attention, and what a server rounds.
            (f"company {folder.name} in bf16", lambda folder=folder: _company(folder, device, "bfloat16")),
        ]
        checks += [check(title, work) for title, work in parts]
    return checks


def _kernels(device: str) -> tuple[str, list[Check]]:
    name, findings = kernel_findings(device)
    checks: list[Check] = []
    for operation, difference, bound, error in findings:
        detail = error or f"differs by {difference:.1e} from the default on the CPU, at most {bound:.0e} is right"
        checks.append(Check(f"kernel {operation}", error is None and difference <= bound, detail))
    return name, checks


def _load(folder: Path, device: str, dtype: DType, **more: Any) -> LLM:
    return LLM(folder, device=device, dtype=dtype, kv_memory="64MiB", skip_tokenizer_init=True, **more)


def _family(folder: Path, device: str, bound: float) -> str:
    """Log-probabilities of every row against the reference's."""
    ids = [int(token) for token in _golden(folder, "input_ids")]
    logits = _golden(folder, "logits").astype(np.float64)
    with _load(folder, device, "float32") as llm:
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1, ignore_eos=True)
        matrix = llm.generate(ids, params, use_tqdm=False)[0].prompt_logprobs
    if not isinstance(matrix, np.ndarray):
        raise FailedError("the engine gave no matrix of log-probabilities")
    reference = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    off = float(np.abs(matrix - reference[: len(matrix)]).max())
    if not off <= bound:
        raise FailedError(f"log-probabilities differ by {off:.2g} from the reference, at most {bound:g} is right")
    return f"{matrix.shape[0]} rows within {off:.1g} of the reference"


def _company(folder: Path, device: str, dtype: DType) -> str:
    """The same tokens alone and together, in whole and in cut prompts, from a cold and a warm cache, without graphs."""
    ids = [int(token) for token in _golden(folder, "input_ids")]
    prompts = [ids[:_PROMPT], ids[5:_PROMPT], ids[:17]]
    params = [SamplingParams(temperature=0.8, seed=seed, max_tokens=_TOKENS, ignore_eos=True) for seed in range(3)]
    runs: dict[str, list[list[int]]] = {}

    def tokens(llm: LLM, which: slice) -> list[list[int]]:
        outputs = llm.generate(prompts[which], params[which], use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    with _load(folder, device, dtype) as llm:
        runs["alone"] = [tokens(llm, slice(i, i + 1))[0] for i in range(3)]
        runs["cached"] = [tokens(llm, slice(i, i + 1))[0] for i in range(3)]
        runs["together"] = tokens(llm, slice(0, 3))
        stats = llm.stats()
    if stats.graph_failure is not None:
        raise FailedError(f"graphs: {stats.graph_failure}")
    with _load(folder, device, dtype, speculation=False) as llm:
        # Drafts for so few sequences keep steps from being queued ahead.
        runs["ahead"] = tokens(llm, slice(0, 3))
        overlapped = llm.stats().overlapped_steps
    with _load(folder, device, dtype, enforce_eager=True) as llm:
        runs["eager"] = tokens(llm, slice(0, 3))
    with _load(folder, device, dtype, max_num_batched_tokens=16, enable_prefix_caching=False) as llm:
        runs["in pieces of 16"] = tokens(llm, slice(0, 3))
    for name, found in runs.items():
        if found != runs["alone"]:
            raise FailedError(f"{name}, requests yield other tokens than alone: {found}, {runs['alone']}")
    steps = f"{stats.graph_steps} steps were replayed as graphs, {overlapped} queued ahead"
    return f"the same tokens {', '.join(runs)}; {steps}"


def _golden(folder: Path, name: str) -> "NDArray[Any]":
    """One tensor of golden.safetensors."""
    raw = (folder / "golden.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    entry: dict[str, Any] = json.loads(raw[8:start])[name]
    kinds = {"I64": np.int64, "I32": np.int32, "U32": np.uint32, "F32": np.float32}
    begin, end = entry["data_offsets"]
    return np.ndarray(entry["shape"], kinds[entry["dtype"]], raw[start + begin : start + end])
