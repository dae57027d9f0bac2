"""Records what llama.cpp makes of the families in `tiny_families`: log-probabilities of the token after each prompt.

The files it reads are written by the `gguf` package's names, not by this project's `convert`. In an environment with
xllamacpp, gguf and numpy: `PYTHONPATH=tests python tests/golden/make_families.py`.
"""

import gzip
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from tiny_families import CRATE, FAMILIES, LENGTHS, prompt, write


def serve(file: Path, tower: str = "") -> Any:
    """llama.cpp's server of a model; keys and values stay f32, and attention is the plain one."""
    import xllamacpp  # pyright: ignore[reportMissingImports]

    llama: Any = xllamacpp
    params = llama.CommonParams()
    params.model.path = str(file)
    params.mmproj.path = tower
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = 1
    params.n_ctx = 256
    params.n_gpu_layers = 0
    params.warmup = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return llama.Server(params)


def next_token(address: str, prompt: Any) -> list[float]:
    """Log-probabilities of all 256 tokens after a prompt. One that is a whole character is chosen, for it is answered
    without probabilities otherwise; those told are from before the bias."""
    options = {"n_predict": 1, "n_probs": 256, "temperature": 1.0, "cache_prompt": False, "logit_bias": [[80, 1e4]]}
    body = {"prompt": prompt, **options}
    request = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        found = json.load(answer)["completion_probabilities"][0]["top_logprobs"]
    by_id = {entry["id"]: entry["logprob"] for entry in found}
    return [round(by_id[i], 5) for i in range(256)]


def main() -> None:
    """Write families.json.gz."""
    rows: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for family, (architecture, _) in FAMILIES.items():
            folder, file = Path(scratch) / family, Path(scratch) / f"{family}.gguf"
            write(family, folder)
            subprocess.run([sys.executable, CRATE / "gguf/convert.py", folder, file, architecture], check=True)
            server = serve(file)
            rows[family] = [next_token(server.listening_address, prompt(length)) for length in LENGTHS]
            del server
    out = Path(__file__).parent / "families.json.gz"
    out.write_bytes(gzip.compress(json.dumps(rows).encode(), mtime=0))


if __name__ == "__main__":
    main()
