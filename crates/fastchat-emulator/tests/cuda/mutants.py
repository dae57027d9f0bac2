"""Breaks the CUDA kernels, one index, barrier, mask, tail or wait at a time, and runs the emulator's tests on each: all must go red.

Usage: python3 mutants.py TEST_BINARY [NAME ...] (the binary that `cargo test -p fastchat-emulator --test cuda --no-run`
names). The binary loads its kernels from a shared library; a mutant is that library with one file compiled anew.
Needs g++ and nothing else; knows no Rust.
"""

# ruff: noqa: E501 - a mutant is a line as it stands in its file
import os
import pathlib
import subprocess
import sys
import tempfile

EMULATOR = pathlib.Path(__file__).resolve().parents[2]
CUDA = EMULATOR.parent / "fastchat-kernels/cuda"
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-ffp-contract=off", "-xc++"]
CHECKED = ["-DEMU_CHECKED", "-fsanitize=thread"]

# (name, file, what is there, what comes instead, tests that should notice)
# Not here, because it changes nothing that can be observed: leaving out the __syncwarp after an expert is taken in moe.cu.
# A rank is only read and written by lane e % 32, and the shuffles of the next round bring the lanes together anyway.
MUTANTS = [
    ("norm-index", "norm.cu", "out[start + i] = value / root * weight[i];", "out[start + i] = value / root * weight[0];", "rows::"),
    ("norm-tail", "norm.cu", "i < width; i += THREADS) {\n        float value", "i < width - 1; i += THREADS) {\n        float value", "rows::"),
    ("norm-sum-unsaved", "norm.cu", "sum[start + i] = value;", "sum[start] = value;", "rows::"),
    ("norm-bias", "norm.cu", "(bias != nullptr ? bias[i] : 0.f)", "0.f", "rows::"),
    ("block-sum-barrier", "rt.cuh", "    if (lane == 0) scratch[warp] = x;\n    __syncthreads();", "    if (lane == 0) scratch[warp] = x;", "rows::"),
    ("block-sum-second-barrier", "rt.cuh", "    // The next use of the scratch must not overtake these reads.\n    __syncthreads();\n", "", "rows::"),
    ("act-tail", "activation.cu", "if (i < count) out[i]", "if (i <= count) out[i]", "rows::"),
    ("gated-act-index", "activation.cu", "i / width * 2 * width + i % width", "i / width * width + i % width", "rows::"),
    ("act-clamp", "activation.cuh", "fmaxf(up, -act.limit)", "fmaxf(up, act.limit)", "rows::"),
    ("qkv-head-tail", "qkv.cu", "for (int i = 2 * half + lane; i < dim; i += WARP)", "for (int i = 2 * half + lane; i < dim - 1; i += WARP)", "qkv::"),
    ("qkv-cache-index", "qkv.cu", "* BLOCK_SIZE + offset) * dim", "* BLOCK_SIZE + offset + 1) * dim", "qkv::"),
    ("qkv-norm-head", "qkv.cu", "weight += static_cast<size_t>(head) * dim;", "weight += 0;", "qkv::"),
    ("qkv-angle-row", "qkv.cu", "angles == nullptr ? token : angles[token]", "token", "in_place::"),
    ("qkv-interleaved", "qkv.cu", "second = interleaved ? 2 * i + 1 : i + half;", "second = i + half;", "qkv::"),
    ("rope-start", "qkv.cu", "if (i < start || i >= start + 2 * half)", "if (i < start)", "qkv::"),
    ("write-kv-head", "qkv.cu", "head = static_cast<int>(item % kv_heads);\n    E", "head = 0;\n    E", "qkv::"),
    ("linear-tail-rows", "linear.cu", "half_warp < chunk.count && row < (p.gated ? p.rows / 2 : p.rows)", "half_warp < chunk.count", "linear::"),
    ("linear-tail-tokens", "linear.cu", "half_warp < chunk.count && row", "row", "linear::"),
    ("linear-group-tail", "linear.cu", "if (group >= groups) continue;", "if (group >= groups - 1) continue;", "linear::"),
    ("linear-round-barrier", "linear.cu", "            round_group(p.x + source_row(p, chunk, t) * p.cols, p.cols, group, own[t * groups + group]);\n        }\n        __syncthreads();", "            round_group(p.x + source_row(p, chunk, t) * p.cols, p.cols, group, own[t * groups + group]);\n        }", "linear::"),
    ("linear-partial-barrier", "linear.cu", "            __syncthreads();\n            if (half_warp >= T) continue;", "            if (half_warp >= T) continue;", "linear::"),
    ("linear-turn", "linear.cu", "turn ^= 1", "turn ^= 0", "linear::"),
    ("linear-offset", "linear.cu", "static_cast<float>(dot - offset * total)", "static_cast<float>(dot)", "linear::"),
    ("linear-fifth-bit", "linear.cu", "(bits >> i & 0x01010101) << 4", "(bits >> (i & 3) & 0x01010101) << 4", "linear::"),
    ("linear-decode-tail", "linear.cu", "if (which >= count) return;", "if (which > count) return;", "linear::"),
    ("linear-source-row", "linear.cuh", "chunk.first + min(t, chunk.count - 1)", "chunk.first + t", "linear::"),
    ("many-fifth-bit", "linear.cu", "(quarter + 4 * i) & 0x01010101", "quarter & 0x01010101", "linear::"),
    ("many-sixth-bit", "linear.cu", "lines[ROWS * (4 + i)] >> (2 * quarter)", "lines[ROWS * 4] >> (2 * quarter)", "linear::"),
    ("many-halves", "linear.cu", "b[1] = {inputs[n][half]}", "b[1] = {inputs[n][0]}", "linear::"),
    ("many-row-tail", "linear.cu", "if (row < rows && token < chunk.count) finish(p, chunk, token, row, totals[m]", "if (token < chunk.count) finish(p, chunk, token, row, totals[m]", "linear::"),
    ("many-token-tail", "linear.cu", "if (row < rows && token < chunk.count) finish(p, chunk, token, row, totals[m]", "if (row < rows) finish(p, chunk, token, row, totals[m]", "linear::"),
    ("many-pair", "linear.cu", "(p.gated ? m * tiles : 0)", "0", "linear::"),
    ("many-span", "linear.cu", "(group + 1) % SPAN != 0 && group + 1 < groups", "group + 1 < groups", "linear::"),
    ("many-results", "linear.cu", "first + 2 * quarter + i) * stride", "first + quad) * stride", "linear::"),
    ("many-clamp", "linear.cu", "min(tile_of[m], tiles - 1)", "tile_of[m]", "linear::"),
    ("dense-tail", "dense.cu", "for (int k = lane; k < p.cols; k += WARP) {", "for (int k = lane; k < p.cols - 1; k += WARP) {", "linear::"),
    ("dense-second-row", "dense.cu", "min(row + apart, p.rows - 1)", "row + apart", "linear::"),
    ("dense-last-row", "dense.cu", "if (!p.gated && row + 1 < rows)", "if (!p.gated)", "linear::"),
    ("gather-tail", "dense.cu", "for (int i = threadIdx.x; i < cols; i += THREADS) out", "for (int i = threadIdx.x; i < cols - 1; i += THREADS) out", "linear::"),
    ("bf16-row-tail", "bf16.cu", "min(first_row + 8 * i, rows - 1)", "first_row + 8 * i", "linear::"),
    ("bf16-token-tail", "bf16.cu", "if (row < rows && token < chunk.count) finish(p, chunk, token, row, totals[0][i]", "if (row < rows) finish(p, chunk, token, row, totals[0][i]", "linear::"),
    ("bf16-column-tail", "bf16.cu", "const bool inside = at + column < p.cols;", "const bool inside = true;", "linear::"),
    ("bf16-span-barrier", "bf16.cu", "        __syncthreads();\n        if (share != 0) continue;", "        if (share != 0) continue;", "linear::"),
    ("bf16-turn", "bf16.cu", "turn ^= 1", "turn ^= 0", "linear::"),
    ("bf16-shares", "bf16.cu", "other < min(sharing, spans - first)", "other < sharing - 1", "linear::"),
    ("bf16-stage-barrier", "bf16.cu", "        __syncthreads();\n        fetch(", "        fetch(", "linear::"),
    ("bf16-wait", "bf16.cu", "wait_copies<T::STAGES - 2>();", "wait_copies<T::STAGES - 1>();", "linear::"),
    ("bf16-fetch-tail", "bf16.cu", "const bool inside = step * STEP + column < p.cols;", "const bool inside = true;", "linear::"),
    ("bf16-partner", "bf16.cu", "(line < own_rows ? 0 : rows)", "0", "linear::"),
    ("bf16-span-end", "bf16.cu", "(step + 1) % (W::SPAN / STEP) != 0 && step + 1 < steps", "step + 1 < steps", "linear::"),
    ("bf16-tile-token-tail", "bf16.cu", "finish(p, chunk, token, row, totals[m][n][i], other)", "finish(p, chunk, token - 1, row, totals[m][n][i], other)", "linear::"),
    ("bf16-parts", "bf16.cu", "source_row(p, chunk, token) * TERMS", "source_row(p, chunk, token)", "linear::"),
    ("bf16-infinity", "tensor.cuh", "fabsf(part) < INFINITY ? x - part : 0.f", "x - part", "linear::"),
    ("bf16-split-tail", "bf16.cu", "if (item >= rows * pieces) return;", "if (item > rows * pieces) return;", "linear::"),
    ("halves-order", "bf16.cu", "first = words[0], rest = words[1];", "first = words[0], rest = words[0];", "linear::"),
    ("halves-upper", "bf16.cu", "half_of_bits(two >> 16)", "half_of_bits(two & 0xffffu)", "linear::"),
    ("halves-rest", "bf16.cu", "number < W::NUMBERS; ++number) ::multiply", "number < 1; ++number) ::multiply", "linear::"),
    ("halves-quarter", "bf16.cu", "pair(piece.z, out[0].z, out[1].z)", "pair(piece.x, out[0].z, out[1].z)", "linear::"),
    ("code-signs", "bf16.cu", "(signs & 0x80008000u)", "0u", "linear::"),
    ("code-order", "bf16.cu", "{pair(piece.x << 8, piece.x << 4), pair(piece.x, piece.x >> 4)", "{pair(piece.x, piece.x >> 4), pair(piece.x << 8, piece.x << 4)", "linear::"),
    ("code-scale-span", "bf16.cu", "row * (p.cols / SPAN) + span", "row * (p.cols / SPAN)", "linear::"),
    ("code-scale-place", "bf16.cu", "codes + static_cast<size_t>(p.rows) * p.cols", "codes + static_cast<size_t>(p.rows - 1) * p.cols", "linear::"),
    ("code-scale-row", "bf16.cu", "W::scale(p, chunk, row_of(i / 2, i % 2), first + share)", "W::scale(p, chunk, row_of(i / 2, 0), first + share)", "linear::"),
    ("code-scale-half", "bf16.cu", "m * ROWS + lane / 4 + 8 * half)", "m * ROWS + lane / 4)", "linear::"),
    ("code-scale-tail", "bf16.cu", "i < 2 * PARTS && from < p.cols", "i < 2 * PARTS", "linear::"),
    ("code-gather", "bf16.cu", "(k & ~3) + within", "k", "linear::"),
    ("attention-causal", "attention.cu", "first + key <= last &&", "first + key < last &&", "attention::"),
    ("attention-window", "attention.cu", "first + key > position - a.window", "first + key >= position - a.window", "attention::"),
    ("attention-until", "attention.cu", "key >= from && key < until && d < width", "key >= from && d < width", "attention::"),
    ("attention-group", "attention.cuh", "head * group + (first_row + row) % group", "head * group", "attention::"),
    ("attention-block-table", "attention.cu", "table[key / BLOCK_SIZE]", "table[0]", "attention::"),
    ("attention-load-barrier", "attention.cu", "                           slice);\n                __syncthreads();", "                           slice);", "attention::"),
    ("attention-score-barrier", "attention.cu", "                scores[row * TILE + key] = seen ? score : -INFINITY;\n            }\n            __syncthreads();", "                scores[row * TILE + key] = seen ? score : -INFINITY;\n            }", "attention::"),
    ("attention-merge-barrier", "attention.cu", "                values[i] = values[i] * before + span_values[i] * now;\n            }\n            __syncthreads();", "                values[i] = values[i] * before + span_values[i] * now;\n            }", "attention::"),
    ("attention-fence", "attention.cu", "        __threadfence();\n        __syncthreads();\n        unsigned*", "        __syncthreads();\n        unsigned*", "attention::"),
    ("attention-counter", "attention.cu", "        if (thread == 0) *done = 0;\n", "", "attention::"),
    ("attention-split-range", "attention.cu", "int span = walk.first_span + split;", "int span = walk.first_span;", "attention::"),
    ("attention-sink", "attention.cuh", "a.sinks[walk.head_of(row)]", "a.sinks[0]", "attention::"),
    ("attention-softcap", "attention.cu", "if (a.softcap > 0.f)", "if (a.softcap > 1e9f)", "attention::"),
    ("attention-span-reset", "attention.cu", "        if (thread < ROWS) span_soft[thread] = {-INFINITY, 0.f};\n", "", "attention::"),
    ("flash-causal", "flash.cu", "key <= last[i / 2] &&", "key < last[i / 2] &&", "attention::"),
    ("flash-window", "flash.cu", "key > position[i / 2] - a.window", "key >= position[i / 2] - a.window", "attention::"),
    ("flash-until", "flash.cu", "key >= from && key < until", "key >= from", "attention::"),
    ("flash-block-table", "flash.cu", "? walk.table[at] : 0", "? walk.table[0] : 0", "attention::"),
    ("flash-keep", "flash.cu", "sums[n][i] *= keep[i / 2];", "sums[n][i] *= 1.f;", "attention::"),
    ("flash-sum", "flash.cu", "own[r].sum * keep[r] + sum[r]", "own[r].sum + sum[r]", "attention::"),
    ("flash-halves", "flash.cu", "n % 2 ? 0x7632 : 0x5410", "0x5410", "attention::"),
    ("flash-key-tail", "flash.cu", "if (exists(first + 8 * n + quad) && element < a.dim)", "if (exists(first + 8 * n + quad))", "attention::"),
    ("flash-value-tail", "flash.cu", "if (exists(first + j * BLOCK_SIZE + offset) && element < a.v_dim)", "if (exists(first + j * BLOCK_SIZE + offset))", "attention::"),
    ("flash-row-tail", "flash.cu", "const bool mine = quad + 8 * r < rows;", "const bool mine = true;", "attention::"),
    ("flash-merge", "flash.cu", "value = value * before + sums[n][i] * now;", "value = value + sums[n][i] * now;", "attention::"),
    ("flash-fence", "flash.cu", "    __threadfence();\n    __syncwarp();", "    __syncwarp();", "attention::"),
    ("flash-counter", "flash.cu", "    if (lane == 0) *done = 0;\n", "", "attention::"),
    ("flash-split-range", "flash.cu", "int span = walk.first_span + split;", "int span = walk.first_span;", "attention::"),
    ("flash-softcap", "flash.cu", "if (a.softcap > 0.f)", "if (a.softcap > 1e9f)", "attention::"),
    ("moe-tie", "moe.cu", "other > value || (other == value && at < index)", "other >= value", "moe::"),
    ("moe-score-bias", "moe.cu", "(r.bias != nullptr ? r.bias[e] : 0.f)", "0.f", "moe::"),
    ("moe-groups", "moe.cu", "best : best + second;", "best : best;", "moe::"),
    ("moe-renormalize", "moe.cu", "if (r.renormalize) own_factor /= total;", "", "moe::"),
    ("moe-sort-barrier", "moe.cu", "        if (lane == 0) starts[expert + 1] = count;\n    }\n    __syncthreads();", "        if (lane == 0) starts[expert + 1] = count;\n    }", "moe::"),
    ("moe-sort-tail", "moe.cu", "const bool mine = entry < entries && experts_of", "const bool mine = experts_of", "moe::"),
    ("moe-chunk-count", "moe.cu", "min(most, starts[expert + 1] - first)", "most", "moe::"),
    ("moe-combine-barrier", "moe.cu", "top_k + threadIdx.x];\n    }\n    __syncthreads();", "top_k + threadIdx.x];\n    }", "moe::"),
    ("moe-expert-bias", "linear.cuh", "p.expert_bias[expert]", "p.expert_bias[0]", "moe::"),
    ("delta-history", "gated_delta.cu", "history(a, sequence, at + i, channel)", "history(a, sequence, at, channel)", "gated_delta::"),
    ("delta-first-barrier", "gated_delta.cu", "            k[i] = row[(a.k_heads + key_head) * a.k_dim + i];\n        }\n        __syncthreads();", "            k[i] = row[(a.k_heads + key_head) * a.k_dim + i];\n        }", "gated_delta::"),
    ("delta-second-barrier", "gated_delta.cu", "        // Before others read the state, and before the next token's q and k.\n        __syncthreads();", "", "gated_delta::"),
    ("delta-key-head", "gated_delta.cu", "head / (a.v_heads / a.k_heads)", "head % a.k_heads", "gated_delta::"),
    ("delta-save", "gated_delta.cu", "a.saves[2 * save] == token + 1 - start", "a.saves[2 * save] == token - start", "gated_delta::"),
    ("delta-source", "gated_delta.cu", "source < 0 ? 0.f : a.states[slot(source) + i]", "source < 0 ? 0.f : a.states[slot(0) + i]", "gated_delta::"),
    ("delta-conv-save", "gated_delta.cu", "* kept + i) * a.channels + channel] = rows[i];", "* kept + i) * a.channels + channel] = rows[0];", "gated_delta::"),
    ("sample-mask", "sample.cu", "mask[i / 32] >> (i % 32) & 1", "mask[i / 32] >> (i % 31) & 1", "sample::"),
    ("sample-mask-words", "sample.cu", "i / 32 < s.mask_words &&", "", "sample::"),
    ("sample-mask-barrier", "sample.cu", "            if (!allowed) logits[i] = -INFINITY;\n        }\n        __syncthreads();", "            if (!allowed) logits[i] = -INFINITY;\n        }", "sample::"),
    ("sample-bias-barrier", "sample.cu", "s.bias_values[i];\n    __syncthreads();", "s.bias_values[i];", "sample::"),
    ("sample-penalty", "sample.cu", "logit > 0.f ? logit / row.repetition : logit * row.repetition", "logit / row.repetition", "sample::"),
    ("sample-philox", "sample.cu", "round < 10", "round < 9", "sample::"),
    (
        "sample-top-k",
        "sample.cu",
        "min(row.top_k - last.count_above, last.ties)",
        "min(row.top_k + 1 - last.count_above, last.ties)",
        "sample::",
    ),
    ("sample-top-k-ties", "sample.cu", "kept_ties = min(row.top_k - last.count_above, last.ties);", "kept_ties = last.ties;", "sample::"),
    ("sample-min-p", "sample.cu", "logf(row.min_p) / scale", "logf(row.min_p)", "sample::"),
    ("sample-histogram-barrier", "sample.cu", "            search.counts[i] = 0;\n        }\n        __syncthreads();", "            search.counts[i] = 0;\n        }", "sample::"),
    ("sample-tie", "sample.cu", "return nth_of_key(logits, vocab, chosen.key, tie, search);", "return nth_of_key(logits, vocab, chosen.key, 0, search);", "sample::"),
    ("sample-order-tail", "sample.cu", "target >= before + sum - here && target", "target", "sample::"),
    ("sample-rank", "sample.cu", "larger += logits[i] > logits[token];", "larger += logits[i] >= logits[token];", "sample::"),
    ("sample-top-later", "sample.cu", "(x == value && i > index)", "(x == value && i >= index)", "sample::"),
    ("follow-row", "sample.cu", "max(chosen[row], 0)", "max(chosen[i], 0)", "chosen::"),
    ("follow-known", "sample.cu", "if (row != KNOWN) token_ids", "token_ids", "chosen::"),
    ("follow-none", "sample.cu", "max(chosen[row], 0)", "chosen[row]", "chosen::"),
    ("follow-tail", "sample.cu", "    if (i >= count) return;\n    const unsigned row", "    const unsigned row", "chosen::"),
    ("argmax-piece-tail", "sample.cu", "min(PIECE, vocab - first)", "PIECE", "sample::"),
    ("argmax-first-of-equals", "sample.cu", "        if (other > value || (other == value && at < index)) {\n            value = other;\n            index = at;\n        }\n    }\n    if (threadIdx.x == 0) tokens", "        if (other >= value) {\n            value = other;\n            index = at;\n        }\n    }\n    if (threadIdx.x == 0) tokens", "sample::"),
    ("act-early", "activation.cu", "    wait_for_previous();\n", "", "rows::"),
    ("attend-early", "attention.cu", "    wait_for_previous();\n", "", "attention::"),
    ("bf16-early", "bf16.cu", "    wait_for_previous();\n", "", "linear::"),
    ("dense-early", "dense.cu", "    wait_for_previous();\n", "", "linear::"),
    ("flash-early", "flash.cu", "    wait_for_previous();\n", "", "attention::"),
    ("delta-early", "gated_delta.cu", "    wait_for_previous();\n", "", "gated_delta::"),
    ("linear-early", "linear.cu", "    wait_for_previous();\n", "", "linear::"),
    ("moe-early", "moe.cu", "    wait_for_previous();\n", "", "moe::"),
    ("norm-early", "norm.cu", "    wait_for_previous();\n", "", "rows::"),
    ("qkv-early", "qkv.cu", "    wait_for_previous();\n", "", "qkv::"),
    ("sample-early", "sample.cu", "    wait_for_previous();\n", "", "sample::"),
    ("norm-early-read", "norm.cu", "    wait_for_previous();\n    SHARED(float, scratch, THREADS / WARP);\n    const size_t start = static_cast<size_t>(blockIdx.x) * width;\n    float squares = 0.f;\n", "    SHARED(float, scratch, THREADS / WARP);\n    const size_t start = static_cast<size_t>(blockIdx.x) * width;\n    float squares = 0.f * x[start];\n    wait_for_previous();\n", "rows::"),
]  # fmt: skip


