"""What the OpenAPI document says of each route: its types and examples of its body. Makes no document."""

from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from fastchat_rs.server import protocol, rerank
from fastchat_rs.server.anthropic import protocol as anthropic
from fastchat_rs.server.ollama import protocol as ollama
from fastchat_rs.server.responses import events
from fastchat_rs.server.responses import protocol as responses

Example = dict[str, Any]


@dataclass(frozen=True)
class Operation:
    """One method of one path. A stream's chunks are in `chunk`, with their content type."""

    path: str
    method: str
    summary: str
    body: type[Struct] | None = None
    reply: type[Struct] | None = None
    error: type[Struct] = protocol.ErrorReply
    chunk: tuple[str, Any] | None = None
    examples: dict[str, Example] = field(default_factory=dict[str, Example])
    query: dict[str, str] = field(default_factory=dict[str, str])
    """Numbers in the query, with what they mean."""


_EVENTS = "text/event-stream"
_LINES = "application/x-ndjson"
_QUESTION = "What is the weather in Paris?"
_TALK: Example = {"model": "demo", "messages": [{"role": "user", "content": _QUESTION}]}
_CITY: Example = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_WEATHER: Example = {"name": "get_weather", "description": "The weather of a city", "parameters": _CITY}
_TOOL: Example = {"type": "function", "function": _WEATHER}
_RERANK: Example = {"model": "reranker", "query": "Do cats sleep?", "documents": ["A cat sleeps.", "The market fell."]}

