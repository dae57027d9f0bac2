"""Tool calling on BFCL v4's questions: this engine beside llama.cpp's server on the same GGUF, correct answers counted.

Reads the questions of bfcl-eval that `python tests/assets.py bfcl` fetched. A call is correct when its name and every
argument are among the true ones (strings compared without case, blanks and punctuation, as BFCL does). With `required`
every answer must be well-formed calls; under `auto` it is what the model does by itself.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from compare import ENGINES, ROOT, peers_python
from peers.servers import model_id, serve

CATEGORIES = ("simple_python", "multiple", "parallel")
TYPES = {"dict": "object", "float": "number", "tuple": "array"}


def schema(node: Any) -> Any:
    """BFCL's types in JSON Schema's words."""
    if isinstance(node, list):
        return [schema(one) for one in node]
    if not isinstance(node, dict):
        return node
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key == "type" and isinstance(value, str):
            if value != "any":
                out[key] = TYPES.get(value, value)
        elif key not in ("default", "format", "optional"):
            out[key] = schema(value)
    return out


def questions(folder: Path, category: str, count: int) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Questions with their true calls, spread evenly over the file."""
    asked = [json.loads(line) for line in (folder / f"BFCL_v4_{category}.json").read_text().splitlines()]
    truth = [
        json.loads(line) for line in (folder / "possible_answer" / f"BFCL_v4_{category}.json").read_text().splitlines()
    ]
    step = max(len(asked) // count, 1)
    for question, answer in list(zip(asked, truth, strict=True))[::step][:count]:
        yield question, answer["ground_truth"]


def plain(value: Any) -> Any:
    """Strings as BFCL compares them; 5.0 is 5."""
    if isinstance(value, str):
        return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"')
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def fits(given: Any, allowed: list[Any]) -> bool:
    """Whether an argument is among the true ones; those of an object are again lists of true ones."""
    for one in allowed:
        if isinstance(one, dict) and isinstance(given, dict):
            if all(fits(given.get(key, ""), values) for key, values in one.items()) and set(given) <= set(one):
                return True
        elif plain(given) == plain(one):
            return True
    return False


def correct(calls: list[tuple[str, Any]], truth: list[dict[str, Any]]) -> bool:
    """Every call is a true one, in any order, and none is missing."""
    left = list(truth)
    for name, arguments in calls:
        for true in left:
            true_name, values = next(iter(true.items()))
            if name != true_name.replace(".", "_") or not isinstance(arguments, dict) or set(arguments) - set(values):
                continue
            if all(fits(arguments[key], values[key]) if key in arguments else "" in values[key] for key in values):
                left.remove(true)
                break
        else:
            return False
    return not left


def ask(client: httpx.Client, model: str, question: dict[str, Any], choice: str) -> list[tuple[str, Any]] | None:
    """The calls of an answer; None when one is not well-formed."""
    # Names with dots are no names for OpenAI's clients; BFCL writes them with underscores too.
    tools = [
        {
            "type": "function",
            "function": {
                "name": one["name"].replace(".", "_"),
                "description": one["description"],
                "parameters": schema(one["parameters"]),
            },
        }
        for one in question["function"]
    ]
    body = {"model": model, "messages": question["question"][0], "tools": tools, "tool_choice": choice}
    body |= {"temperature": 0, "max_tokens": 2048, "parallel_tool_calls": "parallel" in question["id"]}
    try:
        reply = client.post("/v1/chat/completions", json=body)
    except httpx.TimeoutException:
        return None
    if reply.status_code != 200:
        return None
    found: list[tuple[str, Any]] = []
    for call in reply.json()["choices"][0]["message"].get("tool_calls") or []:
        try:
            found.append((call["function"]["name"], json.loads(call["function"]["arguments"])))
        except ValueError:
            return None
    return found


def main() -> None:
    """Ask both engines and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")
    parser.add_argument("--data", type=Path, default=ROOT / "models" / "bfcl")
    parser.add_argument("--questions", type=int, default=60, help="in all, spread over the categories")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--choice", nargs="*", default=["required", "auto"])
    parser.add_argument("--patience", type=float, default=120, help="seconds for an answer; a later one is none")
    parser.add_argument("--engines", nargs="*", default=ENGINES)
    options = parser.parse_args()
    peers = peers_python()
    print("| category | tool_choice | engine | correct | well-formed | asked |\n|---|---|---|---|---|---|")
    counts = [len(range(at, options.questions, len(CATEGORIES))) for at in range(len(CATEGORIES))]
    for engine in options.engines:
        with serve(engine, options.model, options.threads, 1, peers) as server:
            model = model_id(server.url)
            with httpx.Client(base_url=server.url, timeout=options.patience) as client:
                for category, count in zip(CATEGORIES, counts, strict=True):
                    for choice in options.choice:
                        right = formed = asked = 0
                        for question, truth in questions(options.data, category, count):
                            calls = ask(client, model, question, choice)
                            asked += 1
                            formed += calls is not None and (bool(calls) or choice == "auto")
                            right += calls is not None and correct(calls, truth)
                        print(f"| {category} | {choice} | {engine} | {right} | {formed} | {asked} |", flush=True)


if __name__ == "__main__":
    main()
