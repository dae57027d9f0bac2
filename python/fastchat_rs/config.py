"""Settings: one table of fields, one precedence, checked whole before anything is loaded. Knows no command line.

Command line > environment (`FASTCHAT_<FIELD>`, lists separated by commas) > TOML file (`--config` or FASTCHAT_CONFIG,
keys as the fields below) > the defaults below.
"""

import ipaddress
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from fastchat_rs.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Quantize = Literal["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k"]
"""Kinds that weights can be rounded to."""
ConfigT = TypeVar("ConfigT", bound="EngineConfig")
SIZES = frozenset(
    {
        *("kv_memory", "memory_limit", "response_cache_size", "resume_memory", "prefix_cache_size"),
        *("max_response_store", "max_body", "max_header", "max_stream_memory", "max_stream"),
    }
)
"""Fields that hold a number of bytes, as text with a unit."""
# hyper's own least buffer: with less it takes no connection.
_LEAST_BYTES = {"max_header": 8192}


DType = Literal["auto", "float16", "bfloat16", "float32"]
"""vLLM's names."""
CacheType = Literal["f16", "bf16", "f32"]
CACHE_TYPES: dict[DType, CacheType | None] = {"auto": None, "float16": "f16", "bfloat16": "bf16", "float32": "f32"}


def cache_type(dtype: DType, kv_dtype: CacheType | None) -> CacheType | None:
    """Of the KV cache: `kv_dtype`, or else what `dtype` says; `None` is what suits the weights."""
    if dtype not in CACHE_TYPES:
        raise ConfigError(f"dtype: '{dtype}' is none of {', '.join(CACHE_TYPES)}")
    if kv_dtype not in CACHE_TYPES.values():
        raise ConfigError(f"kv_dtype: '{kv_dtype}' is none of f16, bf16, f32")
    return kv_dtype or CACHE_TYPES[dtype]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every command that loads a model can be told. The text beside each field is its help."""

    model: Annotated[str, Meta(description="Path of a .gguf file or model folder, Hugging Face id, or demo name")]
    device: Annotated[str, Meta(description="auto (a GPU if one can be used), cpu, cuda or cuda:N")] = "auto"
    tensor_parallel_size: Annotated[
        int,
        Meta(ge=1, le=64, description="GPUs that compute the model together, from device on; others than CUDA are one"),
    ] = 1
    max_model_len: Annotated[Count | None, Meta(description="Longest context in tokens (default: the model's)")] = None
    kv_memory: Annotated[str | None, Meta(description="Memory of the KV cache, as 512MiB or 2GiB (default: auto)")] = (
        None
    )
    dtype: Annotated[
        DType,
        Meta(
            description="bfloat16 rounds the inputs of bf16 weights to bf16 where the device multiplies that, as auto "
            "does on a GPU; else products are in f32. float16, bfloat16 and float32 are also the type of the KV cache"
        ),
    ] = "auto"
    kv_dtype: Annotated[
        CacheType | None,
        Meta(description="Type of the KV cache: f16, bf16 or f32 (default: what dtype says, or the weights)"),
    ] = None
    max_batch_tokens: Annotated[int, Meta(ge=16, description="Token budget of one engine step")] = 512
    max_num_seqs: Annotated[Count, Meta(description="Most sequences in one step")] = 256
    max_queue: Annotated[Count, Meta(description="Most waiting requests; more are refused")] = 512
    prefix_caching: Annotated[bool, Meta(description="Reuse the cache of common prompt beginnings")] = True
    prefix_cache_dir: Annotated[
        str | None, Meta(description="Folder that keeps the cache of prompt beginnings over a restart")
    ] = None
    prefix_cache_size: Annotated[str, Meta(description="Bytes that folder may hold; the oldest used leave")] = "4GiB"
    speculation: Annotated[
        bool, Meta(description="Check ahead what the text suggests; the tokens chosen are the same, sooner")
    ] = True
    enforce_eager: Annotated[bool, Meta(description="Launch every step of a GPU afresh, capture no CUDA graphs")] = (
        False
    )
    threads: Annotated[Count | None, Meta(description="Compute threads (default: what the machine grants)")] = None
    quantize: Annotated[
        Quantize | None,
        Meta(description="Round weights stored as floats: q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k or q6_k"),
    ] = None
    mmproj: Annotated[
        str | None, Meta(description="File of a GGUF model's tower for pictures (default: the mmproj*.gguf beside it)")
    ] = None
    chat_template: Annotated[str | None, Meta(description="File with a chat template that replaces the model's")] = None

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.prefix_cache_dir is not None and not self.prefix_caching:
            raise ConfigError("prefix_cache_dir: keeps blocks of the prefix cache, which prefix_caching turns off")
        for field in SIZES & set(self.__struct_fields__):
            value = getattr(self, field)
            if value is not None and parse_bytes(value, field) < _LEAST_BYTES.get(field, 1):
                raise ConfigError(f"{field}: '{value}' is less than the least, {_LEAST_BYTES[field]} bytes")


class DoctorConfig(EngineConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `fastchat-rs doctor` can be told."""

    model: Annotated[str, Meta(description="What is to be checked; without it the device alone is")] = ""
    parity: Annotated[
        str | None, Meta(description="Folder with families of the parity set, to check the device with")
    ] = None


