"""Loads what the settings name and registers it under its names."""

import asyncio
from pathlib import Path

from fastchat_rs.config import ServeConfig, parse_bytes
from fastchat_rs.device import cuda_libraries
from fastchat_rs.errors import ConfigError
from fastchat_rs.hub import resolve
from fastchat_rs.server.bridge import Bridge, Embedder, Engine, is_encoder
from fastchat_rs.server.state import Embedding, Served, State
from fastchat_rs.template import ChatTemplate


async def load_models(state: State) -> None:
    """Fetches and loads off the event loop, so that /health answers meanwhile."""
    config = state.config
    loop = asyncio.get_running_loop()
    located = await loop.run_in_executor(None, resolve, config.model)
    # What can be wrong with the settings is found before the weights are read.
    names, replacement = _names(config, located.name), _template_file(config)
    path = str(located.path)
    if await loop.run_in_executor(None, is_encoder, path):
        embedder = await loop.run_in_executor(None, _load_embedder, path, config)
        state.embeddings.update(dict.fromkeys(names, Embedding(located.name, embedder)))
        return
    engine = await loop.run_in_executor(None, _load, path, config)
    info = engine.info()
    source = replacement or info.chat_template
    template = ChatTemplate(source, info.bos_token, info.eos_token) if source else None
    defaults = info.generation_defaults if config.generation_config == "auto" else {}
    served = Served(located.name, Bridge(engine), template, defaults)
    state.models.update(dict.fromkeys(names, served))


def _load(path: str, config: ServeConfig) -> Engine:
    return Engine(
        path,
        device=config.device,
        cuda_libraries=cuda_libraries(),
        max_model_len=config.max_model_len,
        kv_memory=None if config.kv_memory is None else parse_bytes(config.kv_memory, "kv_memory"),
        kv_dtype=config.kv_dtype,
        max_batch_tokens=config.max_batch_tokens,
        max_num_seqs=config.max_num_seqs,
        max_queue=config.max_queue,
        enable_prefix_caching=config.prefix_caching,
        speculation=config.speculation,
        threads=config.threads,
    )


def _load_embedder(path: str, config: ServeConfig) -> Embedder:
    return Embedder(
        path,
        device=config.device,
        cuda_libraries=cuda_libraries(),
        max_model_len=config.max_model_len,
        threads=config.threads,
    )


def _template_file(config: ServeConfig) -> str | None:
    if config.chat_template is None:
        return None
    try:
        return Path(config.chat_template).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat_template: cannot read {config.chat_template}: {error}") from error


def _names(config: ServeConfig, own: str) -> list[str]:
    """The model's own name first, then what was typed (unless it is a path), then the aliases."""
    names = [own]
    if not Path(config.model).exists():
        names.append(config.model)
    for alias in config.alias:
        name, given, target = alias.partition("=")
        if given and target not in names:
            raise ConfigError(f"alias: '{alias}' points to '{target}', which is not a served model")
        names.append(name)
    return list(dict.fromkeys(names))
