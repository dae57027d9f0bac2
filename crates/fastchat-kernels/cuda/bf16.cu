// Products by tensor cores with weights that are bf16, or become one or two of that in registers. Inputs are taken as
// TERMS bf16 numbers: one rounds them, three add up to the float. What is added in which order depends on neither the
// number of tokens nor the launch: a span of columns is summed by itself, 16 columns an instruction, and spans are added
// in order. Columns come in multiples of 8, rows at multiples of 16 bytes.
#include "linear.cuh"
#include "tensor.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
/// Columns of a step of two instructions.
constexpr int STEP = 32;
/// After the numbers of `Element`, none of whose it is.
constexpr int E4M3 = 3;
/// Rows of the weight and tokens of an instruction.
constexpr int ROWS = 16, TOKENS = 8;

/// How weights lie: the columns of a span, the bytes of a weight, what a lane holds of eight neighbours, and how many bf16
/// numbers add up to a weight.
struct Plain {
    static constexpr int SPAN = 256, BYTES = 2, NUMBERS = 1;
    static constexpr bool SCALED = false;
    using Piece = uint4;

    static __device__ __forceinline__ void widen(const Piece& piece, uint4 (&out)[NUMBERS]) { out[0] = piece; }
};

/// f16, whose eleven bits are two bf16 numbers.
struct Halves {
    static constexpr int SPAN = 256, BYTES = 2, NUMBERS = 2;
    static constexpr bool SCALED = false;
    using Piece = uint4;

    static __device__ __forceinline__ void pair(unsigned two, unsigned& first, unsigned& rest) {
        unsigned words[NUMBERS];
        split_pair<bf16_t>(to_float(half_of_bits(two & 0xffffu)), to_float(half_of_bits(two >> 16)), words);
        first = words[0], rest = words[1];
    }

    static __device__ __forceinline__ void widen(const Piece& piece, uint4 (&out)[NUMBERS]) {
        pair(piece.x, out[0].x, out[1].x);
        pair(piece.y, out[0].y, out[1].y);
        pair(piece.z, out[0].z, out[1].z);
        pair(piece.w, out[0].w, out[1].w);
    }
};

/// E4M3 codes, of four neighbours in the order 0, 2, 1, 3; behind all rows f32 [rows, cols / 128] of scales.
struct Scaled {
    static constexpr int SPAN = 128, BYTES = 1, NUMBERS = 1;
    static constexpr bool SCALED = true;
    using Piece = uint2;

    /// Two neighbours, each in the low bits of a bf16's exponent and the high ones of its fraction, which is 2^-120 of it.
    static __device__ __forceinline__ unsigned pair(unsigned signs, unsigned magnitudes) {
        constexpr unsigned FACTORS = (127u + 120u) << 7 | (127u + 120u) << 23;
        return scale_pair((signs & 0x80008000u) | (magnitudes & 0x07f007f0u), FACTORS);
    }

    static __device__ __forceinline__ void widen(const Piece& piece, uint4 (&out)[NUMBERS]) {
        out[0] = {pair(piece.x << 8, piece.x << 4), pair(piece.x, piece.x >> 4), pair(piece.y << 8, piece.y << 4),
                  pair(piece.y, piece.y >> 4)};
    }

    static __device__ __forceinline__ float scale(const Product& p, const Chunk& chunk, size_t row, int span) {
        const auto codes = static_cast<const unsigned char*>(chunk.weight);
        const auto scales = reinterpret_cast<const float*>(codes + static_cast<size_t>(p.rows) * p.cols);
        return scales[row * (p.cols / SPAN) + span];
    }
};

/// A lane's eight neighbours of two rows, each number of them an operand of its own.
template <typename W>
struct Widened {
    uint4 rows[W::NUMBERS][2];

    __device__ __forceinline__ Widened(const typename W::Piece& first, const typename W::Piece& second) {
        uint4 wide[2][W::NUMBERS];
        W::widen(first, wide[0]);
        W::widen(second, wide[1]);
        UNROLL
        for (int number = 0; number < W::NUMBERS; ++number) {
            rows[number][0] = wide[0][number], rows[number][1] = wide[1][number];
        }
    }