class ServeConfig(EngineConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything `fastchat-rs serve` can be told."""

    more_models: Annotated[list[str], Meta(description="Models that are served beside MODEL")] = []
    host: Annotated[str, Meta(description="IP address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port; 0 takes a free one")] = 8000
    alias: Annotated[list[str], Meta(description="NAME=ID, or NAME alone for MODEL; may be repeated")] = []
    api_key: Annotated[list[str], Meta(description="Accepted API key; may be repeated; none = open")] = []
    keys: Annotated[
        str | None, Meta(description="JSON file or SQLite database (.db) of keys with limits; see `fastchat-rs keys`")
    ] = None
    usage_db: Annotated[str | None, Meta(description="Database of each key's usage (default: beside the keys)")] = None
    limits_url: Annotated[
        str | None, Meta(description="redis://HOST:PORT/DB that counts the limits a minute of several replicas")
    ] = None
    price: Annotated[
        list[str], Meta(description="MODEL=IN/OUT, the price of a million tokens; MODEL * is any; may be repeated")
    ] = []
    insecure: Annotated[bool, Meta(description="Serve without keys on an address that is not loopback")] = False
    cors_origin: Annotated[list[str], Meta(description="Origin that browsers may call from; may be repeated")] = []
    allowed_host: Annotated[
        list[str], Meta(description="Extra Host header accepted when listening on loopback; may be repeated")
    ] = []
    allowed_image_domains: Annotated[
        list[str],
        Meta(description="Host that pictures are fetched from, *.example.com for those below it; may be repeated"),
    ] = []
    generation_config: Annotated[
        Literal["auto", "none"], Meta(description="auto: sampling defaults come from the model's generation_config")
    ] = "none"

    max_body: Annotated[str, Meta(description="Largest request body")] = "32MiB"
    max_n: Annotated[Count, Meta(description="Largest n")] = 16
    max_stop: Annotated[Count, Meta(description="Most stop strings")] = 16
    max_logprobs: Annotated[int, Meta(ge=0, description="Largest top_logprobs")] = 20
    max_tools: Annotated[int, Meta(ge=1, description="Most tools of a request")] = 128
    max_json_depth: Annotated[Count, Meta(description="Deepest nesting of a request body")] = 128
    max_header: Annotated[str, Meta(description="Largest request header block, from 8KiB")] = "16KiB"
    body_timeout: Annotated[Seconds, Meta(description="Seconds a request body may take to arrive")] = 30.0
    request_timeout: Annotated[Seconds, Meta(description="Seconds until a request is given up")] = 600.0
    stall_timeout: Annotated[Seconds, Meta(description="Seconds until a client that reads nothing is cut off")] = 45.0
    first_token_timeout: Annotated[Seconds, Meta(description="Seconds until a request must have its first token")] = (
        300.0
    )
    mask_timeout: Annotated[Seconds, Meta(le=600, description="Seconds to find what may come next in a schema")] = 1.0
    queue_timeout: Annotated[Seconds, Meta(description="Seconds a request may wait to begin")] = 120.0
    heartbeat: Annotated[Seconds, Meta(description="Seconds between comments on a silent stream")] = 10.0
    drain: Annotated[float, Meta(ge=0, description="Seconds that running requests get on SIGTERM")] = 30.0
    max_stream_memory: Annotated[str, Meta(description="Bytes all open streams may have sent before 503")] = "1GiB"
    max_stream: Annotated[str, Meta(description="Bytes one stream may send")] = "64MiB"
    max_connections: Annotated[
        Count | None, Meta(description="Most open connections (default: what the limit of open files allows)")
    ] = None
    memory_limit: Annotated[
        str | None,
        Meta(description="Memory of the process before it refuses work (default: the machine's or cgroup's)"),
    ] = None
    response_cache: Annotated[
        str | None, Meta(description="memory, or a file: keep whole answers of deterministic requests")
    ] = None
    response_cache_size: Annotated[str, Meta(description="Bytes of kept answers")] = "256MiB"
    resume: Annotated[float, Meta(ge=0, description="Seconds a stream waits for its client to come back; 0 = off")] = (
        60.0
    )
    resume_memory: Annotated[str, Meta(description="Bytes of events kept for clients that come back")] = "64MiB"
    log_format: Annotated[Literal["text", "json"], Meta(description="text or json: lines of the log on stderr")] = (
        "text"
    )
    max_response_store: Annotated[str, Meta(description="Bytes of stored responses; the oldest leave")] = "64MiB"
    otlp_endpoint: Annotated[
        str | None, Meta(description="URL of an OpenTelemetry collector's traces, such as http://HOST:4318/v1/traces")
    ] = None
    access_log: Annotated[bool, Meta(description="One JSON line per request on stderr")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            raise ConfigError(f"host: '{self.host}' is not an IP address, such as 127.0.0.1 or 0.0.0.0") from None
        if not ipaddress.ip_address(self.host).is_loopback and not (self.api_key or self.keys or self.insecure):
            raise ConfigError(
                f"host: {self.host} is open to others and no key is needed: give --keys or --api-key, or --insecure"
            )
        if "" in self.api_key:
            raise ConfigError("api_key: an empty key is no key")
        if self.limits_url is not None and not self.limits_url.startswith(("redis://", "rediss://")):
            raise ConfigError(f"limits_url: '{self.limits_url}' does not begin with redis:// or rediss://")
        parse_prices(self.price)


def check_device(device: str) -> None:
    """Refuses a device that no machine has."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", device):
        raise ConfigError(f"device: '{device}' is not auto, cpu, cuda or cuda:N")


