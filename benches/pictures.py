"""What a picture costs on this engine and on llama.cpp (its mtmd): the same model, the same tower of random weights in
an mmproj file, threads, pictures and HTTP client.

A request with a picture and one with as many tokens of text alternate, and so do the engines; the difference of the two
is the picture's. Every picture is a new one, so no cache helps. The tower has SigLIP's base size (86 million weights in
f16, 12 layers of 768, 576 patches), its projector that of Gemma 3, whose 270M model it stands beside.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from compare import ROOT
from peers.servers import model_id, serve

SIDE, PATCH, WIDTH, INNER, LAYERS, HEADS, GROUP = 384, 16, 768, 3072, 12, 12, 4
TEXT_WIDTH = 640
TOKENS = (SIDE // PATCH // GROUP) ** 2
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


def tensors(generator: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """Name and values; matrices in f16, the rest in f32."""

    def matrix(*shape: int) -> Any:
        scale = (3 / np.prod(shape[1:])) ** 0.5
        return generator.uniform(-scale, scale, shape).astype(np.float16)

    def norm(stem: str) -> Iterator[tuple[str, Any]]:
        yield f"{stem}.weight", np.ones(WIDTH, np.float32)
        yield f"{stem}.bias", np.zeros(WIDTH, np.float32)

    yield "v.patch_embd.weight", matrix(WIDTH, 3, PATCH, PATCH)
    yield "v.patch_embd.bias", np.zeros(WIDTH, np.float32)
    yield "v.position_embd.weight", matrix((SIDE // PATCH) ** 2, WIDTH).astype(np.float32)
    for layer in range(LAYERS):
        at = f"v.blk.{layer}"
        for name, rows, columns in [
            *((name, WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_out")),
            ("ffn_up", INNER, WIDTH),
            ("ffn_down", WIDTH, INNER),
        ]:
            yield f"{at}.{name}.weight", matrix(rows, columns)
            yield f"{at}.{name}.bias", np.zeros(rows, np.float32)
        yield from norm(f"{at}.ln1")
        yield from norm(f"{at}.ln2")
    yield from norm("v.post_ln")
    yield "mm.soft_emb_norm.weight", np.ones(WIDTH, np.float32)
    yield "mm.input_projection.weight", matrix(WIDTH, TEXT_WIDTH)


def write_tower(path: Path) -> None:
    """A GGUF file (version 3) of the keys and tensors of a tower."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def whole(value: int) -> bytes:
        return struct.pack("<II", 4, value)

    def flag(value: bool) -> bytes:
        return struct.pack("<IB", 7, value)

    halves = struct.pack("<IIQ3f", 9, 6, 3, 0.5, 0.5, 0.5)
    keys = {
        "general.architecture": struct.pack("<I", 8) + text("clip"),
        "clip.projector_type": struct.pack("<I", 8) + text("gemma3"),
        "clip.has_vision_encoder": flag(True),
        "clip.use_gelu": flag(True),
        "clip.vision.image_size": whole(SIDE),
        "clip.vision.patch_size": whole(PATCH),
        "clip.vision.embedding_length": whole(WIDTH),
        "clip.vision.feed_forward_length": whole(INNER),
        "clip.vision.block_count": whole(LAYERS),
        "clip.vision.attention.head_count": whole(HEADS),
        "clip.vision.attention.layer_norm_epsilon": struct.pack("<If", 6, 1e-6),
        "clip.vision.projection_dim": whole(TEXT_WIDTH),
        "clip.vision.projector.scale_factor": whole(GROUP),
        "clip.vision.image_mean": halves,
        "clip.vision.image_std": halves,
    }
    stored = list(tensors(np.random.default_rng(7)))
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(stored), len(keys)))
    for key, value in keys.items():
        out += text(key) + value
    offset = 0
    for name, values in stored:
        shape = values.shape[::-1]
        kind = 1 if values.dtype == np.float16 else 0
        out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += -(-values.nbytes // 32) * 32
    out += bytes(-len(out) % 32)
    with path.open("wb") as file:
        file.write(out)
        for _, values in stored:
            file.write(values.tobytes())
            file.write(bytes(-values.nbytes % 32))


def picture(seed: int) -> str:
    """A data URL of a PNG of coloured squares."""
    squares = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    pixels = np.kron(squares, np.ones((SIDE // 16, SIDE // 16, 1), np.uint8))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def seconds(client: httpx.Client, model: str, content: Any) -> float:
    """Until the one token of an answer."""
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 1, "temperature": 0}
    began = time.perf_counter()
    reply = client.post("/v1/chat/completions", json=body)
    took = time.perf_counter() - began
    if reply.status_code != 200:
        raise RuntimeError(reply.text)
    return took


def costs(client: httpx.Client, model: str, seed: int) -> tuple[float, float]:
    """(with a picture, with words only) of prompts of about the same length."""
    words = {"type": "text", "text": f"{seed} What do you see?"}
    parts = [{"type": "image_url", "image_url": {"url": picture(seed)}}, words]
    plain = " ".join(f"{seed + i}" for i in range(TOKENS // 3))
    return seconds(client, model, parts), seconds(client, model, [{"type": "text", "text": plain}, words])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models/gemma-3-270m-q4_k_m.gguf")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers/bin/python")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tower, template = Path(folder) / "mmproj.gguf", Path(folder) / "template.jinja"
        write_tower(tower)
        template.write_text(TEMPLATE)
        more = ["--mmproj", str(tower), "--chat-template", str(template)]
        found: dict[str, list[tuple[float, float]]] = {}
        with (
            serve("fastchat_rs", args.model, args.threads, 1, args.peers, more) as ours,
            serve("llama.cpp", args.model, args.threads, 1, args.peers, more) as theirs,
        ):
            for seed in range(args.repeat + 1):
                for server in (ours, theirs):
                    with httpx.Client(base_url=server.url, timeout=300) as client:
                        one = costs(client, model_id(server.url), 1000 * seed)
                    # The first warms both up.
                    if seed > 0:
                        found.setdefault(server.name, []).append(one)
        medians = {name: [statistics.median(side) for side in zip(*rows, strict=True)] for name, rows in found.items()}
        for name, (pictured, plain) in medians.items():
            print(f"{name}: {pictured * 1e3:.0f} ms with a picture, {plain * 1e3:.0f} ms with words of its length")
        shares = [(theirs[0] - theirs[1]) / (ours[0] - ours[1]) for ours, theirs in zip(*found.values(), strict=True)]
        print(f"the picture alone: {statistics.median(shares):.2f}x ({min(shares):.2f} to {max(shares):.2f})")
        print(json.dumps(found))


if __name__ == "__main__":
    main()
