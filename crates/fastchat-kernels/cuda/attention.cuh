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

/// The rows of a tile, and the keys that some of them sees.
struct Walk {
    int head, group;
    /// First token of the sequence; first row of the tile in it, and how many there are; none where that is not positive.
    int start, first_row, rows;
    int from, until, first_span, end_span;
    const unsigned* table;

    __device__ __forceinline__ int token_of(int row) const { return start + (first_row + row) / group; }
    __device__ __forceinline__ int head_of(int row) const { return head * group + (first_row + row) % group; }
    /// Of all rows of queries and results.
    __device__ __forceinline__ size_t row_of(const Attention& a, int row) const {
        return static_cast<size_t>(token_of(row)) * a.heads + head_of(row);
    }
};

/// Tile `tile` of up to `most` rows for cached head `head`.
__device__ __forceinline__ Walk walk_of(const Attention& a, int tile, int head, int most) {
    Walk walk = {};
    walk.head = head;
    walk.group = a.heads / a.kv_heads;
    const int sequence = sequence_of(a, walk.group, most, tile);
    walk.start = a.query_start[sequence];
    const int length = a.query_start[sequence + 1] - walk.start;
    walk.first_row = (tile - static_cast<int>(static_cast<long long>(walk.start) * walk.group / most) - sequence) * most;
    walk.rows = min(most, length * walk.group - walk.first_row);
    if (walk.rows <= 0) return walk;
    walk.table = a.tables + a.table_start[sequence];
    for (int row = 0; row < walk.rows; ++row) {
        walk.until = max(walk.until, static_cast<int>(a.last_seen[walk.token_of(row)]) + 1);
    }
    const int oldest = static_cast<int>(a.positions[walk.token_of(0)]) + 1 - a.window;
    walk.from = a.window > 0 ? max(oldest, 0) : 0;
    walk.first_span = walk.from / SPAN;
    walk.end_span = (walk.until + SPAN - 1) / SPAN;
    return walk;
}

/// Where a row's part of a span lies when several walk: values, maximum, sum.
__device__ __forceinline__ float* part_at(const Attention& a, const Walk& walk, int row, int span) {
    return a.parts + (walk.row_of(a, row) * a.spans + span) * (a.v_dim + 2);
}

/// Element `element` of a row's result, with one more key without a value where there are sinks.
__device__ __forceinline__ void store(const Attention& a, const Walk& walk, int row, int element, float value, Soft soft) {
    if (a.sinks != nullptr) {
        float top, before, now;
        meet(soft.top, a.sinks[walk.head_of(row)], top, before, now);
        value *= before;
        soft.sum = soft.sum * before + now;
    }
    a.out[walk.row_of(a, row) * a.v_dim + element] = value / soft.sum;
}

/// Merges an element of all spans of a row, in order, and stores it.
__device__ __forceinline__ void merge(const Attention& a, const Walk& walk, int row, int element) {
    Soft merged = {-INFINITY, 0.f};
    float value = 0.f;
    for (int span = walk.first_span; span < walk.end_span; ++span) {
        const float* const part = part_at(a, walk, row, span);
        float top, before, now;
        meet(merged.top, part[a.v_dim], top, before, now);
        value = value * before + part[element] * now;
        merged = {top, merged.sum * before + part[a.v_dim + 1] * now};
    }
    store(a, walk, row, element, value, merged);
}

}  // namespace