    /// One of the two instructions, with every number.
    template <int TERMS>
    __device__ __forceinline__ void multiply(float (&sums)[4], const uint4 (&inputs)[TERMS], int half) const {
        UNROLL
        for (int number = 0; number < W::NUMBERS; ++number) ::multiply<bf16_t>(sums, rows[number], inputs, half);
    }
};

/// Up to 8 tokens: a warp has 16 rows, or 16 pairs of rows, and of their spans every `sharing`th; the first of the warps
/// that share rows adds their sums.
template <typename W, int TERMS, int PARTS>
__global__ void __launch_bounds__(THREADS) few(Product p, int most, int sharing) {
    wait_for_previous();
    SHARED(float4, partial, 2 * PARTS * THREADS);
    const Chunk chunk = chunk_at(p, blockIdx.x, most);
    if (chunk.count <= 0) return;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, share = warp % sharing;
    const int rows = p.rows / PARTS, first_row = (blockIdx.y * (WARPS / sharing) + warp / sharing) * ROWS + lane / 4;
    const int column = lane % 4 * WIDE;
    const auto row_of = [&](int part, int i) -> size_t { return part * rows + min(first_row + 8 * i, rows - 1); };
    const unsigned char* w[PARTS][2];
    UNROLL
    for (int part = 0; part < PARTS; ++part) {
        UNROLL
        for (int i = 0; i < 2; ++i) {
            w[part][i] = static_cast<const unsigned char*>(chunk.weight) + (row_of(part, i) * p.cols + column) * W::BYTES;
        }
    }
    const float* const x = p.x + source_row(p, chunk, lane / 4) * p.cols + column;
    const int spans = (p.cols + W::SPAN - 1) / W::SPAN;
    float totals[PARTS][4] = {};
    int turn = 0;
    for (int first = 0; first < spans; first += sharing, turn ^= 1) {
        float sums[PARTS][4] = {};
        const int from = (first + share) * W::SPAN, until = min(from + W::SPAN, p.cols);
        UNROLL_BY_4
        for (int at = from; at < until; at += STEP) {
            const bool inside = at + column < p.cols;
            uint4 inputs[TERMS] = {};
            if (inside) split_wide<bf16_t>(x + at, inputs);
            UNROLL
            for (int part = 0; part < PARTS; ++part) {
                typename W::Piece pieces[2] = {};
                UNROLL
                for (int i = 0; i < 2; ++i) {
                    if (inside) pieces[i] = *reinterpret_cast<const typename W::Piece*>(w[part][i] + at * W::BYTES);
                }
                const Widened<W> weights(pieces[0], pieces[1]);
                weights.multiply(sums[part], inputs, 0);
                weights.multiply(sums[part], inputs, 1);
            }
        }
        if constexpr (W::SCALED) {
            UNROLL
            for (int i = 0; i < 2 * PARTS && from < p.cols; ++i) {
                const float scale = W::scale(p, chunk, row_of(i / 2, i % 2), first + share);
                sums[i / 2][2 * (i % 2)] *= scale, sums[i / 2][2 * (i % 2) + 1] *= scale;
            }
        }
        UNROLL
        for (int part = 0; part < PARTS; ++part) {
            const float4 own = {sums[part][0], sums[part][1], sums[part][2], sums[part][3]};
            partial[(turn * PARTS + part) * THREADS + threadIdx.x] = own;
        }
        // Two turns have places of their own, so one barrier a turn is enough.
        __syncthreads();
        if (share != 0) continue;
        UNROLL
        for (int part = 0; part < PARTS; ++part) {
            for (int other = 0; other < min(sharing, spans - first); ++other) {
                const float4 sum = partial[(turn * PARTS + part) * THREADS + threadIdx.x + other * WARP];
                totals[part][0] += sum.x, totals[part][1] += sum.y, totals[part][2] += sum.z, totals[part][3] += sum.w;
            }
        }
    }
    if (share != 0) return;
    UNROLL
    for (int i = 0; i < 4; ++i) {
        const int row = first_row + 8 * (i / 2), token = lane % 4 * 2 + i % 2;
        if (row < rows && token < chunk.count) finish(p, chunk, token, row, totals[0][i], totals[PARTS - 1][i]);
    }
}

