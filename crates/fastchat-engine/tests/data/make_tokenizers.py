"""Writes tokenizers.json: what the `tokenizers` package makes of texts with published tokenizer.json files.

Usage: make_tokenizers.py FOLDER, which holds NAME/tokenizer.json. Per name: ids with and without special tokens, and
the text that the ids with special tokens are decoded to with those left out.
"""

import hashlib
import json
import sys
from pathlib import Path

import tokenizers

TEXTS = [
    "",
    " ",
    "\n",
    "Hello, world!",
    " Hello  world ",
    "Hello\n\n\nworld\r\n\r\n  end\t\t.",
    "   indented\n\tand tabbed\n        eight",
    "It's they're WE'VE I'll you'd 'tis ''quotes''",
    "1 12 123 1234 12345 123456 1,234,567.89 0x1F 3.14e-10",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case a.b.c",
    "def f(x):\n    return x**2  # comment\n\n\nclass A(B):\n    pass\n",
    "if (a >= b && c != d || !e) { x += y->z[0]; } // ok",
    "Größe, naïve café, Ångström, œuvre, İstanbul, ǅ, ß",
    "e\u0301 and é, A\u030a and Å, \u1112\u1161\u11ab",
    "Привет, мир! Как дела? Ёлка.",
    "数学是美丽的。今天天气很好，我们去公园吧！",
    "こんにちは世界。カタカナ、ひらがな、漢字。",
    "안녕하세요 세계! 한국어 문장입니다.",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣",
    "שלום עולם",
    "नमस्ते दुनिया, १२३",
    "สวัสดีชาวโลก",
    "🙂🙃👩‍👩‍👧‍👦🇫🇷 emoji 👍🏽 end",
    "math: ∑∫√∞≠≤≥ αβγδ ½ ² ³ ① Ⅷ",
    "zero\u200bwidth\u200djoin\ufeffbom nbsp\u00a0thin\u2009ideographic\u3000space",
    "control \u0000\u0001\u001f\u007f\u0085 end",
    "a" * 70,
    " " * 40 + "x" + " " * 17,
    "=" * 33 + "\n" + "-" * 65,
    "https://example.org/path?query=1&other=two#frag user@example.org",
    "<|im_start|>user\nHi<|im_end|>",
    "<s>[INST] Hi [/INST] ok</s>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    "<bos><start_of_turn>user\nHi<end_of_turn>\n",
    "<|start|>user<|message|>Hi<|end|>",
    '<think>\nhm\n</think>\n\n<tool_call>{"name": "f"}</tool_call>',
    '{"key": [1, 2.5, null, true], "nested": {"a": "b\\n"}}',
    "The quick brown fox jumps over the lazy dog. " * 4,
    "\U0001d54f\U0001d550 \U00020000 \U000e0041 \ue000",
    "ﬁ ﬂ ﷺ ㎏ ㍿ ½",
    "line1\rline2\x0bline3\x0cline4\u2028line5",
    "don't  stop   believin'    hold     on",
    "CamelCaseWith123Numbers456And_underscores__double",
    "!!!???...---___***###@@@",
    "word\u2019s \u201cquoted\u201d \u2014 dash\u2026",
]


def main(folder: str) -> None:
    found = {}
    for file in sorted(Path(folder).glob("*/tokenizer.json")):
        data = file.read_bytes()
        tokenizer = tokenizers.Tokenizer.from_str(data.decode())
        rows = []
        for text in TEXTS:
            framed = tokenizer.encode(text).ids
            rows.append([framed, tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.decode(framed)])
        found[file.parent.name] = {"sha256": hashlib.sha256(data).hexdigest(), "rows": rows}
    made = {"tokenizers": tokenizers.__version__, "texts": TEXTS, "files": found}
    text = json.dumps(made, separators=(",", ":"), ensure_ascii=True)
    # One line per tokenizer.
    text = text.replace('"sha256"', '\n"sha256"').replace(',"files"', ',\n"files"')
    Path(__file__).with_name("tokenizers.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