def parse_bytes(text: str, field: str) -> int:
    """`512MiB` -> 536870912. Units: none or B, KiB, MiB, GiB (and KB, MB, GB in tens)."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?)?B?\s*", text, re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{field}: '{text}' is not a size such as 512MiB or 2GiB")
    unit = (match[2] or "").lower()
    base = 1024 if unit.endswith("i") else 1000
    power = " kmg".index(unit[0]) if unit else 0
    size = int(float(match[1]) * base**power)
    if size < 1:
        raise ConfigError(f"{field}: '{text}' is not more than nothing")
    return size


def parse_prices(lines: list[str]) -> dict[str, tuple[float, float]]:
    """`MODEL=0.15/0.60` -> prices of a million tokens read and written."""
    prices: dict[str, tuple[float, float]] = {}
    for line in lines:
        model, _, numbers = line.rpartition("=")
        match = re.fullmatch(r"(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)", numbers)
        if not model or match is None:
            raise ConfigError(f"price: '{line}' is not MODEL=IN/OUT, such as demo=0.15/0.60")
        prices[model] = float(match[1]), float(match[2])
    return prices


def load_config(
    kind: type[ConfigT],
    command_line: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> ConfigT:
    """Merges the four sources. `command_line` holds only what was typed.

    Environment and file are shared by all commands: a setting of another command is left aside there, an unknown one
    in the file is an error.
    """
    environment = os.environ if environment is None else environment
    if file is None and environment.get("FASTCHAT_CONFIG"):
        file = Path(environment["FASTCHAT_CONFIG"])
    wanted = set(kind.__struct_fields__)
    values: dict[str, Any] = {}
    for name, value in _from_file(file).items() if file else ():
        if name not in ServeConfig.__struct_fields__:
            raise ConfigError(f"{file}: unknown setting '{name}'")
        if name in wanted:
            values[name] = value
    for field in msgspec.structs.fields(kind):
        variable = f"FASTCHAT_{field.name.upper()}"
        if environment.get(variable):
            values[field.name] = _from_text(variable, environment[variable], field.type)
    values.update(command_line)
    if "model" not in values and kind is not DoctorConfig:
        raise ConfigError("no model given: name one on the command line, in FASTCHAT_MODEL or in the file")
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(_readable(error)) from error


def _from_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from error


def _from_text(name: str, text: str, kind: Any) -> Any:
    if is_list(kind):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {_readable(error)}, got '{text}'") from error


def is_list(kind: Any) -> bool:
    """Whether a field may be given several times."""
    info = msgspec.inspect.type_info(kind)
    return isinstance(info.type if isinstance(info, msgspec.inspect.Metadata) else info, msgspec.inspect.ListType)


def _readable(error: Exception) -> str:
    message, _, place = str(error).partition(" - at `$.")
    return f"{place.rstrip('`')}: {message}" if place else message