/// What a block of `many` has: warps DOWN the rows and the others across the tokens, each with HIGH by LONG instructions,
/// and STAGES steps of inputs and weights in shared memory.
template <int TERMS, int DOWN_, int HIGH_, int LONG_, int STAGES_>
struct Tile {
    static constexpr int DOWN = DOWN_, HIGH = HIGH_, LONG = LONG_, STAGES = STAGES_;
    static constexpr int ROWS_OF = ROWS * HIGH * DOWN, TOKENS_OF = TOKENS * LONG * (WARPS / DOWN);
    /// Rows of weights, then of every part of the inputs, each of four pieces of 16 bytes.
    static constexpr int PIECES = 4 * (ROWS_OF + TERMS * TOKENS_OF);
    static constexpr size_t BYTES = STAGES * PIECES * sizeof(uint4);
};

template <int TERMS>
using Middle = Tile<TERMS, 1, 2, 1, 4>;
template <int TERMS>
using Large = Tile<TERMS, 2, 4, 4, TERMS == 1 ? 4 : 3>;

/// Many tokens, whose parts lie in `rounded`: a block has a tile of rows by tokens. Where results are gated, the upper half
/// of a warp's rows are the partners of the lower.
template <typename W, int TERMS, typename T>
__global__ void __launch_bounds__(THREADS) many(Product p) {
    wait_for_previous();
    DYNAMIC_SHARED(uint4, stages);
    const Chunk chunk = chunk_at(p, blockIdx.x, T::TOKENS_OF);
    if (chunk.count <= 0) return;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, down = warp % T::DOWN, across = warp / T::DOWN;
    const int rows = p.gated ? p.rows / 2 : p.rows, own_rows = ROWS * T::HIGH / (p.gated ? 2 : 1);
    // Row of the results for row `line` of a warp.
    const auto row_of = [&](int warp_down, int line) {
        return (static_cast<int>(blockIdx.y) * T::DOWN + warp_down) * own_rows + line % own_rows;
    };
    constexpr int COPIES = (T::PIECES + THREADS - 1) / THREADS;
    const int column = threadIdx.x % 4 * WIDE;
    // Row of the weight for row `line` of a warp.
    const auto weight_row = [&](int warp_down, int line) -> size_t {
        return min(row_of(warp_down, line), rows - 1) + (line < own_rows ? 0 : rows);
    };
    const unsigned char* from[COPIES];
    UNROLL
    for (int i = 0; i < COPIES; ++i) {
        const int line = (threadIdx.x + i * THREADS) / 4;
        if (line < T::ROWS_OF) {
            const size_t row = weight_row(line / (ROWS * T::HIGH), line % (ROWS * T::HIGH));
            from[i] = static_cast<const unsigned char*>(chunk.weight) + (row * p.cols + column) * W::BYTES;
        } else {
            const int term = (line - T::ROWS_OF) / T::TOKENS_OF, token = (line - T::ROWS_OF) % T::TOKENS_OF;
            const size_t row = source_row(p, chunk, token) * TERMS + min(term, TERMS - 1);
            from[i] = static_cast<const unsigned char*>(p.rounded) + (row * p.cols + column) * sizeof(bf16_t);
        }
    }
    const int steps = (p.cols + STEP - 1) / STEP;
    const auto fetch = [&](int step) {
        uint4* const to = stages + step % T::STAGES * T::PIECES + threadIdx.x;
        const bool inside = step * STEP + column < p.cols;
        UNROLL
        for (int i = 0; i < COPIES; ++i) {
            const int piece = static_cast<int>(threadIdx.x) + i * THREADS;
            if (step >= steps || piece >= T::PIECES) continue;
            const int at = inside ? step * STEP : 0;
            // A place has room for the longest piece.
            if (piece < 4 * T::ROWS_OF) copy_async<sizeof(typename W::Piece)>(to + i * THREADS, from[i] + at * W::BYTES, inside);
            else copy_async<16>(to + i * THREADS, from[i] + at * sizeof(bf16_t), inside);
        }
        close_copies();
    };
    float sums[T::HIGH][T::LONG][4] = {}, totals[T::HIGH][T::LONG][4] = {};
    for (int step = 0; step < T::STAGES - 1; ++step) fetch(step);
    for (int step = 0; step < steps; ++step) {
        wait_copies<T::STAGES - 2>();
        // All copies of this step have come, and nobody reads the stage that is fetched next.
        __syncthreads();
        fetch(step + T::STAGES - 1);
        const uint4* const stage = stages + step % T::STAGES * T::PIECES + lane;
        uint4 inputs[T::LONG][TERMS];
        UNROLL
        for (int n = 0; n < T::LONG; ++n) {
            UNROLL
            for (int term = 0; term < TERMS; ++term) {
                inputs[n][term] = stage[4 * (T::ROWS_OF + term * T::TOKENS_OF + (across * T::LONG + n) * TOKENS)];
            }
        }
        UNROLL
        for (int m = 0; m < T::HIGH; ++m) {
            const uint4* const at = stage + 4 * ROWS * (down * T::HIGH + m);
            const auto piece = [&](int i) { return *reinterpret_cast<const typename W::Piece*>(at + 4 * 8 * i); };
            const Widened<W> weights(piece(0), piece(1));
            UNROLL
            for (int half = 0; half < 2; ++half) {
                UNROLL
                for (int n = 0; n < T::LONG; ++n) weights.multiply(sums[m][n], inputs[n], half);
            }
        }
        if ((step + 1) % (W::SPAN / STEP) != 0 && step + 1 < steps) continue;
        UNROLL
        for (int m = 0; m < T::HIGH; ++m) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                float scale = 1.f;
                if constexpr (W::SCALED) {
                    scale = W::scale(p, chunk, weight_row(down, m * ROWS + lane / 4 + 8 * half), step / (W::SPAN / STEP));
                }
                UNROLL
                for (int n = 0; n < T::LONG; ++n) {
                    UNROLL
                    for (int i = 2 * half; i < 2 * half + 2; ++i) {
                        // Not contracted: few tokens are scaled before their spans are added.
                        totals[m][n][i] = __fadd_rn(totals[m][n][i], __fmul_rn(sums[m][n][i], scale));
                        sums[m][n][i] = 0.f;
                    }
                }
            }
        }
    }
    UNROLL
    for (int m = 0; m < T::HIGH; ++m) {
        if (p.gated && m >= T::HIGH / 2) break;
        UNROLL
        for (int n = 0; n < T::LONG; ++n) {
            UNROLL
            for (int i = 0; i < 4; ++i) {
                const int row = row_of(down, m * ROWS + lane / 4 + 8 * (i / 2));
                const int token = (across * T::LONG + n) * TOKENS + lane % 4 * 2 + i % 2;
                // The index of a register must be known here, gated or not.
                const float other = m < T::HIGH / 2 ? totals[(m + T::HIGH / 2) % T::HIGH][n][i] : 0.f;
                if (row < rows && token < chunk.count) finish(p, chunk, token, row, totals[m][n][i], other);
            }
        }
    }
}

