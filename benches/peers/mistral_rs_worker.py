"""Answers the two single-stream rows for mistral.rs, which has no server in its wheel. Runs in the peers' environment.

Reads a line of JSON for each request, `{"words": n, "max_tokens": m}`, and writes one with tokens and seconds.
"""

import json
import sys
import time
from pathlib import Path

from mistralrs import CompletionRequest, Runner, Which


def main() -> None:
    """Serve until standard input ends."""
    model = Path(sys.argv[1])
    runner = Runner(which=Which.GGUF(quantized_model_id=str(model.parent), quantized_filename=model.name))
    # What the library itself logs goes elsewhere: answers are the lines that are JSON objects.
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        request = CompletionRequest(
            model="model",
            # A number in front, so that no answer comes out of the prefix cache.
            prompt=f"{asked['salt']} " + "word " * asked["words"],
            max_tokens=asked["max_tokens"],
            temperature=0.0,
        )
        began = time.perf_counter()
        usage = runner.send_completion_request(request).usage
        answer = {
            "seconds": time.perf_counter() - began,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
