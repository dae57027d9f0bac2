"""An LLM inference engine in Rust. This page is the whole public API; the server is `fastchat-rs serve`."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastchat_rs.errors import ConfigError, FastchatError, ModelNotFoundError, TemplateError
    from fastchat_rs.llm import (
        LLM,
        CancelledError,
        ContextLengthError,
        EngineError,
        InternalError,
        InvalidRequestError,
        OverloadedError,
        SamplingParams,
        StructuredOutput,
        UnsupportedModelError,
        WeightsError,
        __version__,
    )
    from fastchat_rs.outputs import (
        ChatMessage,
        Chunk,
        CompletionOutput,
        Logprob,
        RequestOutput,
        Timings,
        ToolCall,
        Usage,
    )

__all__ = [
    "LLM",
    "CancelledError",
    "ChatMessage",
    "Chunk",
    "CompletionOutput",
    "ConfigError",
    "ContextLengthError",
    "EngineError",
    "FastchatError",
    "InternalError",
    "InvalidRequestError",
    "Logprob",
    "ModelNotFoundError",
    "OverloadedError",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutput",
    "TemplateError",
    "Timings",
    "ToolCall",
    "UnsupportedModelError",
    "Usage",
    "WeightsError",
    "__version__",
]

_HOMES = ("errors", "llm", "outputs")


def __getattr__(name: str) -> object:
    """What is asked for is imported then: the command line starts a server without most of it."""
    if name in __all__:
        for home in _HOMES:
            found = getattr(import_module(f"fastchat_rs.{home}"), name, None)
            if found is not None:
                globals()[name] = found
                return found
    raise AttributeError(f"module 'fastchat_rs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