/// A thread per eight columns of a row; the parts of a row follow one another.
template <int TERMS>
__global__ void split_rows(const float* x, uint4* out, long long rows, int cols) {
    wait_for_previous();
    const long long item = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
    const int pieces = cols / WIDE;
    if (item >= rows * pieces) return;
    const long long row = item / pieces, piece = item % pieces;
    uint4 parts[TERMS];
    split_wide<bf16_t>(x + item * WIDE, parts);
    UNROLL
    for (int term = 0; term < TERMS; ++term) out[(row * TERMS + term) * pieces + piece] = parts[term];
}

/// A thread per column of a row of codes.
__global__ void gather_codes(const unsigned char* table, const unsigned* ids, float* out, int rows, int cols) {
    wait_for_previous();
    const size_t row = ids[blockIdx.x];
    const auto scales = reinterpret_cast<const float*>(table + static_cast<size_t>(rows) * cols);
    for (int k = threadIdx.x; k < cols; k += THREADS) {
        const int within = (k & 1) << 1 | (k >> 1 & 1);
        const unsigned code = table[row * cols + (k & ~3) + within];
        const float value = __uint_as_float((code & 0x80u) << 24 | (code & 0x7fu) << 20) * 0x1p120f;
        out[static_cast<size_t>(blockIdx.x) * cols + k] = value * scales[row * (cols / Scaled::SPAN) + k / Scaled::SPAN];
    }
}

