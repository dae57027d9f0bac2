"""Texts embedded a second by all-MiniLM: this engine beside llama.cpp's server with the same weights, over HTTP.

This engine reads the published safetensors; llama.cpp gets them as a GGUF file of the same f32 numbers (q8_0 with
`--quantize`, on both sides), written here by the `gguf` package, which has to be installed. The texts are bfcl-eval's
questions, and documents made of its function descriptions: some 20 and some 120 tokens. Both servers get the
same requests of many texts, in turns; the vectors must agree.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from compare import ROOT, peers_python
from peers.servers import HERE, free_port, model_id

WORDS_OF_A_DOCUMENT = 80
NAMES = [
    ("embeddings.word_embeddings.weight", "token_embd.weight"),
    ("embeddings.position_embeddings.weight", "position_embd.weight"),
    ("embeddings.token_type_embeddings.weight", "token_types.weight"),
    ("embeddings.LayerNorm", "token_embd_norm"),
    ("encoder.layer.", "blk."),
    ("attention.self.query", "attn_q"),
    ("attention.self.key", "attn_k"),
    ("attention.self.value", "attn_v"),
    ("attention.output.dense", "attn_output"),
    ("attention.output.LayerNorm", "attn_output_norm"),
    ("intermediate.dense", "ffn_up"),
    ("output.LayerNorm", "layer_output_norm"),
    ("output.dense", "ffn_down"),
]


def tensors(file: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The f32 tensors of a safetensors file."""
    data = np.memmap(file, np.uint8, "r")
    length = int(data[:8].view("<u8")[0])
    header = json.loads(bytes(data[8 : 8 + length]))
    for name, info in header.items():
        if name != "__metadata__" and info["dtype"] == "F32":
            start, end = (8 + length + offset for offset in info["data_offsets"])
            yield name, np.array(data[start:end]).view("<f4").reshape(info["shape"])


def write_gguf(folder: Path, out: Path, quantize: bool) -> None:
    """BERT in llama.cpp's format."""
    gguf: Any = importlib.import_module("gguf")
    config = json.loads((folder / "config.json").read_text())
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    writer = gguf.GGUFWriter(out, "bert")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    special = [word.startswith("[") and word.endswith("]") and len(word) > 2 for word in words]
    spelled = [
        word if marked else word[2:] if word.startswith("##") else f"\u2581{word}"
        for word, marked in zip(words, special, strict=True)
    ]
    writer.add_token_list(spelled)
    writer.add_token_types([3 if marked else 1 for marked in special])
    for name, word in (("unk", "[UNK]"), ("sep", "[SEP]"), ("pad", "[PAD]"), ("bos", "[CLS]"), ("mask", "[MASK]")):
        getattr(writer, f"add_{name}_token_id")(vocabulary[word])
    writer.add_token_type_count(config["type_vocab_size"])
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, values in tensors(folder / "model.safetensors"):
        if name.startswith("pooler."):
            continue
        for theirs, ours in NAMES:
            name = name.replace(theirs, ours)
        rounded = quantize and name.endswith(".weight") and values.ndim == 2 and not name.startswith(("token_", "pos"))
        if rounded:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def texts(data: Path, count: int) -> list[str]:
    """Questions and documents, in turns."""
    lines = [json.loads(line) for line in (data / "BFCL_v4_multiple.json").read_text().splitlines()]
    questions = [line["question"][0][0]["content"] for line in lines]
    words = " ".join(f"{one['name']}: {one['description']}" for line in lines for one in line["function"]).split()
    starts = range(0, len(words) - WORDS_OF_A_DOCUMENT, WORDS_OF_A_DOCUMENT)
    documents = [" ".join(words[start : start + WORDS_OF_A_DOCUMENT]) for start in starts]
    found = [text for pair in zip(questions, documents, strict=False) for text in pair]
    return [found[index % len(found)] for index in range(count)]


@contextmanager
def running(command: list[str]) -> Iterator[httpx.Client]:
    """A server from its command line, which gets a port."""
    port = free_port()
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
            until = time.monotonic() + 120
            while True:
                try:
                    if embedded(client, ["ready"]).shape[0] == 1:
                        break
                except (httpx.HTTPError, KeyError):
                    if process.poll() is not None or time.monotonic() > until:
                        raise RuntimeError(f"{command} did not answer") from None
                    time.sleep(0.05)
            yield client
    finally:
        process.terminate()
        process.wait(30)


def embedded(client: httpx.Client, batch: list[str]) -> NDArray[np.float64]:
    """The vectors of one request."""
    body = {"model": model_id(str(client.base_url)), "input": batch}
    reply = client.post("/v1/embeddings", json=body).raise_for_status().json()
    return np.array([one["embedding"] for one in sorted(reply["data"], key=lambda one: one["index"])])


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "all-minilm-l6-v2")
    parser.add_argument("--data", type=Path, default=ROOT / "models" / "bfcl")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64, help="texts of a request")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--slots", type=int, default=16, help="texts that llama.cpp has in work at a time")
    parser.add_argument("--quantize", action="store_true", help="q8_0 on both sides")
    options = parser.parse_args()
    given = texts(options.data, options.count)
    batches = [given[start : start + options.batch] for start in range(0, len(given), options.batch)]
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "minilm.gguf"
        write_gguf(options.model, file, options.quantize)
        ours = [sys.executable, "-m", "fastchat_rs", "serve", str(options.model), "--threads", str(options.threads)]
        ours += ["--quantize", "q8_0"] if options.quantize else []
        theirs = [str(peers_python()), str(HERE / "llama_server.py"), str(file), "--threads", str(options.threads)]
        theirs += ["--embedding", "--slots", str(options.slots), "--context", "512"]
        speeds: list[list[float]] = [[], []]
        with running(ours) as one, running(theirs) as other:
            for _ in range(options.repeat):
                vectors: list[NDArray[np.float64]] = []
                for client, found in zip((one, other), speeds, strict=True):
                    began = time.perf_counter()
                    vectors.append(np.concatenate([embedded(client, batch) for batch in batches]))
                    found.append(len(given) / (time.perf_counter() - began))
                least = float(np.sum(vectors[0] * vectors[1], axis=1).min())
                if least < (0.99 if options.quantize else 0.9999):
                    raise RuntimeError(f"the vectors differ: least cosine {least}")
    ratios = [mine / peer for mine, peer in zip(*speeds, strict=True)]
    print("| weights | fastchat_rs texts/s | llama.cpp texts/s | ratio (min - max) |\n|---|---|---|---|")
    mine, peer = (statistics.median(found) for found in speeds)
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
    print(f"| {'q8_0' if options.quantize else 'f32'} | {mine:.0f} | {peer:.0f} | {spread} |")


if __name__ == "__main__":
    main()