def compile_unit(source: pathlib.Path, include: pathlib.Path, out: pathlib.Path, checked: bool) -> None:
    extra = CHECKED if checked else []
    subprocess.run(
        ["g++", *FLAGS, *extra, f"-I{include}", f"-I{EMULATOR}", "-c", str(source), "-o", str(out)], check=True
    )


class Objects:
    """Compiled units of the unbroken kernels."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.units: dict[str, list[pathlib.Path]] = {}
        for source in sorted([*CUDA.glob("*.cu"), *EMULATOR.glob("emu/*.cu")]):
            self.units[source.name] = self.compile(source, CUDA, folder)
        runtime = folder / "runtime.o"
        compile_unit(EMULATOR / "emu/emu.cpp", CUDA, runtime, checked=False)
        self.units["emu.cpp"] = [runtime]

    @staticmethod
    def compile(source: pathlib.Path, include: pathlib.Path, folder: pathlib.Path) -> list[pathlib.Path]:
        out = [folder / f"{source.stem}.{checked}.o" for checked in (0, 1)]
        for checked, path in enumerate(out):
            compile_unit(source, include, path, bool(checked))
        return out

    def link(self, changed: dict[str, list[pathlib.Path]], folder: pathlib.Path) -> None:
        paths = [str(path) for unit in {**self.units, **changed}.values() for path in unit]
        subprocess.run(["g++", "-shared", *paths, "-o", str(folder / "libfastchat_emulated.so")], check=True)


def run(binary: str, library: pathlib.Path, tests: str) -> bool:
    """Whether the tests pass on a library; where they do not, `failure` of its folder says why."""
    env = {**os.environ, "LD_LIBRARY_PATH": str(library), "RUST_BACKTRACE": "0", "PROPTEST_MAX_SHRINK_ITERS": "0"}
    try:
        done = subprocess.run([binary, tests], env=env, capture_output=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        return False
    (library / "failure").write_bytes(done.stdout + done.stderr)
    return done.returncode == 0


def main() -> int:
    binary, wanted = sys.argv[1], sys.argv[2:]
    chosen = [mutant for mutant in MUTANTS if not wanted or mutant[0] in wanted]
    survivors = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        objects = Objects(folder)
        objects.link({}, folder)
        for tests in sorted({mutant[4] for mutant in chosen}):
            if not run(binary, folder, tests):
                print(f"{tests} fails without a mutant:\n{(folder / 'failure').read_text()}")
                return 1
        for title, file, old, new, tests in chosen:
            text = (CUDA / file).read_text()
            if text.count(old) == 0:
                print(f"{title}: not found in {file}: {old!r}")
                return 1
            mutated = folder / title
            mutated.mkdir()
            for path in [*CUDA.glob("*.cu"), *CUDA.glob("*.cuh")]:
                (mutated / path.name).write_text(text.replace(old, new, 1) if path.name == file else path.read_text())
            # A header's mutant shows in the units that the tests are about.
            by_tests = {
                "rows::": ["norm.cu", "activation.cu"],
                "linear::": ["linear.cu", "dense.cu", "bf16.cu"],
                "moe::": ["linear.cu", "dense.cu", "bf16.cu"],
                "attention::": ["attention.cu", "flash.cu"],
            }
            units = [file] if file.endswith(".cu") else by_tests[tests]
            changed = {unit: objects.compile(mutated / unit, mutated, mutated) for unit in units}
            objects.link(changed, mutated)
            killed = not run(binary, mutated, tests)
            print(f"{title}: {'red' if killed else 'SURVIVED'}", flush=True)
            if not killed:
                survivors.append(title)
    print(
        f"{len(chosen) - len(survivors)} of {len(chosen)} mutants found" + (f", not {survivors}" if survivors else "")
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