template <typename W, int TERMS>
int start(const Product& p, int chunks, int tokens, void* stream) {
    if (tokens <= TOKENS) {
        const int spans = ceil_div(p.cols, W::SPAN), rows = p.gated ? p.rows / 2 : p.rows;
        int sharing = 1;
        while (sharing < spans && sharing < WARPS) sharing *= 2;
        const dim3 grid(chunks, ceil_div(rows, ROWS * (WARPS / sharing)));
        if (p.gated) LAUNCH((few<W, TERMS, 2>), grid, THREADS, 0, stream, p, tokens, sharing);
        else LAUNCH((few<W, TERMS, 1>), grid, THREADS, 0, stream, p, tokens, sharing);
        return launched();
    }
    if (p.rounded == nullptr) return INVALID_VALUE;
    const auto run = [&](auto tile) {
        using T = decltype(tile);
        const dim3 grid(chunks, ceil_div(p.rows, T::ROWS_OF));
        ALLOW_SHARED((many<W, TERMS, T>), T::BYTES);
        LAUNCH((many<W, TERMS, T>), grid, THREADS, T::BYTES, stream, p);
        return launched();
    };
    if (tokens == Middle<TERMS>::TOKENS_OF) return run(Middle<TERMS>());
    if (tokens == Large<TERMS>::TOKENS_OF) return run(Large<TERMS>());
    return INVALID_VALUE;
}

template <typename W>
int start(const Product& p, int terms, int chunks, int tokens, void* stream) {
    if (p.cols % (W::SCALED ? W::SPAN : WIDE) != 0) return INVALID_VALUE;
    if (chunks == 0 || p.rows == 0) return launched();
    if (terms == 1) return start<W, 1>(p, chunks, tokens, stream);
    if (terms == 3) return start<W, 3>(p, chunks, tokens, stream);
    return INVALID_VALUE;
}

}  // namespace

/// `terms` parts (1 or 3) of every row.
extern "C" int EXPORT(split_rows)(const float* x, void* out, int terms, long long rows, int cols, void* stream) {
    if (cols % WIDE != 0) return INVALID_VALUE;
    const long long items = rows * (cols / WIDE);
    if (items == 0) return launched();
    uint4* const to = static_cast<uint4*>(out);
    if (terms == 1) LAUNCH(split_rows<1>, ceil_div(items, THREADS), THREADS, 0, stream, x, to, rows, cols);
    else if (terms == 3) LAUNCH(split_rows<3>, ceil_div(items, THREADS), THREADS, 0, stream, x, to, rows, cols);
    else return INVALID_VALUE;
    return launched();
}

/// `chunks` blocks of up to `tokens` entries each: up to 8, which a block splits itself, or 64 or 128 that were split.
/// `element`: of the weights, BF16 or F16, or the number of E4M3 codes and scales.
extern "C" int EXPORT(dense_bf16)(const Product* p, int element, int terms, int chunks, int tokens, void* stream) {
    if (p->gated && p->rows % 2 != 0) return INVALID_VALUE;
    switch (element) {
        case static_cast<int>(Element::BF16): return start<Plain>(*p, terms, chunks, tokens, stream);
        case static_cast<int>(Element::F16): return start<Halves>(*p, terms, chunks, tokens, stream);
        case E4M3: return start<Scaled>(*p, terms, chunks, tokens, stream);
        default: return INVALID_VALUE;
    }
}

/// Rows `ids` of a table of `rows` rows of E4M3 codes.
extern "C" int EXPORT(gather_codes)(const void* table, const unsigned* ids, float* out, int count, int rows, int cols,
                                    void* stream) {
    if (cols % Scaled::SPAN != 0) return INVALID_VALUE;
    if (count == 0) return launched();
    LAUNCH(gather_codes, count, THREADS, 0, stream, static_cast<const unsigned char*>(table), ids, out, rows, cols);
    return launched();
}
