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
    StructuredOutput,
    UnsupportedModelError,
    WeightsError,
    __version__,
)
from fastchat_rs.outputs import ChatMessage, Chunk, CompletionOutput, Logprob, RequestOutput, Timings, ToolCall, Usage

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
