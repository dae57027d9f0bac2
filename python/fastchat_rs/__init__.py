"""An LLM inference engine in Rust. This page is the whole public API; the server is `fastchat-rs serve`."""

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
    UnsupportedModelError,
    WeightsError,
    __version__,
)
from fastchat_rs.outputs import Chunk, CompletionOutput, Logprob, RequestOutput, Timings, Usage

__all__ = [
    "LLM",
    "CancelledError",
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
    "TemplateError",
    "Timings",
    "UnsupportedModelError",
    "Usage",
    "WeightsError",
    "__version__",
]
