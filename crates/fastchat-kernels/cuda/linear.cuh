// What the products with quantised and with dense weights share: whose rows are multiplied, and where results go.
#pragma once

#include "activation.cuh"

namespace {

/// Also Rust's, field by field. Without `chunks` a block's tokens are consecutive rows; with them a chunk says which
/// expert it belongs to, and which entries of the batch it holds.
struct Product {
    /// The weight, or null where each expert has its own.
    const void* weight;
    const void* const* experts;
    /// (expert, first entry, entries) of each chunk.
    const int* chunks;
    /// Row of x for each entry; null: its own.
    const unsigned* gather;
    /// f32 [.., cols].
    const float* x;
    /// x in 8 bits, [.., groups]; null: a block rounds its rows itself. Quantised weights only.
    const void* rounded;
    /// Per row of the weight, or null; per expert, or null.
    const float* bias;
    const float* const* expert_bias;
    /// f32 [entries, out_stride], written from `out_column` on.
    float* out;
    int rows, cols, entries, out_stride, out_column;
    /// Results are act(row) * (row + rows / 2), or the rows themselves.
    int gated;
    Activation act;
};

/// One block's part of a product.
struct Chunk {
    const void* weight;
    const float* bias;
    int first, count;
};

/// Chunk `index` of at most `most` entries.
__device__ __forceinline__ Chunk chunk_at(const Product& p, int index, int most) {
    if (p.chunks == nullptr) {
        const int first = index * most;
        return {p.weight, p.bias, first, min(most, p.entries - first)};
    }
    const int expert = p.chunks[3 * index];
    const float* const bias = p.expert_bias == nullptr || expert < 0 ? nullptr : p.expert_bias[expert];
    if (expert < 0) return {nullptr, nullptr, 0, 0};
    return {p.experts[expert], bias, p.chunks[3 * index + 1], p.chunks[3 * index + 2]};
}

/// Row of x of the chunk's entry `t`; entries past the end repeat the last, so that loads stay inside.
__device__ __forceinline__ size_t source_row(const Product& p, const Chunk& chunk, int t) {
    const int entry = chunk.first + min(t, chunk.count - 1);
    return p.gather == nullptr ? entry : p.gather[entry];
}

/// Stores the sum of `row`, or of the pair that `row` and `other` are.
__device__ __forceinline__ void finish(const Product& p, const Chunk& chunk, int t, int row, float sum, float other) {
    if (chunk.bias != nullptr) {
        sum += chunk.bias[row];
        if (p.gated) other += chunk.bias[row + p.rows / 2];
    }
    const size_t at = static_cast<size_t>(chunk.first + t) * p.out_stride + p.out_column + row;
    p.out[at] = p.gated ? activate_gated(p.act, sum, other) : sum;
}

}  // namespace
