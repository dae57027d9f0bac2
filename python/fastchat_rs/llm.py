"""`LLM`: one model in this process, with vLLM's calls: batches, streams and their async twins. No HTTP words here."""

import asyncio
import json
import select
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastchat_rs import pictures
from fastchat_rs._engine import (
    CancelledError,
    ChatFormat,
    ContextLengthError,
    Embedder,
    Engine,
    EngineError,
    EngineStats,
    Image,
    InternalError,
    InvalidRequestError,
    MediaPrompt,
    ModelInfo,
    OverloadedError,
    SamplingParams,
    StructuredOutput,
    UnsupportedModelError,
    WeightsError,
    __version__,
    inspect,
    is_encoder,
    machine_limits,
)
from fastchat_rs.batches import Message, Prompt, conversations, progress_bar, several
from fastchat_rs.config import CacheType, DType, Quantize, cache_type, parse_bytes
from fastchat_rs.device import loading, need_one_device, say_device
from fastchat_rs.errors import ConfigError, TemplateError
from fastchat_rs.outputs import ChatMessage, Chunk, Collector, RequestOutput, chunk_of
from fastchat_rs.template import ChatTemplate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastchat_rs.hub import Located
    from fastchat_rs.server.bridge import Bridge

__all__ = [
    "LLM",
    "CancelledError",
    "ContextLengthError",
    "EngineError",
    "InternalError",
    "InvalidRequestError",
    "Message",
    "OverloadedError",
    "Prompt",
    "SamplingParams",
    "StructuredOutput",
    "ToolChoice",
    "UnsupportedModelError",
    "WeightsError",
    "__version__",
    "inspect_model",
    "machine_limits",
]

ToolChoice = Literal["none", "auto", "required"] | str
"""As OpenAI has it; another text is the name of the function to call."""

_AnyPrompt = str | Sequence[int] | MediaPrompt
_PARAMS = [name for name in dir(SamplingParams) if not name.startswith("_")]
# Half of the engine's queue, so that other callers of the same engine find room.
_WAITING_SHARE = 2
# A doorbell cannot be lost; this only bounds the time until Ctrl-C is seen.
_LOOK_SECONDS = 0.25


def inspect_model(model: str, mmproj: str | Path | None = None) -> str:
    """Resolved description, tensor kinds and bytes of a model as JSON, without loading its weights."""
    located = _located(model)
    return inspect(str(located.path), mmproj or located.mmproj)


def _located(model: str) -> "Located":
    # Imported late, so that `python -m fastchat_rs.hub` is not imported twice.
    from fastchat_rs.hub import resolve

    return resolve(model)


