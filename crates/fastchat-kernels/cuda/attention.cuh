// What the two kernels of attention share: their arguments, softmaxes in pieces, and which sequence a tile belongs to.
#pragma once

#include "rt.cuh"

namespace {

/// Keys of a span: the unit of splitting. Rust knows it too.
constexpr int SPAN = 256;

/// Also Rust's, field by field.
struct Attention {
    /// f32 [tokens, heads * dim].
    const float* q;
    const void* k_cache;
    /// Null: values are the first `v_dim` elements of the keys.
    const void* v_cache;
    /// [tokens] twice, [sequences + 1] twice, [..].
    const unsigned* positions;
    const unsigned* last_seen;
    const unsigned* query_start;
    const unsigned* table_start;
    const unsigned* tables;
    /// f32 [heads], or null.
    const float* sinks;
    /// f32 [tokens, heads * v_dim].
    float* out;
    /// Spans of several blocks, [tokens * heads, spans, v_dim + 2]: values, maximum, sum. Null: one block walks them all.
    float* parts;
    /// Blocks that are done, per tile and cached head; zero before and after.
    unsigned* done;
    float scale;
    /// 0: none.
    float softcap;
    int sequences, tokens, heads, kv_heads, dim, v_dim;
    /// 0: none.
    int window;
    /// Blocks that share a walk: each has every `splits`th span. `spans` is what the longest context may have.
    int splits, spans;
};

/// A row's softmax so far: with the sum of weights and of weighted values, relative to the maximum.
struct Soft {
    float top, sum;
};

/// Factors that bring two softmaxes to their common maximum.
__device__ __forceinline__ void meet(float a, float b, float& top, float& of_a, float& of_b) {
    top = fmaxf(a, b);
    of_a = a == -INFINITY ? 0.f : expf(a - top);
    of_b = b == -INFINITY ? 0.f : expf(b - top);
}

/// The sequence that block column `tile` works for: tiles of `rows` rows, at least one more per sequence than needed.
__device__ __forceinline__ int sequence_of(const Attention& a, int group, int rows, int tile) {
    int low = 0, high = a.sequences;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        const long long start = static_cast<long long>(a.query_start[middle]) * group / rows + middle;
        if (start <= tile) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

}  // namespace
