"""What a picture costs on this engine and on llama.cpp (its mtmd): the same model, the same tower of random weights in
an mmproj file, threads, pictures and HTTP client.

A request with a picture and one with as many tokens of text alternate, and so do the engines; the difference of the two
is the picture's. Every picture is a new one, so no cache helps. The tower has SigLIP's base size (86 million weights in
f16, 12 layers of 768, 576 patches), its projector that of Gemma 3, whose 270M model it stands beside. `--beside` shows
instead the pace of this engine's stream while a picture is encoded that is as large as Gemma 3's, `--twice` how much
sooner the first token comes when the picture is known.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from compare import ROOT
from peers.servers import model_id, serve

TEXT_WIDTH = 640


@dataclass(frozen=True)
class Tower:
    """Sizes of a tower and of its pictures."""

    side: int
    patch: int
    width: int
    inner: int
    layers: int
    heads: int
    group: int

    @property
    def tokens(self) -> int:
        """Rows of a picture among the tokens."""
        return (self.side // self.patch // self.group) ** 2


BASE = Tower(384, 16, 768, 3072, 12, 12, 4)
# Gemma 3's, but for the number of layers (27), which says only how long it takes.
LARGE = Tower(896, 14, 1152, 4304, 4, 16, 4)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


def tensors(tower: Tower, generator: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """Name and values; matrices in f16, the rest in f32."""
    width, inner = tower.width, tower.inner

    def matrix(*shape: int) -> Any:
        scale = (3 / np.prod(shape[1:])) ** 0.5
        return generator.uniform(-scale, scale, shape).astype(np.float16)

    def norm(stem: str) -> Iterator[tuple[str, Any]]:
        yield f"{stem}.weight", np.ones(width, np.float32)
        yield f"{stem}.bias", np.zeros(width, np.float32)

    yield "v.patch_embd.weight", matrix(width, 3, tower.patch, tower.patch)
    yield "v.patch_embd.bias", np.zeros(width, np.float32)
    yield "v.position_embd.weight", matrix((tower.side // tower.patch) ** 2, width).astype(np.float32)
    for layer in range(tower.layers):
        at = f"v.blk.{layer}"
        for name, rows, columns in [
            *((name, width, width) for name in ("attn_q", "attn_k", "attn_v", "attn_out")),
            ("ffn_up", inner, width),
            ("ffn_down", width, inner),
        ]:
            yield f"{at}.{name}.weight", matrix(rows, columns)
            yield f"{at}.{name}.bias", np.zeros(rows, np.float32)
        yield from norm(f"{at}.ln1")
        yield from norm(f"{at}.ln2")
    yield from norm("v.post_ln")
    yield "mm.soft_emb_norm.weight", np.ones(width, np.float32)
    yield "mm.input_projection.weight", matrix(width, TEXT_WIDTH)


def write_tower(path: Path, tower: Tower) -> None:
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
        "clip.vision.image_size": whole(tower.side),
        "clip.vision.patch_size": whole(tower.patch),
        "clip.vision.embedding_length": whole(tower.width),
        "clip.vision.feed_forward_length": whole(tower.inner),
        "clip.vision.block_count": whole(tower.layers),
        "clip.vision.attention.head_count": whole(tower.heads),
        "clip.vision.attention.layer_norm_epsilon": struct.pack("<If", 6, 1e-6),
        "clip.vision.projection_dim": whole(TEXT_WIDTH),
        "clip.vision.projector.scale_factor": whole(tower.group),
        "clip.vision.image_mean": halves,
        "clip.vision.image_std": halves,
    }
    stored = list(tensors(tower, np.random.default_rng(7)))
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


def picture(seed: int, side: int) -> str:
    """A data URL of a PNG of coloured squares."""
    squares = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    pixels = np.kron(squares, np.ones((side // 16, side // 16, 1), np.uint8))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
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
    parts = [{"type": "image_url", "image_url": {"url": picture(seed, BASE.side)}}, words]
    plain = " ".join(f"{seed + i}" for i in range(BASE.tokens // 3))
    return seconds(client, model, parts), seconds(client, model, [{"type": "text", "text": plain}, words])


def paces(url: str, seed: int) -> str:
    """What lies between the tokens of a stream, before a picture comes and while it is encoded, in ms."""
    model, arrivals, over = model_id(url), list[float](), threading.Event()

    def listen() -> None:
        body = {"model": model, "prompt": "Once", "max_tokens": 4096, "ignore_eos": True, "stream": True}
        with (
            httpx.Client(base_url=url, timeout=300) as client,
            client.stream("POST", "/v1/completions", json=body) as reply,
        ):
            for _ in reply.iter_lines():
                arrivals.append(time.perf_counter())
                if over.is_set():
                    return

    listener = threading.Thread(target=listen)
    listener.start()
    time.sleep(3)
    began = time.perf_counter()
    with httpx.Client(base_url=url, timeout=300) as client:
        parts = [{"type": "image_url", "image_url": {"url": picture(seed, LARGE.side)}}, {"type": "text", "text": "?"}]
        seconds(client, model, parts)
    ended = time.perf_counter()
    over.set()
    listener.join()
    # Two lines an event, one of them empty: what comes within half a millisecond is one.
    gaps = [(b, (b - a) * 1e3) for a, b in zip(arrivals, arrivals[1:], strict=False) if b - a > 5e-4]
    alone = sorted(gap for at, gap in gaps if at < began)
    beside = sorted(gap for at, gap in gaps if began <= at <= ended)
    tail = beside[min(len(beside) - 1, int(0.99 * len(beside)))]
    return (
        f"picture in {ended - began:.1f} s; between tokens {statistics.median(alone):.0f} ms before, meanwhile "
        f"{statistics.median(beside):.0f} at the median, {tail:.0f} at the 99th percentile, {beside[-1]:.0f} at most"
    )


def twice(client: httpx.Client, model: str, seed: int) -> tuple[float, float]:
    """Seconds to the answer's one token: with a picture nobody has seen, and with the same one and other words."""
    image = {"type": "image_url", "image_url": {"url": picture(seed, BASE.side)}}
    first, second = (
        seconds(client, model, [{"type": "text", "text": f"{seed} {word}"}, image]) for word in ("Once", "Again")
    )
    return first, second


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models/gemma-3-270m-q4_k_m.gguf")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers/bin/python")
    parser.add_argument("--beside", action="store_true", help="the pace of a stream beside a large picture")
    parser.add_argument("--twice", action="store_true", help="the first token's time with a picture that is known")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tower, template = Path(folder) / "mmproj.gguf", Path(folder) / "template.jinja"
        write_tower(tower, LARGE if args.beside else BASE)
        template.write_text(TEMPLATE)
        more = ["--mmproj", str(tower), "--chat-template", str(template)]
        if args.beside:
            with serve("fastchat_rs", args.model, args.threads, 1, args.peers, more) as server:
                for seed in range(args.repeat):
                    print(paces(server.url, seed), flush=True)
            return
        if args.twice:
            with (
                serve("fastchat_rs", args.model, args.threads, 1, args.peers, more) as server,
                httpx.Client(base_url=server.url, timeout=300) as client,
            ):
                pairs = [twice(client, model_id(server.url), seed) for seed in range(args.repeat + 1)][1:]
            shares = sorted(second / first for first, second in pairs)
            first, second = (statistics.median(side) * 1e3 for side in zip(*pairs, strict=True))
            print(
                f"new {first:.0f} ms, known {second:.0f} ms: {statistics.median(shares):.2f} of it "
                f"({shares[0]:.2f} to {shares[-1]:.2f})"
            )
            return
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
