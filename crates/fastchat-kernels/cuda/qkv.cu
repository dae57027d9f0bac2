// From a fused qkv row to a query row and cached keys and values: norm, rotation and rounding in one pass. A warp has one
// head of one token. The cache is [blocks, kv_heads, 16, dim] for keys as for values.
#include "rt.cuh"

namespace {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;

enum Scope { NO_NORM = 0, PER_HEAD = 1, FULL_WIDTH = 2 };

/// Also Rust's, field by field.
struct Qkv {
    /// f32 [tokens, (heads + 2 kv_heads) * head_dim].
    const float* qkv;
    const float* q_weight;
    const float* k_weight;
    /// f32 [.., half], or null for layers without positions; and the row of each token, or null: a row for each token.
    const float* cos;
    const float* sin;
    const unsigned* angles;
    const unsigned* slots;
    /// f32 [tokens, heads * head_dim].
    float* q;
    void* k_cache;
    void* v_cache;
    float eps;
    int tokens, heads, kv_heads, head_dim, half, scope, interleaved;
};

/// The row of angles by which a token turns.
__device__ __forceinline__ size_t angle_row(const unsigned* angles, size_t token) { return angles == nullptr ? token : angles[token]; }

/// Where the elements of one head of one token start in a cache of heads of `dim`.
__device__ __forceinline__ size_t cached_at(unsigned slot, int kv_heads, int head, int dim) {
    const size_t block = slot / BLOCK_SIZE, offset = slot % BLOCK_SIZE;
    return ((block * kv_heads + head) * BLOCK_SIZE + offset) * dim;
}

/// The places of a rotated pair in its head.
__device__ __forceinline__ void pair_at(int i, int half, int interleaved, int& first, int& second) {
    first = interleaved ? 2 * i : i;
    second = interleaved ? 2 * i + 1 : i + half;
}

template <typename E>
__global__ void qk_norm_rope_write(Qkv a) {
    wait_for_previous();
    SHARED(float, scratch, WARPS);
    const int token = blockIdx.x, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int item = blockIdx.y * WARPS + warp, dim = a.head_dim;
    const float* const row = a.qkv + static_cast<size_t>(token) * (a.heads + 2 * a.kv_heads) * dim;
    float roots[2] = {1.f, 1.f};
    if (a.scope == FULL_WIDTH) {
        for (int side = 0; side < 2; ++side) {
            const int start = side * a.heads * dim, width = (side == 0 ? a.heads : a.kv_heads) * dim;
            float squares = 0.f;
            for (int i = threadIdx.x; i < width; i += THREADS) squares += row[start + i] * row[start + i];
            roots[side] = sqrtf(block_sum(squares, scratch) / width + a.eps);
        }
    }
    // Warps leave as a whole.
    if (item >= a.heads + 2 * a.kv_heads) return;
    const float* const x = row + static_cast<size_t>(item) * dim;
    const int side = item < a.heads ? 0 : item < a.heads + a.kv_heads ? 1 : 2;
    const int head = side == 0 ? item : side == 1 ? item - a.heads : item - a.heads - a.kv_heads;
    if (side == 2) {
        E* const v = static_cast<E*>(a.v_cache) + cached_at(a.slots[token], a.kv_heads, head, dim);
        for (int i = lane; i < dim; i += WARP) v[i] = from_float<E>(x[i]);
        return;
    }
    float root = roots[side];
    if (a.scope == PER_HEAD) {
        float squares = 0.f;
        for (int i = lane; i < dim; i += WARP) squares += x[i] * x[i];
        root = sqrtf(warp_sum(squares) / dim + a.eps);
    }
    const float* weight = side == 0 ? a.q_weight : a.k_weight;
    if (a.scope == FULL_WIDTH) weight += static_cast<size_t>(head) * dim;
    const auto normed = [&](int i) { return a.scope == NO_NORM ? x[i] : x[i] / root * weight[i]; };
    float* const q = a.q + (static_cast<size_t>(token) * a.heads + head) * dim;
    E* const k = static_cast<E*>(a.k_cache) + (side == 1 ? cached_at(a.slots[token], a.kv_heads, head, dim) : 0);
    const auto store = [&](int i, float value) {
        if (side == 0) {
            q[i] = value;
        } else {
            k[i] = from_float<E>(value);
        }
    };
    const int half = a.cos == nullptr ? 0 : a.half;
    const size_t angle = half > 0 ? angle_row(a.angles, token) * half : 0;
    for (int i = lane; i < half; i += WARP) {
        const float cos = a.cos[angle + i], sin = a.sin[angle + i];
        int first, second;
        pair_at(i, half, a.interleaved, first, second);
        const float u = normed(first), v = normed(second);
        store(first, u * cos - v * sin);
        store(second, v * cos + u * sin);
    }
    for (int i = 2 * half + lane; i < dim; i += WARP) store(i, normed(i));
}

/// Rotates 2 * half elements of each head of x, from `start` on; a warp per head.
__global__ void rope(const float* x, const float* cos, const float* sin, const unsigned* angles, float* out, long long heads,
                     int heads_per_token, int dim, int half, int start, int interleaved) {
    wait_for_previous();
    const long long item = static_cast<long long>(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (item >= heads) return;
    const int lane = threadIdx.x % WARP;
    const size_t at = static_cast<size_t>(item) * dim, angle = angle_row(angles, item / heads_per_token) * half;
    for (int i = lane; i < half; i += WARP) {
        int first, second;
        pair_at(i, half, interleaved, first, second);
        const float u = x[at + start + first], v = x[at + start + second];
        out[at + start + first] = u * cos[angle + i] - v * sin[angle + i];
        out[at + start + second] = v * cos[angle + i] + u * sin[angle + i];
    }
    for (int i = lane; i < dim; i += WARP) {
        if (i < start || i >= start + 2 * half) out[at + i] = x[at + i];
    }
}

/// Rows of x into their slots; a warp per head.
template <typename E>
__global__ void write_kv(const float* x, const unsigned* slots, void* cache, long long heads, int kv_heads, int dim) {
    wait_for_previous();
    const long long item = static_cast<long long>(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (item >= heads) return;
    const int lane = threadIdx.x % WARP, head = static_cast<int>(item % kv_heads);
    E* const out = static_cast<E*>(cache) + cached_at(slots[item / kv_heads], kv_heads, head, dim);
    for (int i = lane; i < dim; i += WARP) out[i] = from_float<E>(x[static_cast<size_t>(item) * dim + i]);
}

}  // namespace

extern "C" int EXPORT(qk_norm_rope_write)(const Qkv* a, int element, void* stream) {
    if (a->tokens == 0) return launched();
    const dim3 grid(a->tokens, ceil_div(a->heads + 2 * a->kv_heads, WARPS));
    switch (static_cast<Element>(element)) {
        case Element::F32: LAUNCH(qk_norm_rope_write<float>, grid, THREADS, 0, stream, *a); break;
        case Element::F16: LAUNCH(qk_norm_rope_write<half_t>, grid, THREADS, 0, stream, *a); break;
        case Element::BF16: LAUNCH(qk_norm_rope_write<bf16_t>, grid, THREADS, 0, stream, *a); break;
        default: return INVALID_VALUE;
    }
    return launched();
}

/// x [tokens, heads * dim]; cos and sin [.., half], of which each token has the row that `angles` says, or its own.
extern "C" int EXPORT(rope)(const float* x, const float* cos, const float* sin, const unsigned* angles, float* out, int tokens,
                            int heads, int dim, int half, int start, int interleaved, void* stream) {
    const long long all = static_cast<long long>(tokens) * heads;
    if (all > 0) {
        LAUNCH(rope, ceil_div(all, WARPS), THREADS, 0, stream, x, cos, sin, angles, out, all, heads, dim, half, start,
               interleaved);
    }
    return launched();
}

/// x [tokens, kv_heads * dim].
extern "C" int EXPORT(write_kv)(const float* x, const unsigned* slots, void* cache, int element, int tokens, int kv_heads,
                                int dim, void* stream) {
    const long long heads = static_cast<long long>(tokens) * kv_heads;
    if (heads == 0) return launched();
    const int blocks = ceil_div(heads, WARPS);
    switch (static_cast<Element>(element)) {
        case Element::F32: LAUNCH(write_kv<float>, blocks, THREADS, 0, stream, x, slots, cache, heads, kv_heads, dim); break;
        case Element::F16: LAUNCH(write_kv<half_t>, blocks, THREADS, 0, stream, x, slots, cache, heads, kv_heads, dim); break;
        case Element::BF16: LAUNCH(write_kv<bf16_t>, blocks, THREADS, 0, stream, x, slots, cache, heads, kv_heads, dim); break;
        default: return INVALID_VALUE;
    }
    return launched();
}