OPERATIONS = [
    Operation(
        "/v1/chat/completions",
        "post",
        "Answer a conversation",
        protocol.ChatRequest,
        protocol.ChatCompletion,
        chunk=(_EVENTS, protocol.ChatCompletionChunk),
        examples={
            "plain": {**_TALK, "max_tokens": 64},
            "stream": {**_TALK, "stream": True, "stream_options": {"include_usage": True}},
            "tools": {**_TALK, "tools": [_TOOL], "tool_choice": "auto"},
            "json_schema": {
                **_TALK,
                "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": _CITY}},
            },
        },
    ),
    Operation(
        "/v1/chat/completions/{id}/events",
        "get",
        "Go on with a stream that was cut off",
        chunk=(_EVENTS, protocol.ChatCompletionChunk),
        query={"after": "How many events the client has"},
    ),
    Operation(
        "/v1/completions",
        "post",
        "Go on from a text",
        protocol.CompletionRequest,
        protocol.Completion,
        chunk=(_EVENTS, protocol.Completion),
        examples={
            "plain": {"model": "demo", "prompt": "The capital of France is", "max_tokens": 8},
            "choice": {"model": "demo", "prompt": "Is water wet?", "choice": ["yes", "no"]},
        },
    ),
    Operation(
        "/v1/embeddings",
        "post",
        "Texts to vectors",
        protocol.EmbeddingRequest,
        protocol.EmbeddingReply,
        examples={"plain": {"model": "minilm", "input": ["A cat sleeps.", "The market fell."]}},
    ),
    *(
        Operation(
            path,
            "post",
            "How well documents answer a query",
            rerank.RerankRequest,
            rerank.RerankReply,
            examples={"plain": {**_RERANK, "top_n": 1}},
        )
        for path in ("/v1/rerank", "/v2/rerank", "/rerank")
    ),
    Operation("/v1/models", "get", "Names of the models", reply=protocol.ModelList),
    Operation("/v1/models/{id}", "get", "One model", reply=protocol.ModelCard),
    *(
        Operation(
            path,
            "post",
            "Text to token ids",
            protocol.TokenizeRequest,
            protocol.TokenizeReply,
            examples={"plain": {"model": "demo", "prompt": "Hello"}},
        )
        for path in ("/v1/tokenize", "/tokenize")
    ),
    *(
        Operation(
            path,
            "post",
            "Token ids to text",
            protocol.DetokenizeRequest,
            protocol.DetokenizeReply,
            examples={"plain": {"model": "demo", "tokens": [1, 2, 3]}},
        )
        for path in ("/v1/detokenize", "/detokenize")
    ),
    Operation(
        "/v1/responses",
        "post",
        "Answer, and keep the answer",
        responses.ResponsesRequest,
        responses.Response,
        chunk=(_EVENTS, events.Event),
        examples={
            "plain": {"model": "demo", "input": _QUESTION, "max_output_tokens": 64},
            "tools": {"model": "demo", "input": _QUESTION, "tools": [{"type": "function", **_WEATHER}]},
            "background": {"model": "demo", "input": _QUESTION, "background": True},
        },
    ),
    Operation("/v1/responses/{id}", "get", "A stored response", reply=responses.Response),
    Operation("/v1/responses/{id}", "delete", "Forget a stored response", reply=responses.Deleted),
    Operation("/v1/responses/{id}/cancel", "post", "End a response in the background", reply=responses.Response),
    Operation(
        "/v1/messages",
        "post",
        "Anthropic's way to answer a conversation",
        anthropic.MessagesRequest,
        anthropic.Reply,
        anthropic.Error,
        (_EVENTS, anthropic.Event),
        {
            "plain": {**_TALK, "max_tokens": 64},
            "tools": {**_TALK, "max_tokens": 64, "tools": [{"name": "get_weather", "input_schema": _CITY}]},
        },
    ),
    Operation(
        "/v1/messages/count_tokens",
        "post",
        "Tokens of a conversation",
        anthropic.CountRequest,
        anthropic.CountReply,
        anthropic.Error,
        examples={"plain": _TALK},
    ),
    Operation(
        "/api/chat",
        "post",
        "Ollama's way to answer a conversation",
        ollama.ChatBody,
        ollama.ChatReply,
        ollama.Error,
        (_LINES, ollama.ChatReply),
        {"plain": {**_TALK, "stream": False, "options": {"num_predict": 64}}, "tools": {**_TALK, "tools": [_TOOL]}},
    ),
    Operation(
        "/api/generate",
        "post",
        "Ollama's way to answer a prompt",
        ollama.GenerateBody,
        ollama.GenerateReply,
        ollama.Error,
        (_LINES, ollama.GenerateReply),
        {"plain": {"model": "demo", "prompt": _QUESTION, "stream": False}},
    ),
    Operation(
        "/api/embed",
        "post",
        "Ollama's way to vectors",
        ollama.EmbedBody,
        ollama.EmbedReply,
        ollama.Error,
        examples={"plain": {"model": "minilm", "input": ["A cat sleeps."]}},
    ),
    Operation(
        "/api/embeddings",
        "post",
        "Ollama's former way to a vector",
        ollama.LegacyEmbedBody,
        ollama.LegacyEmbedReply,
        ollama.Error,
        examples={"plain": {"model": "minilm", "prompt": "A cat sleeps."}},
    ),
    Operation("/api/tags", "get", "The models, for Ollama's clients", None, ollama.ModelEntries, ollama.Error),
    Operation("/api/ps", "get", "The loaded models, which are all", None, ollama.ModelEntries, ollama.Error),
    Operation(
        "/api/show",
        "post",
        "What a model can do",
        ollama.ShowBody,
        ollama.ShowReply,
        ollama.Error,
        examples={"plain": {"model": "demo"}},
    ),
    Operation("/api/version", "get", "The server's version", None, ollama.VersionReply, ollama.Error),
    Operation("/health", "get", "Whether requests are served"),
    Operation("/ping", "get", "The same under vLLM's name"),
    Operation("/ping", "post", "The same"),
    Operation("/version", "get", "The server's version", reply=protocol.VersionReply),
    Operation("/metrics", "get", "Prometheus text"),
    Operation("/openapi.json", "get", "This document"),
]
