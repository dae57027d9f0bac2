"""Registers what was loaded under its names: bridge, template, defaults. Reads no weights itself."""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Future

from fastchat_rs.device import say_device
from fastchat_rs.server.bridge import Bridge, Embedder
from fastchat_rs.server.state import Embedding, Served, State
from fastchat_rs.server.weights import Loaded, ModelFiles, begin
from fastchat_rs.template import ChatTemplate

log = logging.getLogger("fastchat_rs")


async def load_models(state: State, begun: Sequence[Future[Loaded]] | None = None) -> None:
    """Waits off the event loop, so that /health answers meanwhile; loads what nobody has `begun` to."""
    config = state.config
    for future in begin(config) if begun is None else begun:
        loaded = await asyncio.wrap_future(future)
        one, engine = loaded.wanted, loaded.engine
        files = ModelFiles.of(one.located.path)
        if isinstance(engine, Embedder):
            state.embeddings.update(dict.fromkeys(one.names, Embedding(one.located.name, engine, files)))
            continue
        info = engine.info()
        if config.prefix_cache_dir is not None:
            log.info("prefix cache on disk: %s: %s", one.located.name, info.prefix_disk)
        say_device(one.located.name, info, config.dtype, config.enforce_eager)
        source = loaded.template or info.chat_template
        template = ChatTemplate(source, info.bos_token, info.eos_token) if source else None
        defaults = info.generation_defaults if config.generation_config == "auto" else {}
        served = Served(one.located.name, Bridge(engine), template, defaults, files=files)
        state.models.update(dict.fromkeys(one.names, served))
