"""Loads what the settings name, each model with its own engine, and registers it under its names."""

import asyncio
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from fastchat_rs.config import ServeConfig, parse_bytes
from fastchat_rs.device import placement
from fastchat_rs.errors import ConfigError
from fastchat_rs.hub import Located, resolve
from fastchat_rs.inspection import cache_bytes
from fastchat_rs.server.bridge import (
    Bridge,
    Embedder,
    Engine,
    InvalidRequestError,
    automatic_kv_memory,
    inspect_model,
    is_encoder,
)
from fastchat_rs.server.state import Embedding, ModelFiles, Served, State
from fastchat_rs.template import ChatTemplate

log = logging.getLogger("fastchat_rs")


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


async def load_models(state: State) -> None:
    """Fetches and loads off the event loop, so that /health answers meanwhile."""
    config = state.config
    loop = asyncio.get_running_loop()
    wanted = await loop.run_in_executor(None, _wanted, config)
    # What can be wrong with the settings is found before the weights are read.
    replacement = _template_file(config, wanted)
    await loop.run_in_executor(None, _share_memory, config, wanted)
    for one in wanted:
        files = ModelFiles.of(one.located.path)
        if one.encoder:
            embedder = await loop.run_in_executor(None, _load_embedder, one, config)
            state.embeddings.update(dict.fromkeys(one.names, Embedding(one.located.name, embedder, files)))
            continue
        engine = await loop.run_in_executor(None, _load, one, config)
        info = engine.info()
        if config.prefix_cache_dir is not None:
            log.info("prefix cache on disk: %s: %s", one.located.name, info.prefix_disk)
        source = replacement or info.chat_template
        template = ChatTemplate(source, info.bos_token, info.eos_token) if source else None
        defaults = info.generation_defaults if config.generation_config == "auto" else {}
        served = Served(one.located.name, Bridge(engine), template, defaults, files=files)
        state.models.update(dict.fromkeys(one.names, served))


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
    found = json.loads(inspect_model(wanted.path, wanted.mmproj))
    token, state, _ = cache_bytes(found)
    own = found["spec"]["max_positions"]
    if wanted.max_model_len is not None:
        wanted.max_model_len = min(wanted.max_model_len, own)
    return token * (wanted.max_model_len or own) + state


def _load(wanted: Wanted, config: ServeConfig) -> Engine:
    return Engine(
        wanted.path,
        **placement(config.device),
        max_model_len=wanted.max_model_len,
        kv_memory=wanted.kv_memory,
        kv_dtype=config.kv_dtype,
        max_batch_tokens=config.max_batch_tokens,
        max_num_seqs=config.max_num_seqs,
        max_queue=config.max_queue,
        enable_prefix_caching=config.prefix_caching,
        prefix_cache_dir=config.prefix_cache_dir,
        prefix_cache_size=parse_bytes(config.prefix_cache_size, "prefix_cache_size"),
        speculation=config.speculation,
        mask_timeout=config.mask_timeout,
        threads=config.threads,
        quantize=config.quantize,
        mmproj=wanted.mmproj,
    )


def _load_embedder(wanted: Wanted, config: ServeConfig) -> Embedder:
    def load(max_model_len: int | None) -> Embedder:
        return Embedder(
            wanted.path,
            **placement(config.device),
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