class LLM:
    """A loaded model. Safe to use from several threads; the engine batches whatever comes.

    `model` is a path, a Hugging Face id or a demo name. `device` is "auto" (a GPU if one can be used), "cpu", "cuda" or
    "cuda:N", which must be there; `tensor_parallel_size` GPUs from it on compute together. Weights keep their type;
    `dtype` is the cache's unless `kv_dtype` is given, and "bfloat16" also rounds the inputs of bf16 weights where the
    processor multiplies that. `kv_memory` is a number of bytes or a text such as "512MiB". `prefix_cache_dir` keeps
    prefixes for later runs. `quantize` rounds matrices stored as floats to blocks of few bits. `mmproj` is the tower's
    file of a GGUF model that takes pictures, if not beside it. `enforce_eager` launches each step of a GPU afresh.
    `skip_tokenizer_init=True` runs a folder without tokenizer on token ids. `embedder` is there where no text is made.
    Use it in `with`, or call `shutdown`, to give the memory back."""

    def __init__(  # noqa: PLR0913 - keywords, in vLLM's shape
        self,
        model: str | Path,
        *,
        device: str = "auto",
        tensor_parallel_size: int = 1,
        dtype: DType = "auto",
        kv_dtype: CacheType | None = None,
        skip_tokenizer_init: bool = False,
        max_model_len: int | None = None,
        kv_memory: int | str | None = None,
        max_num_batched_tokens: int = 512,
        max_num_seqs: int = 256,
        max_queue: int = 512,
        enable_prefix_caching: bool = True,
        prefix_cache_dir: str | Path | None = None,
        prefix_cache_size: int | str = "4GiB",
        speculation: bool = True,
        enforce_eager: bool = False,
        threads: int | None = None,
        chat_template: str | None = None,
        quantize: Quantize | None = None,
        mmproj: str | Path | None = None,
    ) -> None:
        located = _located(str(model))
        self.model, path = located.name, str(located.path)
        self._window = max(max_queue // _WAITING_SHARE, 1)
        self._template_source = chat_template
        self._template: ChatTemplate | None = None
        self._bridges: dict[asyncio.AbstractEventLoop, Bridge] = {}
        self._tokens: dict[int, str] = {}
        self._decoder: Engine | None = None
        self.embedder: Embedder | None = None
        both: dict[str, Any] = {**loading(device, dtype), "max_model_len": max_model_len, "threads": threads}
        both |= {"quantize": quantize, "skip_tokenizer_init": skip_tokenizer_init}
        if is_encoder(path):
            need_one_device(self.model, tensor_parallel_size)
            self.embedder = Embedder(path, **both)
            return
        self._decoder = Engine(
            path,
            **both,
            kv_memory=None if kv_memory is None else parse_bytes(str(kv_memory), "kv_memory"),
            kv_dtype=cache_type(dtype, kv_dtype),
            max_batch_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            max_queue=max_queue,
            enable_prefix_caching=enable_prefix_caching,
            prefix_cache_dir=prefix_cache_dir,
            prefix_cache_size=parse_bytes(str(prefix_cache_size), "prefix_cache_size"),
            speculation=speculation,
            enforce_eager=enforce_eager,
            tensor_parallel_size=tensor_parallel_size,
            mmproj=mmproj or located.mmproj,
        )
        say_device(self.model, self._decoder.info(), dtype, enforce_eager)

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        """Ends every request and frees the model. Twice does no harm."""
        for loaded in (self._decoder, self.embedder):
            if loaded is not None:
                loaded.shutdown()

    @property
    def _engine(self) -> Engine:
        if self._decoder is None:
            raise ConfigError(f"{self.model} is an encoder: it makes embeddings and generates no text; use embed")
        return self._decoder

    def embed(self, inputs: Prompt | Sequence[Prompt]) -> "NDArray[np.float32]":
        """One row per text (or list of token ids) of an encoder, pooled and normalised as its authors say.

        Nothing is cut off: a text longer than the model takes is an `InvalidRequestError`.
        """
        import numpy as np

        if self.embedder is None:
            raise ConfigError(f"{self.model} generates text; embed needs an encoder")
        vectors, _ = self.embedder.embed(several(inputs))
        flat: NDArray[np.float32] = np.frombuffer(b"".join(vectors), np.float32)
        return flat.reshape(len(vectors), self.embedder.dimensions)  # pyright: ignore[reportUnknownMemberType]

    @property
    def info(self) -> ModelInfo:
        """What was loaded."""
        return self._engine.info()

    def stats(self) -> EngineStats:
        """Counters and gauges of the engine."""
        return self._engine.stats()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Text -> token ids; special tokens in the text are recognised."""
        if self.embedder is not None:
            return self.embedder.encode(text, add_special_tokens=add_special_tokens)
        return self._engine.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Token ids -> text."""
        return self._engine.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answers one prompt or many, in order. A bar shows the progress of several (`use_tqdm`, vLLM's word).

        The first prompt that is refused, or fails, raises its error and ends the others.
        """
        many = several(prompts)
        return self._run(many, _params(sampling_params, len(many)), special=True, bar=use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: ToolChoice = "auto",
        **template: Any,
    ) -> list[RequestOutput]:
        """As `generate`, for one conversation or many; `template` as in `render`.

        A content may be a list of parts: `{"type": "text", "text": ...}` and pictures, `{"type": "image", "image": x}`
        or OpenAI's `image_url`. `x` is a path, the bytes of a file, a data URL, a PIL image or a uint8 array.

        `tools` is OpenAI's list. `outputs[i].message` is the answer taken apart: content, reasoning, tool calls. What
        `structured` demands begins after the reasoning.
        """
        chats = self._chats(messages, _Tools(tools, tool_choice), template)
        params = chats.params(_params(sampling_params, len(chats.texts)))
        return chats.read(self._run(chats.prompts, params, special=False, bar=use_tqdm))

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[Chunk]:
        """The answer piece by piece. Leaving the loop, or closing the iterator, aborts the request."""
        return self._stream(prompt, sampling_params or SamplingParams(), special=True)

    def chat_stream(
        self, messages: Sequence[Message], sampling_params: SamplingParams | None = None, **template: Any
    ) -> Iterator[Chunk]:
        """As `stream`, for a conversation."""
        _, prompt = self._chat_prompt(messages, template)
        return self._stream(prompt, sampling_params or SamplingParams(), special=False)

    async def agenerate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """`generate` for event loops."""
        many = several(prompts)
        return await self._arun(many, _params(sampling_params, len(many)), special=True)

    async def achat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: ToolChoice = "auto",
        **template: Any,
    ) -> list[RequestOutput]:
        """`chat` for event loops."""
        chats = self._chats(messages, _Tools(tools, tool_choice), template)
        params = chats.params(_params(sampling_params, len(chats.texts)))
        return chats.read(await self._arun(chats.prompts, params, special=False))

    def astream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> AsyncIterator[Chunk]:
        """`stream` for event loops. Cancelling the task aborts the request."""
        return self._astream(prompt, sampling_params or SamplingParams(), special=True)

    def achat_stream(
        self, messages: Sequence[Message], sampling_params: SamplingParams | None = None, **template: Any
    ) -> AsyncIterator[Chunk]:
        """`chat_stream` for event loops."""
        _, prompt = self._chat_prompt(messages, template)
        return self._astream(prompt, sampling_params or SamplingParams(), special=False)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt that the model's chat template makes of a conversation."""
        return self.template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=chat_template_kwargs,
        )

    @property
    def template(self) -> ChatTemplate:
        """The model's chat template, or the one given instead."""
        if self._template is None:
            info = self.info
            source = self._template_source or info.chat_template
            if source is None:
                raise TemplateError("this model has no chat template; use generate, or give LLM a chat_template")
            self._template = ChatTemplate(source, info.bos_token, info.eos_token)
        return self._template

    def _chats(self, messages: Any, tools: "_Tools", template: Mapping[str, Any]) -> "_Chats":
        shown = {**template, "tools": tools.shown}
        both = [self._chat_prompt(conversation, shown) for conversation in conversations(messages)]
        format = self._engine.chat_format(self.template.source)
        return _Chats([text for text, _ in both], [prompt for _, prompt in both], tools, format)

    def _chat_prompt(self, messages: Sequence[Message], template: Mapping[str, Any]) -> "tuple[str, _AnyPrompt]":
        """The prompt of a conversation as text, and as the engine takes it."""
        shaped, found = pictures.taken(messages)
        info = self.info
        if not info.takes_images:
            if found:
                raise ConfigError(f"{found[0][0]}: {self.model} does not support image input")
            text = self.render(messages, **template)
            return text, text
        places = pictures.Places(self._engine.fence, info.image_marker)
        rendered = self.render(places.shown(shaped, self.template), **template)
        segments = places.segments(rendered)
        if not found and not any(literal for _, literal in segments):
            return rendered, rendered
        return places.plain(rendered), MediaPrompt(segments, [_image(*one) for one in found])

    def _token(self, token_id: int) -> str:
        if token_id not in self._tokens:
            raw = self._engine.token_bytes(token_id) if self.info.has_tokenizer else b""
            self._tokens[token_id] = raw.decode("utf-8", "replace")
        return self._tokens[token_id]

    def _collector(self, prompt: "_AnyPrompt", handle: Any) -> Collector:
        return Collector(handle, prompt if isinstance(prompt, str) else None, self._token)

    def _run(
        self, prompts: "Sequence[_AnyPrompt]", params: list[SamplingParams], *, special: bool, bar: bool
    ) -> list[RequestOutput]:
        doorbell = self._engine.subscribe()
        waiting = list(enumerate(zip(prompts, params, strict=True)))[::-1]
        running: dict[int, tuple[int, Collector]] = {}
        done: dict[int, RequestOutput] = {}
        try:
            with progress_bar(bar and len(prompts) > 1) as progress:
                task = progress.add_task("prompts", total=len(prompts)) if progress else None
                while waiting or running:
                    while waiting and len(running) < self._window:
                        place, (prompt, wanted) = waiting.pop()
                        handle = doorbell.submit(prompt, wanted, add_special_tokens=special)
                        running[handle.id] = (place, self._collector(prompt, handle))
                    select.select([doorbell.fileno()], [], [], _LOOK_SECONDS)
                    for id in doorbell.ready():
                        # News that came while its request was read may be of one that has ended since.
                        if id not in running:
                            continue
                        place, collector = running[id]
                        collector.add(collector.handle.take())
                        if collector.handle.finished:
                            done[place] = collector.output()
                            del running[id]
                            if progress and task is not None:
                                progress.update(task, advance=1)
        finally:
            for _, collector in running.values():
                collector.handle.abort()
            doorbell.close()
        return [done[place] for place in range(len(prompts))]

    def _stream(self, prompt: "_AnyPrompt", params: SamplingParams, *, special: bool) -> Iterator[Chunk]:
        handle = self._engine.submit(prompt, params, add_special_tokens=special)
        try:
            while not handle.finished:
                for delta in handle.wait(_LOOK_SECONDS):
                    if delta.error is not None:
                        raise delta.error
                    yield chunk_of(delta, self._token)
        finally:
            handle.abort()

    def _bridge(self) -> "Bridge":
        from fastchat_rs.server.bridge import Bridge

        loop = asyncio.get_running_loop()
        if loop not in self._bridges:
            for old in [old for old in self._bridges if old.is_closed()]:
                self._bridges.pop(old).close()
            self._bridges[loop] = Bridge(self._engine)
        return self._bridges[loop]

    async def _arun(
        self, prompts: "Sequence[_AnyPrompt]", params: list[SamplingParams], *, special: bool
    ) -> list[RequestOutput]:
        room = asyncio.Semaphore(self._window)

        async def one(prompt: _AnyPrompt, wanted: SamplingParams) -> RequestOutput:
            async with room:
                generation = await self._bridge().submit([prompt], wanted, add_special_tokens=special)
                try:
                    collector = self._collector(prompt, generation.handles[0])
                    while not generation.finished:
                        collector.add([delta for _, delta in await generation.news(_LOOK_SECONDS)])
                    return collector.output()
                finally:
                    generation.close()

        tasks = [asyncio.ensure_future(one(*pair)) for pair in zip(prompts, params, strict=True)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _astream(self, prompt: "_AnyPrompt", params: SamplingParams, *, special: bool) -> AsyncIterator[Chunk]:
        generation = await self._bridge().submit([prompt], params, add_special_tokens=special)
        try:
            while not generation.finished:
                for _, delta in await generation.news(_LOOK_SECONDS):
                    yield chunk_of(delta, self._token)
        finally:
            generation.close()


@dataclass(frozen=True)
class _Tools:
    """What `chat` is given to call."""

    offered: Sequence[Mapping[str, Any]] | None
    choice: ToolChoice

    @property
    def shown(self) -> Sequence[Mapping[str, Any]] | None:
        return self.offered if self.offered and self.choice != "none" else None

    @property
    def json(self) -> str | None:
        return json.dumps(self.shown) if self.shown else None


@dataclass(frozen=True)
class _Chats:
    """Rendered conversations and the format that the model answers in."""

    texts: list[str]
    prompts: "list[_AnyPrompt]"
    tools: _Tools
    format: ChatFormat

    def params(self, given: list[SamplingParams]) -> list[SamplingParams]:
        return [self._one(prompt, params) for prompt, params in zip(self.texts, given, strict=True)]

    def _one(self, prompt: str, params: SamplingParams) -> SamplingParams:
        tools = self.tools.json
        changed: dict[str, Any] = {}
        if tools and self.tools.choice != "auto":
            changed["structured"] = self.format.constrain(prompt, tools=tools, choice=self.tools.choice, parallel=True)
        elif params.structured is not None:
            changed["structured"] = self.format.after_thinking(prompt, params.structured)
        if self.format.needs_special_tokens and (tools or self.format.reasoning):
            changed["skip_special_tokens"] = False
        return SamplingParams(**{**{name: getattr(params, name) for name in _PARAMS}, **changed}) if changed else params

    def read(self, outputs: list[RequestOutput]) -> list[RequestOutput]:
        return [self._taken_apart(prompt, output) for prompt, output in zip(self.texts, outputs, strict=True)]

    def _taken_apart(self, prompt: str, output: RequestOutput) -> RequestOutput:
        parser = partial(self.format.parser, prompt, tools=self.tools.json)
        return replace(output, outputs=[replace(o, message=ChatMessage.read(parser(), o.text)) for o in output.outputs])


def _image(place: str, picture: Any, detail: str) -> Image:
    if (pixels := pictures.pixels_of(picture, place)) is not None:
        return Image.pixels(*pixels, detail=detail)
    return Image.encoded(pictures.file_of(picture, place), detail=detail)


def _params(given: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if given is None or isinstance(given, SamplingParams):
        return [given or SamplingParams()] * count
    if len(given) != count:
        raise ConfigError(f"sampling_params: {len(given)} for {count} prompts")
    return list(given)
