"""Reads what the settings name on a thread of its own, each model with its own engine. Knows no state and no routes.

The server's own modules take as long to import as a small model to load: this one imports little and begins first. They
are imported beside its thread, which must import none of them: two threads in one circle of imports (granian has one)
each find a module half made.
"""

import json
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from fastchat_rs.config import ServeConfig, cache_type, parse_bytes
from fastchat_rs.device import loading, need_one_device
from fastchat_rs.errors import ConfigError
from fastchat_rs.hub import Located, resolve
from fastchat_rs.server.bridge import (
    Embedder,
    Engine,
    InvalidRequestError,
    automatic_kv_memory,
    inspect_model,
    is_encoder,
)


@dataclass(frozen=True)
class ModelFiles:
    """Where a model came from, in numbers."""

    format: str
    bytes: int
    modified: float
    """Seconds since 1970."""

    @classmethod
    def of(cls, path: Path) -> "ModelFiles":
        """A .gguf file or a folder."""
        kinds = (".gguf", ".safetensors")
        files = [path] if path.is_file() else [one for one in path.iterdir() if one.suffix in kinds]
        stats = [one.stat() for one in files]
        modified = max((stat.st_mtime for stat in stats), default=path.stat().st_mtime)
        form = files[0].suffix.removeprefix(".") if files else ""
        return cls(form, sum(stat.st_size for stat in stats), modified)


@dataclass
class Wanted:
    """A model that is to be loaded."""

    located: Located
    names: list[str]
    encoder: bool
    kv_memory: int | None = None
    """Its part of the one budget; None where nothing is said."""
    max_model_len: int | None = None
    alone: bool = True
    mmproj: str | Path | None = None

    @property
    def path(self) -> str:
        """Of the file or folder."""
        return str(self.located.path)


@dataclass(frozen=True)
class Loaded:
    """A model that was loaded."""

    wanted: Wanted
    engine: Engine | Embedder
    template: str | None
    """What replaces the model's own."""


def begin(config: ServeConfig) -> list[Future[Loaded]]:
    """One for each model, in the order of the settings; the first that fails is the last that is answered."""
    loaded: list[Future[Loaded]] = [Future() for _ in (config.model, *config.more_models)]
    threading.Thread(target=_work, args=(config, loaded), name="fastchat-loading", daemon=True).start()
    return loaded


def _work(config: ServeConfig, loaded: list[Future[Loaded]]) -> None:
    waiting = iter(loaded)
    future = next(waiting)
    try:
        wanted = _wanted(config)
        # What can be wrong with the settings is found before the weights are read.
        template = _template_file(config, wanted)
        _share_memory(config, wanted)
        for one in wanted:
            engine = _load_embedder(one, config) if one.encoder else _load(one, config)
            future.set_result(Loaded(one, engine, template))
            future = next(waiting, future)
    except BaseException as error:
        # Who waits for it raises it.
        future.set_exception(error)


def _wanted(config: ServeConfig) -> list[Wanted]:
    asked = [config.model, *config.more_models]
    located = [resolve(model) for model in asked]
    names = names_of(config, [one.name for one in located])
    alone, longest = len(asked) == 1, config.max_model_len
    return [
        Wanted(
            one,
            own,
            is_encoder(str(one.path)),
            max_model_len=longest,
            alone=alone,
            # MODEL's, as the other settings of one model.
            mmproj=(config.mmproj if one is located[0] else None) or one.mmproj,
        )
        for one, own in zip(located, names, strict=True)
    ]


def names_of(config: ServeConfig, own: list[str]) -> list[list[str]]:
    """Of each model: its own name first, then what was typed (unless it is a path), then the aliases."""
    names = [[name] for name in own]
    for typed, known in zip([config.model, *config.more_models], names, strict=True):
        if not Path(typed).exists() and typed not in known:
            known.append(typed)
    for alias in config.alias:
        name, given, target = alias.partition("=")
        found = next((known for known in names if target in known), None) if given else names[0]
        if found is None:
            raise ConfigError(f"alias: '{alias}' points to '{target}', which is not a served model")
        found.append(name)
    everything: set[str] = set()
    for known in names:
        known[:] = dict.fromkeys(known)
        twice = everything.intersection(known)
        if twice:
            raise ConfigError(f"model: two models would answer to '{min(twice)}'")
        everything.update(known)
    return names


def _share_memory(config: ServeConfig, wanted: list[Wanted]) -> None:
    """One budget for all caches, divided so that each holds as many of its model's longest sequences."""
    decoders = [one for one in wanted if not one.encoder]
    budget = None if config.kv_memory is None else parse_bytes(config.kv_memory, "kv_memory")
    if len(wanted) == 1:
        wanted[0].kv_memory = budget
        return
    if budget is None:
        budget = automatic_kv_memory(sum(ModelFiles.of(one.located.path).bytes for one in wanted))
    sequences = [_sequence_bytes(one) for one in decoders]
    for one, weight in zip(decoders, sequences, strict=True):
        one.kv_memory = budget * weight // sum(sequences)


def _sequence_bytes(wanted: Wanted) -> int:
    """Of the longest one. Among several models `max_model_len` is a bound, not a demand."""
    from fastchat_rs.inspection import cache_bytes

    found = json.loads(inspect_model(wanted.path, wanted.mmproj))
    token, state, _ = cache_bytes(found)
    own = found["spec"]["max_positions"]
    if wanted.max_model_len is not None:
        wanted.max_model_len = min(wanted.max_model_len, own)
    return token * (wanted.max_model_len or own) + state


def _load(wanted: Wanted, config: ServeConfig) -> Engine:
    return Engine(
        wanted.path,
        **loading(config.device, config.dtype),
        tensor_parallel_size=config.tensor_parallel_size,
        max_model_len=wanted.max_model_len,
        kv_memory=wanted.kv_memory,
        kv_dtype=cache_type(config.dtype, config.kv_dtype),
        max_batch_tokens=config.max_batch_tokens,
        max_num_seqs=config.max_num_seqs,
        max_queue=config.max_queue,
        enable_prefix_caching=config.prefix_caching,
        prefix_cache_dir=config.prefix_cache_dir,
        prefix_cache_size=parse_bytes(config.prefix_cache_size, "prefix_cache_size"),
        speculation=config.speculation,
        enforce_eager=config.enforce_eager,
        mask_timeout=config.mask_timeout,
        threads=config.threads,
        quantize=config.quantize,
        mmproj=wanted.mmproj,
    )


def _load_embedder(wanted: Wanted, config: ServeConfig) -> Embedder:
    need_one_device(wanted.located.name, config.tensor_parallel_size)

    def load(max_model_len: int | None) -> Embedder:
        return Embedder(
            wanted.path,
            **loading(config.device, config.dtype),
            max_model_len=max_model_len,
            threads=config.threads,
            quantize=config.quantize,
        )

    try:
        return load(wanted.max_model_len)
    except InvalidRequestError as error:
        if wanted.alone or error.param != "max_model_len":
            raise
        # Its positions end before that.
        return load(None)


def _template_file(config: ServeConfig, wanted: list[Wanted]) -> str | None:
    if config.chat_template is None:
        return None
    if sum(not one.encoder for one in wanted) > 1:
        raise ConfigError("chat_template: replaces the template of one model, and several are served")
    try:
        return Path(config.chat_template).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat_template: cannot read {config.chat_template}: {error}") from error
