// Products with plain floats, for few tokens: a warp has two rows of the weight, its lanes share the columns. A lane adds
// its columns in order, then the lanes are added by halves: the same for any number of tokens.
#include "linear.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
/// Columns that a lane loads at once.
constexpr int WIDE = 8;

/// Eight weights as floats.
__device__ __forceinline__ void load_wide(const float* at, float (&out)[WIDE]) {
    const float4 low = reinterpret_cast<const float4*>(at)[0], high = reinterpret_cast<const float4*>(at)[1];
    out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
    out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
}

template <typename W>
__device__ __forceinline__ void load_wide(const W* at, float (&out)[WIDE]) {
    struct alignas(16) Eight {
        W values[WIDE];
    };
    const Eight eight = *reinterpret_cast<const Eight*>(at);
    UNROLL
    for (int i = 0; i < WIDE; ++i) out[i] = to_float(eight.values[i]);
}

template <typename W, int T>
__global__ void __launch_bounds__(THREADS) dense(Product p, int wide) {
    wait_for_previous();
    const Chunk chunk = chunk_at(p, blockIdx.x, T);
    if (chunk.count <= 0) return;
    const int lane = threadIdx.x % WARP, warp = blockIdx.y * WARPS + threadIdx.x / WARP;
    const int rows = p.gated ? p.rows / 2 : p.rows, apart = p.gated ? rows : 1;
    const int row = p.gated ? warp : 2 * warp;
    // Warps leave as a whole.
    if (row >= rows) return;
    const int second = min(row + apart, p.rows - 1);
    const W* const weight = static_cast<const W*>(chunk.weight);
    const W* const w[2] = {weight + static_cast<size_t>(row) * p.cols, weight + static_cast<size_t>(second) * p.cols};
    const float* x[T];
    UNROLL
    for (int t = 0; t < T; ++t) x[t] = p.x + source_row(p, chunk, t) * p.cols;
    float sums[2][T] = {};
    if (wide) {
        for (int k = lane * WIDE; k < p.cols; k += WARP * WIDE) {
            float a[WIDE], b[WIDE], value[WIDE];
            load_wide(w[0] + k, a);
            load_wide(w[1] + k, b);
            UNROLL
            for (int t = 0; t < T; ++t) {
                load_wide(x[t] + k, value);
                UNROLL
                for (int i = 0; i < WIDE; ++i) {
                    sums[0][t] += a[i] * value[i];
                    sums[1][t] += b[i] * value[i];
                }
            }
        }
    } else {
        for (int k = lane; k < p.cols; k += WARP) {
            const float a = to_float(w[0][k]), b = to_float(w[1][k]);
            UNROLL
            for (int t = 0; t < T; ++t) {
                sums[0][t] += a * x[t][k];
                sums[1][t] += b * x[t][k];
            }
        }
    }
    UNROLL
    for (int t = 0; t < T; ++t) {
        const float first = warp_sum(sums[0][t]), other = warp_sum(sums[1][t]);
        if (t >= chunk.count || lane != 0) continue;
        finish(p, chunk, t, row, first, other);
        if (!p.gated && row + 1 < rows) finish(p, chunk, t, row + 1, other, 0.f);
    }
}

template <typename W>
__global__ void gather(const W* table, const unsigned* ids, float* out, int cols) {
    wait_for_previous();
    const size_t from = static_cast<size_t>(ids[blockIdx.x]) * cols, to = static_cast<size_t>(blockIdx.x) * cols;
    for (int i = threadIdx.x; i < cols; i += THREADS) out[to + i] = to_float(table[from + i]);
}

template <typename W>
int start(const Product& p, int chunks, int tokens, int wide, void* stream) {
    const int rows = p.gated ? p.rows / 2 : ceil_div(p.rows, 2);
    const dim3 grid(chunks, ceil_div(rows, WARPS));
    if (tokens == 1) LAUNCH((dense<W, 1>), grid, THREADS, 0, stream, p, wide);
    if (tokens == 4) LAUNCH((dense<W, 4>), grid, THREADS, 0, stream, p, wide);
    if (tokens == 8) LAUNCH((dense<W, 8>), grid, THREADS, 0, stream, p, wide);
    return launched();
}

}  // namespace

/// `chunks` blocks of up to `tokens` (1, 4 or 8) entries each. `aligned`: rows of the weights and of x start at
/// multiples of 16 bytes and have multiples of 8 columns.
extern "C" int EXPORT(dense)(const Product* p, int element, int chunks, int tokens, int aligned, void* stream) {
    if (aligned && p->cols % WIDE != 0) return INVALID_VALUE;
    if (chunks == 0 || p->rows == 0) return launched();
    switch (static_cast<Element>(element)) {
        case Element::F32: return start<float>(*p, chunks, tokens, aligned, stream);
        case Element::F16: return start<half_t>(*p, chunks, tokens, aligned, stream);
        case Element::BF16: return start<bf16_t>(*p, chunks, tokens, aligned, stream);
    }
    return INVALID_VALUE;
}

extern "C" int EXPORT(gather)(const void* table, int element, const unsigned* ids, float* out, int count, int cols,
                              void* stream) {
    if (count == 0) return launched();
    switch (static_cast<Element>(element)) {
        case Element::F32: LAUNCH(gather<float>, count, THREADS, 0, stream, static_cast<const float*>(table), ids, out, cols); break;
        case Element::F16: LAUNCH(gather<half_t>, count, THREADS, 0, stream, static_cast<const half_t*>(table), ids, out, cols); break;
        case Element::BF16: LAUNCH(gather<bf16_t>, count, THREADS, 0, stream, static_cast<const bf16_t*>(table), ids, out, cols); break;
        default: return INVALID_VALUE;
    }
    return launched();
}
