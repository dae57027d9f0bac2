// Causal attention over the paged cache. A block has the rows (token, head of the group) of one tile of one sequence and
// one cached head, and walks over spans of keys. A span's softmax is computed by itself, from its first key on; spans are
// then merged in order. So a row's result depends on its position alone: not on its tile, on how the walk was cut among
// blocks, nor on prefill or decode. The cache is [blocks, kv_heads, 16, dim]; without values they are the head of the keys.
#include "attention.cuh"

namespace {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;
/// Keys scored at once.
constexpr int TILE = 64;
/// Elements of keys or values in shared memory at once, and their stride there, without bank conflicts.
constexpr int SLICE = 32;
constexpr int STRIDE = SLICE + 1;

/// Loads SLICE elements from `element` on of TILE keys from `first` on; zero where there is no key or no element.
template <typename E>
__device__ __forceinline__ void load_slice(const E* cache, const unsigned* table, size_t head, int kv_heads, int dim, int element,
                                           int width, int first, int from, int until, float* out) {
    for (int i = threadIdx.x; i < TILE * SLICE; i += THREADS) {
        const int key = first + i / SLICE, d = element + i % SLICE;
        float value = 0.f;
        if (key >= from && key < until && d < width) {
            const size_t block = table[key / BLOCK_SIZE];
            value = to_float(cache[((block * kv_heads + head) * BLOCK_SIZE + key % BLOCK_SIZE) * dim + d]);
        }
        out[i / SLICE * STRIDE + i % SLICE] = value;
    }
}

template <typename E, int ROWS>
__global__ void __launch_bounds__(THREADS) attend(Attention a) {
    wait_for_previous();
    DYNAMIC_SHARED(float, memory);
    SHARED(float, scores, ROWS * TILE);
    SHARED(float, slice, TILE * STRIDE);
    SHARED(Soft, span_soft, ROWS);
    SHARED(Soft, soft, ROWS);
    SHARED(float, rescale, ROWS);
    SHARED(unsigned, last, 1);
    float* const queries = memory;
    float* const span_values = queries + ROWS * a.dim;
    float* const values = span_values + ROWS * a.v_dim;

    const int tile = blockIdx.x, head = blockIdx.y, split = blockIdx.z;
    const Walk walk = walk_of(a, tile, head, ROWS);
    if (walk.rows <= 0) return;
    const int thread = threadIdx.x, warp = thread / WARP, lane = thread % WARP, rows = walk.rows, from = walk.from, until = walk.until;

    for (int i = thread; i < ROWS * a.dim; i += THREADS) {
        const int row = i / a.dim;
        queries[i] = row < rows ? a.q[walk.row_of(a, row) * a.dim + i % a.dim] : 0.f;
    }
    for (int i = thread; i < ROWS * a.v_dim; i += THREADS) values[i] = 0.f;
    if (thread < ROWS) soft[thread] = {-INFINITY, 0.f};

    for (int span = walk.first_span + split; span < walk.end_span; span += a.splits) {
        for (int i = thread; i < ROWS * a.v_dim; i += THREADS) span_values[i] = 0.f;
        if (thread < ROWS) span_soft[thread] = {-INFINITY, 0.f};
        const int span_end = min(until, (span + 1) * SPAN);
        for (int first = span * SPAN; first < span_end; first += TILE) {
            if (first + TILE <= from) continue;
            // Scores: a thread has one key and every other row.
            constexpr int OWN = ROWS / 2;
            const int key = thread % TILE, odd = thread / TILE;
            float dots[OWN] = {};
            for (int element = 0; element < a.dim; element += SLICE) {
                __syncthreads();
                load_slice(static_cast<const E*>(a.k_cache), walk.table, head, a.kv_heads, a.dim, element, a.dim, first, from, until,
                           slice);
                __syncthreads();
                const int width = min(SLICE, a.dim - element);
                for (int d = 0; d < width; ++d) {
                    const float k = slice[key * STRIDE + d];
                    UNROLL
                    for (int r = 0; r < OWN; ++r) dots[r] += queries[(2 * r + odd) * a.dim + element + d] * k;
                }
            }
            UNROLL
            for (int r = 0; r < OWN; ++r) {
                const int row = 2 * r + odd;
                float score = dots[r] * a.scale;
                if (a.softcap > 0.f) score = a.softcap * tanhf(score / a.softcap);
                const int position = row < rows ? static_cast<int>(a.positions[walk.token_of(row)]) : -1;
                const int last = row < rows ? static_cast<int>(a.last_seen[walk.token_of(row)]) : -1;
                const bool seen = first + key <= last && (a.window == 0 || first + key > position - a.window);
                scores[row * TILE + key] = seen ? score : -INFINITY;
            }
            __syncthreads();
            // Weights: a warp has a row.
            for (int row = warp; row < ROWS; row += WARPS) {
                const float low = scores[row * TILE + lane], high = scores[row * TILE + lane + WARP];
                const Soft before = span_soft[row];
                const float top = fmaxf(before.top, warp_max(fmaxf(low, high)));
                const float of_low = low == -INFINITY ? 0.f : expf(low - top);
                const float of_high = high == -INFINITY ? 0.f : expf(high - top);
                const float sum = warp_sum(of_low + of_high);
                scores[row * TILE + lane] = of_low;
                scores[row * TILE + lane + WARP] = of_high;
                const float keep = before.top == -INFINITY ? 0.f : expf(before.top - top);
                __syncwarp();
                if (lane == 0) {
                    rescale[row] = keep;
                    span_soft[row] = {top, before.sum * keep + sum};
                }
            }
            // Values: a lane has an element, a warp every fourth row.
            for (int element = 0; element < a.v_dim; element += SLICE) {
                __syncthreads();
                const bool latent = a.v_cache == nullptr;
                load_slice(static_cast<const E*>(latent ? a.k_cache : a.v_cache), walk.table, head, a.kv_heads,
                           latent ? a.dim : a.v_dim, element, a.v_dim, first, from, until, slice);
                __syncthreads();
                if (element + lane >= a.v_dim) continue;
                for (int row = warp; row < ROWS; row += WARPS) {
                    float sum = 0.f;
                    for (int k = 0; k < TILE; ++k) sum += scores[row * TILE + k] * slice[k * STRIDE + lane];
                    float& value = span_values[row * a.v_dim + element + lane];
                    value = value * rescale[row] + sum;
                }
            }
        }
        __syncthreads();
        if (a.splits > 1) {
            for (int i = thread; i < rows * a.v_dim; i += THREADS) {
                part_at(a, walk, i / a.v_dim, span)[i % a.v_dim] = span_values[i];
            }
            if (thread < rows) {
                part_at(a, walk, thread, span)[a.v_dim] = span_soft[thread].top;
                part_at(a, walk, thread, span)[a.v_dim + 1] = span_soft[thread].sum;
            }
        } else {
            for (int i = thread; i < rows * a.v_dim; i += THREADS) {
                float top, before, now;
                meet(soft[i / a.v_dim].top, span_soft[i / a.v_dim].top, top, before, now);
                values[i] = values[i] * before + span_values[i] * now;
            }
            __syncthreads();
            if (thread < rows) {
                float top, before, now;
                meet(soft[thread].top, span_soft[thread].top, top, before, now);
                soft[thread] = {top, soft[thread].sum * before + span_soft[thread].sum * now};
            }
        }
        __syncthreads();
    }

    if (a.splits > 1) {
        // Whichever block of the walk ends last merges the spans of all.
        __threadfence();
        __syncthreads();
        unsigned* const done = a.done + static_cast<size_t>(tile) * a.kv_heads + head;
        if (thread == 0) last[0] = atomicAdd(done, 1u) == static_cast<unsigned>(a.splits) - 1;
        __syncthreads();
        if (!last[0]) return;
        __threadfence();
        if (thread == 0) *done = 0;
        for (int i = thread; i < rows * a.v_dim; i += THREADS) merge(a, walk, i / a.v_dim, i % a.v_dim);
        return;
    }
    for (int i = thread; i < rows * a.v_dim; i += THREADS) store(a, walk, i / a.v_dim, i % a.v_dim, values[i], soft[i / a.v_dim]);
}

size_t dynamic_bytes(const Attention& a, int rows) {
    return sizeof(float) * rows * (static_cast<size_t>(a.dim) + 2 * a.v_dim);
}

template <typename E, int ROWS>
int start(const Attention& a, void* stream) {
    const int group = a.heads / a.kv_heads;
    const long long tiles = static_cast<long long>(a.tokens) * group / ROWS + a.sequences;
    const size_t shared = dynamic_bytes(a, ROWS);
    ALLOW_SHARED((attend<E, ROWS>), shared);
    const dim3 grid(static_cast<unsigned>(tiles), a.kv_heads, a.splits);
    LAUNCH((attend<E, ROWS>), grid, THREADS, shared, stream, a);
    return launched();
}

template <typename E>
int with_rows(const Attention& a, int rows, void* stream) {
    if (rows == 4) return start<E, 4>(a, stream);
    if (rows == 8) return start<E, 8>(a, stream);
    if (rows == 16) return start<E, 16>(a, stream);
    return INVALID_VALUE;
}

}  // namespace

/// `rows` (4, 8 or 16) are the rows of a tile.
extern "C" int EXPORT(attention)(const Attention* a, int element, int rows, void* stream) {
    if (a->tokens == 0) return launched();
    switch (static_cast<Element>(element)) {
        case Element::F32: return with_rows<float>(*a, rows, stream);
        case Element::F16: return with_rows<half_t>(*a, rows, stream);
        case Element::BF16: return with_rows<bf16_t>(*a, rows, stream);
    }
    return INVALID_VALUE;
}
