// Causal attention over a cache of 16 bits by tensor cores. A warp has 16 rows (token, head of the group) of one sequence
// and one cached head and walks over spans of keys as attention.cu does: a span's softmax is computed by
// itself, and spans are merged in order, so that a row's result depends on its position alone. Queries and weights are
// taken as TERMS numbers of the cache's type. Keys and values go from the cache into the registers that an instruction
// takes; warps share nothing, and neighbours find each other's keys in the first-level cache. Rows of the cache have
// multiples of 8 elements.
#include "attention.cuh"
#include "tensor.cuh"

namespace {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;
constexpr int ROWS = 16;
/// Elements of a step of two instructions.
constexpr int STEP = 32;
/// Elements of values that a warp's lanes load at once, eight each, and most of those a row may have.
constexpr int GROUP = 64, MOST_GROUPS = 4;

__host__ __device__ constexpr int steps_of(int dim) { return (dim + STEP - 1) / STEP; }

/// Of a warp: its queries and its merged values, each where only the lane that owns them looks.
__host__ __device__ constexpr size_t query_pieces(int terms, int dim) { return 2u * terms * steps_of(dim) * WARP; }
__host__ __device__ constexpr size_t warp_bytes(int terms, int groups, int dim) {
    return query_pieces(terms, dim) * sizeof(uint4) + groups * (GROUP / WARP * ROWS) * WARP * sizeof(float);
}

template <typename E, int TERMS, int GROUPS>
__global__ void __launch_bounds__(THREADS) flash(Attention a) {
    wait_for_previous();
    DYNAMIC_SHARED(unsigned char, memory);
    // Keys scored at once: fewer where values take most registers.
    constexpr int TILE = GROUPS > 2 ? 32 : 64;
    constexpr int OWN = GROUPS * GROUP / 8;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, quad = lane / 4, quarter = lane % 4;
    const int head = blockIdx.y, split = blockIdx.z, tile = blockIdx.x * WARPS + warp;
    const Walk walk = walk_of(a, tile, head, ROWS);
    // Warps leave as a whole, those past the last tile too.
    if (walk.rows <= 0) return;
    const int rows = walk.rows, from = walk.from, until = walk.until;
    // This lane's rows are `quad` and eight further on; the last stands in for those past the end.
    int position[2], last[2];
    UNROLL
    for (int r = 0; r < 2; ++r) {
        const int token = walk.token_of(min(quad + 8 * r, rows - 1));
        position[r] = a.positions[token];
        last[r] = a.last_seen[token];
    }
    // Row and element of this lane's result `i` of tile `n`.
    const auto row_at = [&](int i) { return quad + 8 * (i / 2); };
    const auto element_at = [&](int n, int i) { return n / 8 * GROUP + 8 * (2 * quarter + i % 2) + n % 8; };

    uint4* const queries = reinterpret_cast<uint4*>(memory + warp * warp_bytes(TERMS, GROUPS, a.dim)) + lane;
    float* const values = reinterpret_cast<float*>(queries - lane + query_pieces(TERMS, a.dim)) + lane;
    const int steps = steps_of(a.dim);
    for (int step = 0; step < steps; ++step) {
        UNROLL
        for (int r = 0; r < 2; ++r) {
            const int row = min(quad + 8 * r, rows - 1), element = step * STEP + quarter * WIDE;
            uint4 parts[TERMS] = {};
            const size_t at = walk.row_of(a, row) * a.dim + element;
            if (element < a.dim) split_wide<E>(a.q + at, parts);
            UNROLL
            for (int term = 0; term < TERMS; ++term) queries[((step * TERMS + term) * 2 + r) * WARP] = parts[term];
        }
    }
    for (int i = 0; i < OWN * 4; ++i) values[i * WARP] = 0.f;
    Soft soft[2] = {{-INFINITY, 0.f}, {-INFINITY, 0.f}};
    const E* const keys = static_cast<const E*>(a.k_cache);
    const E* const values_of = static_cast<const E*>(a.v_cache);

    for (int span = walk.first_span + split; span < walk.end_span; span += a.splits) {
        float sums[OWN][4] = {};
        Soft own[2] = {{-INFINITY, 0.f}, {-INFINITY, 0.f}};
        const int span_end = min(until, (span + 1) * SPAN);
        for (int first = span * SPAN; first < span_end; first += TILE) {
            if (first + TILE <= from) continue;
            const auto exists = [&](int key) { return key >= from && key < until; };
            // Of the tile's blocks of the cache, this head's first row.
            size_t block_rows[TILE / BLOCK_SIZE];
            UNROLL
            for (int j = 0; j < TILE / BLOCK_SIZE; ++j) {
                const int at = first / BLOCK_SIZE + j;
                const size_t block = at * BLOCK_SIZE < until ? walk.table[at] : 0;
                block_rows[j] = (block * a.kv_heads + head) * BLOCK_SIZE;
            }
            float scores[TILE / 8][4] = {};
            for (int step = 0; step < steps; ++step) {
                const int element = step * STEP + quarter * WIDE;
                uint4 rows_of[TERMS][2];
                UNROLL
                for (int term = 0; term < TERMS; ++term) {
                    UNROLL
                    for (int r = 0; r < 2; ++r) rows_of[term][r] = queries[((step * TERMS + term) * 2 + r) * WARP];
                }
                uint4 key[TILE / 8][1] = {};
                UNROLL
                for (int n = 0; n < TILE / 8; ++n) {
                    const size_t row = block_rows[n / 2] + 8 * (n % 2) + quad;
                    if (exists(first + 8 * n + quad) && element < a.dim) {
                        key[n][0] = *reinterpret_cast<const uint4*>(keys + row * a.dim + element);
                    }
                }
                UNROLL
                for (int half = 0; half < 2; ++half) {
                    UNROLL
                    for (int term = 0; term < TERMS; ++term) {
                        UNROLL
                        for (int n = 0; n < TILE / 8; ++n) multiply<E>(scores[n], rows_of[term], key[n], half);
                    }
                }
            }
            float top[2] = {own[0].top, own[1].top}, sum[2] = {0.f, 0.f};
            UNROLL
            for (int n = 0; n < TILE / 8; ++n) {
                UNROLL
                for (int i = 0; i < 4; ++i) {
                    const int key = first + 8 * n + 2 * quarter + i % 2;
                    float score = scores[n][i] * a.scale;
                    if (a.softcap > 0.f) score = a.softcap * tanhf(score / a.softcap);
                    const bool seen = key <= last[i / 2] && (a.window == 0 || key > position[i / 2] - a.window);
                    scores[n][i] = seen ? score : -INFINITY;
                    top[i / 2] = fmaxf(top[i / 2], scores[n][i]);
                }
            }
            UNROLL
            for (int r = 0; r < 2; ++r) {
                for (int step = 1; step < 4; step *= 2) top[r] = fmaxf(top[r], __shfl_xor_sync(ALL_LANES, top[r], step));
            }
            UNROLL
            for (int n = 0; n < TILE / 8; ++n) {
                UNROLL
                for (int i = 0; i < 4; ++i) {
                    const float weight = scores[n][i] == -INFINITY ? 0.f : expf(scores[n][i] - top[i / 2]);
                    scores[n][i] = weight;
                    sum[i / 2] += weight;
                }
            }
            float keep[2];
            UNROLL
            for (int r = 0; r < 2; ++r) {
                for (int step = 1; step < 4; step *= 2) sum[r] += __shfl_xor_sync(ALL_LANES, sum[r], step);
                keep[r] = own[r].top == -INFINITY ? 0.f : expf(own[r].top - top[r]);
                own[r] = {top[r], own[r].sum * keep[r] + sum[r]};
            }
            UNROLL
            for (int n = 0; n < OWN; ++n) {
                UNROLL
                for (int i = 0; i < 4; ++i) sums[n][i] *= keep[i / 2];
            }
            UNROLL
            for (int j = 0; j < TILE / BLOCK_SIZE; ++j) {
                // Weights as rows of the next instruction: what a lane has of two tiles of eight keys is its share.
                unsigned weights[4][TERMS];
                UNROLL
                for (int i = 0; i < 4; ++i) {
                    const float(&own_scores)[4] = scores[2 * j + i / 2];
                    split_pair<E>(own_scores[i % 2 * 2], own_scores[i % 2 * 2 + 1], weights[i]);
                }
                UNROLL
                for (int g = 0; g < GROUPS; ++g) {
                    const int element = g * GROUP + quad * WIDE;
                    // Two neighbouring keys, and the two eight further on.
                    uint4 rows_of[4] = {};
                    UNROLL
                    for (int i = 0; i < 4; ++i) {
                        const int offset = 2 * quarter + i % 2 + 8 * (i / 2);
                        if (exists(first + j * BLOCK_SIZE + offset) && element < a.v_dim) {
                            rows_of[i] = *reinterpret_cast<const uint4*>(values_of + (block_rows[j] + offset) * a.v_dim + element);
                        }
                    }
                    UNROLL
                    for (int n = 0; n < 8; ++n) {
                        const auto word = [&](const uint4& row) { return n / 2 == 0 ? row.x : n / 2 == 1 ? row.y : n / 2 == 2 ? row.z : row.w; };
                        // An instruction wants keys side by side: the lower halves of a word, or the upper.
                        const unsigned halves = n % 2 ? 0x7632 : 0x5410;
                        const unsigned b[2] = {__byte_perm(word(rows_of[0]), word(rows_of[1]), halves),
                                               __byte_perm(word(rows_of[2]), word(rows_of[3]), halves)};
                        UNROLL
                        for (int term = 0; term < TERMS; ++term) {
                            const unsigned w[4] = {weights[0][term], weights[1][term], weights[2][term], weights[3][term]};
                            mma<E>(sums[8 * g + n], w, b);
                        }
                    }
                }
            }
        }
        UNROLL
        for (int r = 0; r < 2; ++r) {
            const bool mine = quad + 8 * r < rows;
            if (a.splits > 1 && mine && quarter == 0) {
                float* const to = part_at(a, walk, quad + 8 * r, span) + a.v_dim;
                to[0] = own[r].top, to[1] = own[r].sum;
            }
            float top, before, now;
            meet(soft[r].top, own[r].top, top, before, now);
            soft[r] = {top, soft[r].sum * before + own[r].sum * now};
            UNROLL
            for (int n = 0; n < OWN; ++n) {
                UNROLL
                for (int i = 2 * r; i < 2 * r + 2; ++i) {
                    if (a.splits == 1) {
                        float& value = values[(4 * n + i) * WARP];
                        value = value * before + sums[n][i] * now;
                    } else if (mine && element_at(n, i) < a.v_dim) {
                        part_at(a, walk, quad + 8 * r, span)[element_at(n, i)] = sums[n][i];
                    }
                }
            }
        }
    }

    if (a.splits == 1) {
        UNROLL
        for (int i = 0; i < 4; ++i) {
            if (row_at(i) >= rows) continue;
            for (int n = 0; n < OWN; ++n) {
                if (element_at(n, i) < a.v_dim) store(a, walk, row_at(i), element_at(n, i), values[(4 * n + i) * WARP], soft[i / 2]);
            }
        }
        return;
    }
    // Whichever warp of the walk ends last merges the spans of all.
    __threadfence();
    __syncwarp();
    unsigned* const done = a.done + static_cast<size_t>(tile) * a.kv_heads + head;
    unsigned before_this = 0;
    if (lane == 0) before_this = atomicAdd(done, 1u);
    if (__shfl_sync(ALL_LANES, before_this, 0) != static_cast<unsigned>(a.splits) - 1) return;
    __threadfence();
    if (lane == 0) *done = 0;
    for (int row = 0; row < rows; ++row) {
        for (int element = lane; element < a.v_dim; element += WARP) merge(a, walk, row, element);
    }
}

template <typename E, int TERMS, int GROUPS>
int start(const Attention& a, void* stream) {
    const int group = a.heads / a.kv_heads;
    const long long tiles = static_cast<long long>(a.tokens) * group / ROWS + a.sequences;
    const size_t shared = WARPS * warp_bytes(TERMS, GROUPS, a.dim);
    ALLOW_SHARED((flash<E, TERMS, GROUPS>), shared);
    const dim3 grid(ceil_div(tiles, WARPS), a.kv_heads, a.splits);
    LAUNCH((flash<E, TERMS, GROUPS>), grid, THREADS, shared, stream, a);
    return launched();
}

template <typename E, int TERMS>
int with_groups(const Attention& a, void* stream) {
    switch (ceil_div(a.v_dim, GROUP)) {
        case 1: return start<E, TERMS, 1>(a, stream);
        case 2: return start<E, TERMS, 2>(a, stream);
        case 3: return start<E, TERMS, 3>(a, stream);
        case MOST_GROUPS: return start<E, TERMS, MOST_GROUPS>(a, stream);
        default: return INVALID_VALUE;
    }
}

template <typename E>
int with_terms(const Attention& a, int terms, void* stream) {
    if (terms == 1) return with_groups<E, 1>(a, stream);
    if (terms == 3) return with_groups<E, 3>(a, stream);
    return INVALID_VALUE;
}

}  // namespace

/// Rows of the cache of up to 256 elements, in multiples of 8, with values of their own. `terms` (1 or 3) numbers of the
/// cache's type, f16 or bf16, stand for a query's element or a weight.
extern "C" int EXPORT(flash_attention)(const Attention* a, int element, int terms, void* stream) {
    const int most = GROUP * MOST_GROUPS;
    const bool fits = a->dim % WIDE == 0 && a->v_dim % WIDE == 0 && a->dim <= most && a->v_dim <= most;
    if (!fits || a->v_cache == nullptr) return INVALID_VALUE;
    if (a->tokens == 0) return launched();
    switch (static_cast<Element>(element)) {
        case Element::F16: return with_terms<half_t>(*a, terms, stream);
        case Element::BF16: return with_terms<bf16_t>(*a, terms, stream);
        default: return INVALID_VALUE;
    }
}
