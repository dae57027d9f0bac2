"""Records what llama.cpp makes of the model in `tiny_pixtral`: log-probabilities of the token after each picture.

The tower's file is written by the `gguf` package's names, not by this project's. In an environment with xllamacpp,
gguf, numpy and pytest: `PYTHONPATH=tests:python python tests/golden/make_pixtral.py`, msgspec and jinja2 there too.
"""

import base64
import gzip
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from make_families import next_token, serve

from tiny_families import CRATE
from tiny_pixtral import SIDES, WORDS, picture, write
from tiny_vision import convert_words, png


def main() -> None:
    """Write pixtral.json.gz."""
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "source", Path(scratch) / "out"
        write(source)
        out.mkdir()
        command = [sys.executable, CRATE / "gguf/mmproj.py", source, out, "llama", "pixtral"]
        subprocess.run(command, check=True)
        # That script's words are made up; these are the model's.
        convert_words(source, out / "model.gguf")
        server = serve(out / "model.gguf", str(out / "mmproj-model.gguf"))
        address = server.listening_address
        with urllib.request.urlopen(f"{address}/props") as answer:
            marker = json.load(answer)["media_marker"]
        text = f"<s>{WORDS[0]}{marker}{WORDS[1]}"
        pictures = [base64.b64encode(png(picture(index))).decode() for index in range(len(SIDES))]
        rows = [next_token(address, {"prompt_string": text, "multimodal_data": [data]}) for data in pictures]
        del server
    file = Path(__file__).parent / "pixtral.json.gz"
    file.write_bytes(gzip.compress(json.dumps(rows).encode(), mtime=0))


if __name__ == "__main__":
    main()
