"""The checks of `fastchat-rs doctor`: each says what it saw, and the first that loads nothing ends the list."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastchat_rs.checks import Check, FailedError, check
from fastchat_rs.config import DoctorConfig
from fastchat_rs.device import kernel_findings
from fastchat_rs.inspection import makes, memory_lines
from fastchat_rs.llm import LLM, SamplingParams, inspect_model, machine_limits
from fastchat_rs.vector_check import vector_checks

_TEXT = "The quick brown fox jumps over 13 lazy dogs. Größe: 数学, наука 🙂\n\tif x >= 2: return"


def examine(config: DoctorConfig, load: Callable[[], LLM]) -> list[Check]:
    """Runs all checks that the model allows."""

    def found() -> Any:
        return json.loads(inspect_model(config.model, config.mmproj))

    checks = [check("machine", _machine), check("kernels", lambda: _kernels(config.device))]
    checks.append(check("files", lambda: _files(found())))
    if not checks[-1].ok:
        return checks
    loaded: list[LLM] = []

    def tensors() -> str:
        loaded.append(load())
        kernels = (loaded[0].embedder or loaded[0].info).kernels
        return f"complete, none left over; kernels {kernels}"

    checks.append(check("tensors", tensors))
    if not checks[-1].ok:
        return checks
    with loaded[0] as llm:
        if llm.embedder is not None:
            return [*checks, *vector_checks(llm.embedder, found())]
        parts: list[tuple[str, Callable[[LLM], str]]] = [("numbers", _numbers)]
        if llm.info.has_tokenizer:
            parts += [("tokenizer", _tokenizer), ("template", _template), ("text", _text)]
        if llm.info.takes_images and llm.info.has_tokenizer:
            parts.append(("picture", _picture))
        checks += [check(name, lambda part=part: part(llm)) for name, part in parts]
        checks.append(check("memory", lambda: _memory(llm, found())))
    return checks


def _machine() -> str:
    read, int8, kernels = machine_limits()
    return f"{kernels} reads {read / 1e9:.3g} GB/s and does {int8 / 1e9:.3g} billion 8-bit operations a second"


def _kernels(device: str) -> str:
    """What the model is computed with, on inputs made up, against the plain defaults."""
    name, findings = kernel_findings(device)
    for operation, difference, bound, error in findings:
        if error is not None or not difference <= bound:
            raise FailedError(f"{operation}: {error or f'differs by {difference:.1e}, at most {bound:.0e} is right'}")
    return f"{len(findings)} operations of {name} equal their plain defaults"


def _files(found: Mapping[str, Any]) -> str:
    tower = found.get("vision")
    if tower is None:
        return f"readable, {len(found['spec']['layers'])} layers, makes {makes(found)}"
    beside = f" in {Path(found['mmproj']).name}" if "mmproj" in found else ""
    return f"readable, {len(found['spec']['layers'])} layers, {len(tower['layers'])} of a tower for pictures{beside}"


def _numbers(llm: LLM) -> str:
    """A forward pass reaches every weight but unused embedding rows; one bad number spoils the logits."""
    last = llm.info.vocab_size
    ids = [int(id) for id in np.linspace(0, last - 1, num=min(64, llm.info.max_model_len - 1))]
    output = llm.generate(ids, SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1, ignore_eos=True))[0]
    matrix = output.prompt_logprobs
    if not isinstance(matrix, np.ndarray):
        raise FailedError("the engine gave no matrix of log-probabilities")
    bad = int(np.count_nonzero(~np.isfinite(matrix)))
    if bad:
        raise FailedError(f"{bad} of {matrix.size} log-probabilities are not finite")
    off = float(np.abs(np.exp(matrix.astype(np.float64)).sum(axis=1) - 1).max())
    if off > 1e-3:
        raise FailedError(f"probabilities of a step sum to 1 only within {off:.2g}")
    return f"{matrix.size} log-probabilities finite, rows sum to 1 within {off:.1g}"


def _tokenizer(llm: LLM) -> str:
    ids = llm.encode(_TEXT, add_special_tokens=False)
    back = llm.decode(ids)
    # SentencePiece models may put one blank in front.
    if back.removeprefix(" ") != _TEXT:
        raise FailedError(f"round trip gives {back!r}")
    return f"round trip of {len(ids)} tokens"


def _template(llm: LLM) -> str:
    if llm.info.chat_template is None:
        return "none in the model: chat needs --chat-template"
    text = llm.render([{"role": "user", "content": "Hello"}])
    if "Hello" not in text:
        raise FailedError("the template does not print the user's message")
    return f"renders {len(text)} characters for one message"


def _text(llm: LLM) -> str:
    output = llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=12))[0]
    return repr(output.outputs[0].text)


def _picture(llm: LLM) -> str:
    """A made-up picture goes the whole way: processor, tower, projector, decoder."""
    if llm.info.chat_template is None:
        return "no template, so none was sent"
    shades = np.ndarray((64, 96, 3), np.uint8, bytes(i // 72 for i in range(64 * 96 * 3)))
    parts = [{"type": "image", "image": shades}, {"type": "text", "text": "What is this?"}]
    messages = [{"role": "user", "content": parts}]
    output = llm.chat(messages, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))[0]
    return f"{len(output.prompt_token_ids)} tokens with a picture of 96 x 64: {output.outputs[0].text!r}"


def _memory(llm: LLM, found: Mapping[str, Any]) -> str:
    stats = llm.stats()
    room = stats.total_blocks * stats.block_size
    lines = [*memory_lines(found), f"cache for {room} tokens"]
    if room < llm.info.max_model_len:
        lines.append(f"which is less than the context of {llm.info.max_model_len}: raise --kv-memory")
    return ", ".join(lines)
