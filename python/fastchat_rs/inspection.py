"""Tables of `fastchat-rs inspect`, from the JSON that the engine makes of a model's headers. Knows no files."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

_STATE_BYTES = 4
_PLAIN_KINDS = frozenset({"F32", "F16", "BF16", "F64"})


_HEADS = ("vocab_size", "hidden_size", "max_positions", "head", "positions", "token_type", "embed_norm", "final_norm")
_SCALES = ("embed_scale", "logit_softcap", "scorer")


def show(found: Mapping[str, Any], console: Console) -> None:
    """The model on one screen: layers that are alike are counted, not repeated."""
    spec = found["spec"]
    console.print(f"{found['path']} ({found['format']})", markup=False, highlight=False, soft_wrap=True)
    heads = [f"{name} {_short(spec[name])}" for name in (*_HEADS, *_SCALES) if name in spec]
    console.print(", ".join(heads), markup=False, soft_wrap=True)
    layers = Table("layers", "mixer", "mlp", "norms", title=f"{len(spec['layers'])} layers")
    for (mixer, mlp, norms), count in Counter(_layer(layer) for layer in spec["layers"]).items():
        layers.add_row(str(count), mixer, mlp, norms)
    console.print(layers)
    if makes(found) != "text":
        console.print(_output(found), markup=False, highlight=False, soft_wrap=True)
    if "vision" in found:
        console.print(f"pictures: {_tower(found)}", markup=False, highlight=False, soft_wrap=True)
    kinds = Table("kind", "tensors", "elements", "bytes", title="tensors")
    for kind, sums in found["kinds"].items():
        kinds.add_row(kind, f"{sums['tensors']:,}", f"{sums['elements']:,}", f"{sums['bytes']:,}")
    console.print(kinds)
    for line in memory_lines(found):
        console.print(line, highlight=False)


def makes(found: Mapping[str, Any]) -> Literal["text", "vectors", "scores"]:
    """What comes out."""
    if "scorer" in found["spec"]:
        return "scores"
    return "vectors" if "pooling" in found else "text"


def memory_lines(found: Mapping[str, Any]) -> list[str]:
    """What weights and cache cost, with the engine's default type of the cache."""
    spec = found["spec"]
    weights = f"weights {size(found['total']['bytes'])}"
    if "embed_norm" in spec:
        return [weights, "no cache: texts are computed whole"]
    if makes(found) == "vectors":
        # Its cache is always of f32, for one longest text, and there from the start.
        token, longest = _token_bytes(spec, 4), found["longest"]
        return [weights, f"cache {size(token)} a token (f32), {size(token * longest)} for {longest} tokens"]
    token, state, quantised = cache_bytes(found)
    context = spec["max_positions"]
    cache = (
        f"cache {size(token)} a token ({'f16' if quantised else 'f32'}), {size(token * context)} for {context} tokens"
    )
    return [weights, cache, f"state {size(state)} a sequence"] if state else [weights, cache]


def cache_bytes(found: Mapping[str, Any]) -> tuple[int, int, bool]:
    """Of a token, of a sequence's recurrent state, and whether the cache's default type is f16."""
    spec = found["spec"]
    quantised = any(kind.upper() not in _PLAIN_KINDS for kind in found["kinds"])
    state = 0
    for layer in spec["layers"]:
        ((kind, mixer),) = layer["mixer"].items()
        if kind not in ("Attention", "Mla"):
            state += mixer.get("v_heads", 0) * mixer.get("k_dim", 0) * mixer.get("v_dim", 0) * _STATE_BYTES
    return _token_bytes(spec, 2 if quantised else 4), state, quantised


def _token_bytes(spec: Mapping[str, Any], element: int) -> int:
    token = 0
    for layer in spec["layers"]:
        ((kind, mixer),) = layer["mixer"].items()
        if kind == "Attention":
            token += 2 * mixer["kv_heads"] * mixer["head_dim"] * element
        elif kind == "Mla":
            token += (mixer["kv_lora_rank"] + mixer["rope_dim"]) * element
    return token


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _output(found: Mapping[str, Any]) -> str:
    """What a model that generates nothing makes of a text."""
    longest = f"texts of up to {found['longest']} tokens"
    if makes(found) == "scores":
        return f"scores: {_short(found['spec']['scorer'])}, pairs of {longest}"
    pooling = found["pooling"]
    length = ", of length one" if pooling["normalize"] else ""
    return f"vectors: {found['spec']['hidden_size']} elements, {pooling['mode']} of the rows{length}, {longest}"


def _tower(found: Mapping[str, Any]) -> str:
    tower = found["vision"]
    patch, rule = tower["patch"], tower["processor"]["rule"]
    parts = [f"{len(tower['layers'])} layers of {tower['hidden_size']}", f"patches of {patch['size']} pixels"]
    if patch["group"] > 1:
        parts.append(f"{patch['group']} x {patch['group']} of them a row")
    parts.append(_short(rule))
    return ", ".join([*parts, found["mmproj"]] if "mmproj" in found else parts)


def _layer(layer: Mapping[str, Any]) -> tuple[str, str, str]:
    if "order" in layer:
        norms = [name for name in ("attn_norm", "mlp_norm") if layer[name] is not None]
        return _short(layer["attention"]), _short(layer["mlp"]), f"{layer['order']}: {', '.join(norms)}"
    norms = [name for name in ("pre_attn", "post_attn", "pre_mlp", "post_mlp") if layer[name] is not None]
    return _short(layer["mixer"]), _short(layer["mlp"]), ", ".join(norms)


def _short(value: Any) -> str:
    """A JSON value in a few words; what is absent is left out."""
    if isinstance(value, Mapping):
        items: list[tuple[str, Any]] = list(value.items())  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        if len(items) == 1 and isinstance(items[0][1], Mapping):
            return f"{items[0][0]}({_short(items[0][1])})"
        return ", ".join(f"{key} {_short(inner)}" for key, inner in items if inner not in (None, "Absent"))
    return f"{value:g}" if isinstance(value, float) else str(value)
