"""The command `fastchat-rs`: words and tables for people. The work is done in llm.py, bench.py, doctor.py, server/.

Each command imports what it needs, so that a server begins to load before most of it is there.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastchat_rs import keycommands
from fastchat_rs.config import ConfigError, DoctorConfig, EngineConfig, ServeConfig
from fastchat_rs.convert import FileKind
from fastchat_rs.errors import FastchatError
from fastchat_rs.options import with_settings

if TYPE_CHECKING:
    from fastchat_rs.llm import LLM
    from fastchat_rs.server.state import State

_PRECEDENCE = """Settings come from four places; the first that names one wins: the command line, the environment
(FASTCHAT_PORT for --port, lists separated by commas), a TOML file (--config or FASTCHAT_CONFIG, port = 8000), defaults.

MODEL is a .gguf file, a folder with config.json and *.safetensors, a Hugging Face id (org/name, org/name:Q4_K_M), or a
demo name: demo (SmolLM2 135M), gemma, qwen05, qwen15."""

app = typer.Typer(
    help="An LLM inference engine in Rust with an OpenAI-compatible server.",
    epilog=_PRECEDENCE,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(keycommands.app, name="keys")
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout instead of a table")]
Temperature = Annotated[float, typer.Option(help="0 always takes the most likely token")]
Tokens = Annotated[int | None, typer.Option(help="Most tokens of an answer (default: the rest of the context)")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable")]


def main() -> None:
    """Entry point. Expected errors are one line on stderr and status 1."""
    try:
        app()
    except Exception as error:
        from fastchat_rs.llm import EngineError

        if not isinstance(error, (FastchatError, EngineError)):
            raise
        print(f"fastchat-rs: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        from fastchat_rs.llm import __version__

        print(f"fastchat-rs {__version__}")
        raise typer.Exit


@app.callback()
def root(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it")] = False,
) -> None:
    """An LLM inference engine in Rust with an OpenAI-compatible server."""


@app.command(epilog=_PRECEDENCE)
@with_settings(ServeConfig)
def serve(config: ServeConfig) -> None:
    """Serve MODEL over HTTP, as OpenAI does, until SIGTERM or Ctrl-C."""
    from fastchat_rs.server.serve import serve as run

    run(config, _announce)


def _announce(port: int, state: "State") -> None:
    config = state.config
    served = next(iter(state.models.values()), None)
    name = served.name if served else next(iter(state.embeddings))
    host = f"[{config.host}]" if ":" in config.host else config.host
    body: dict[str, Any] = {"model": name, "stream": True}
    if served is None:
        route, body = "embeddings", {"model": name, "input": "Why is the sky blue?"}
    elif served.template is None:
        route, body = "completions", {**body, "prompt": "The capital of France is", "max_tokens": 32}
    else:
        # Small models ramble at the wire's default temperature of 1.
        question = {"role": "user", "content": "Why is the sky blue?"}
        route, body = "chat/completions", {**body, "temperature": 0.2, "max_tokens": 200, "messages": [question]}
    key = " -H 'Authorization: Bearer KEY'" if config.api_key or config.keys else ""
    print(
        f"fastchat-rs: {name} is ready on http://{host}:{port}, Ctrl-C stops it. Try:\n"
        f"curl -N http://{host}:{port}/v1/{route} -H 'Content-Type: application/json'{key} -d '{json.dumps(body)}'",
        flush=True,
    )


def load(config: EngineConfig) -> "LLM":
    """The model of a command that runs in this process."""
    from fastchat_rs.llm import LLM

    template = None
    if config.chat_template is not None:
        try:
            template = Path(config.chat_template).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"chat_template: cannot read {config.chat_template}: {error}") from error
    return LLM(
        config.model,
        device=config.device,
        tensor_parallel_size=config.tensor_parallel_size,
        dtype=config.dtype,
        kv_dtype=config.kv_dtype,
        max_model_len=config.max_model_len,
        kv_memory=config.kv_memory,
        max_num_batched_tokens=config.max_batch_tokens,
        max_num_seqs=config.max_num_seqs,
        max_queue=config.max_queue,
        enable_prefix_caching=config.prefix_caching,
        prefix_cache_dir=config.prefix_cache_dir,
        prefix_cache_size=config.prefix_cache_size,
        speculation=config.speculation,
        enforce_eager=config.enforce_eager,
        threads=config.threads,
        chat_template=template,
        quantize=config.quantize,
        mmproj=config.mmproj,
    )


@app.command(epilog=_PRECEDENCE)
@with_settings(EngineConfig)
def chat(
    config: EngineConfig,
    system: Annotated[str | None, typer.Option(help="System message")] = None,
    temperature: Temperature = 0.7,
    max_tokens: Tokens = None,
    seed: Seed = None,
) -> None:
    """Talk to MODEL in the terminal. Ctrl-C stops an answer, Ctrl-D leaves, /help tells more."""
    from rich.console import Console

    from fastchat_rs.llm import SamplingParams
    from fastchat_rs.terminal import converse

    with load(config) as llm:
        params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
        converse(llm, params, system, Console())


@app.command(epilog=_PRECEDENCE)
@with_settings(EngineConfig)
def generate(
    config: EngineConfig,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Text to go on from; else stdin")] = None,
    as_chat: Annotated[bool, typer.Option("--chat", help="The prompt is a user's message, not raw text")] = False,
    temperature: Temperature = 0.0,
    max_tokens: Tokens = 128,
    seed: Seed = None,
) -> None:
    """Write what MODEL makes of a prompt to stdout, as it comes."""
    from fastchat_rs.llm import SamplingParams

    text = sys.stdin.read() if prompt is None else prompt
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
    with load(config) as llm:
        messages = [{"role": "user", "content": text}]
        for chunk in llm.chat_stream(messages, params) if as_chat else llm.stream(text, params):
            print(chunk.text, end="", flush=True)
    print()


@app.command(epilog=_PRECEDENCE)
@with_settings(EngineConfig)
def bench(
    config: EngineConfig,
    repeat: Annotated[int, typer.Option(min=1, help="Measurements of each figure")] = 3,
    quick: Annotated[bool, typer.Option(help="Short prompts and answers, for a first look")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure MODEL here: prefill, decode, time to first token, and 1, 4, 16, 64 requests at once."""
    from fastchat_rs.bench import measure

    with load(config) as llm:
        result = measure(llm, repeat, quick=quick, log=lambda line: print(line, file=sys.stderr))
    if as_json:
        print(json.dumps(result, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['model']} ({result['kernels']})")
    for name in ("figure", "median", "min", "max", "unit"):
        table.add_column(name, justify="left" if name in ("figure", "unit") else "right")
    for row in result["figures"]:
        table.add_row(row["name"], *(_number(row[key]) for key in ("median", "min", "max")), row["unit"])
    Console().print(table)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Path, Hugging Face id or demo name", show_default=False)],
    mmproj: Annotated[str | None, typer.Option(help="File of a GGUF model's tower for pictures")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what MODEL is without loading its weights: resolved layers, tensor kinds, memory plan."""
    from rich.console import Console

    from fastchat_rs.inspection import show
    from fastchat_rs.llm import inspect_model

    text = inspect_model(model, mmproj)
    print(json.dumps(json.loads(text), indent=1)) if as_json else show(json.loads(text), Console())


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help="Path, Hugging Face id or demo name", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write; its name ends in .gguf")],
    kind: Annotated[FileKind | None, typer.Option("--type", help="Of the matrices (default: as stored)")] = None,
) -> None:
    """Write MODEL as one GGUF file, tokenizer and chat template included; llama.cpp reads it too."""
    from fastchat_rs.convert import convert_model
    from fastchat_rs.inspection import size

    converted = convert_model(model, out, kind)
    kinds = ", ".join(f"{count} {name}" for name, count in converted.kinds.items())
    print(f"{out}: {size(converted.bytes)}, {converted.tensors} tensors: {kinds}")
    if converted.left_out:
        print(f"fastchat-rs: not written: {converted.left_out}", file=sys.stderr)


@app.command(epilog=_PRECEDENCE)
@with_settings(DoctorConfig)
def doctor(config: DoctorConfig, as_json: AsJson = False) -> None:
    """Check MODEL: kernels, files, numbers, tokenizer, template, text, a picture, memory. Status 1 when one fails.

    Without MODEL, check the device: every kernel against its plain default, and the families that --parity names.
    """
    if config.model:
        from fastchat_rs.doctor import examine

        checks = examine(config, lambda: load(config))
    else:
        from fastchat_rs.device_check import examine_device

        if config.tensor_parallel_size > 1:
            raise ConfigError("tensor_parallel_size: without MODEL one device is checked")
        checks = examine_device(config.device, config.parity)
    if as_json:
        print(
            json.dumps({"ok": all(check.ok for check in checks), "checks": [check.row() for check in checks]}, indent=1)
        )
    else:
        for check in checks:
            print(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.detail}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
