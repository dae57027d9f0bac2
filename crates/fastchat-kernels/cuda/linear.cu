// Products with GGML's quantised weights, in the tiles that cpu/linear/format.rs describes: 16 rows, groups of 32 columns,
// unsigned codes in quads of four columns. For few tokens a half-warp has a lane per row, and sixteen of them share a
// tile's groups; for many, tensor cores multiply.
// Inputs are rounded to 8 bits per group, dot products are exact, and what is added in which order depends on neither
// the number of tokens nor the launch: the two groups of a span are added, then the spans in order.
#include "linear.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int ROWS = 16;
constexpr int GROUP = 32;
constexpr int HALF_WARPS = THREADS / ROWS;
/// Groups of a span.
constexpr int SPAN = 2;
/// Tokens of an instruction, times LONG of a warp; warps of a block along the rows; tokens of a block.
constexpr int TOKENS = 8, LONG = 2, DOWN = 2, MANY = TOKENS * LONG * (THREADS / WARP / DOWN);
/// Dynamic shared memory that a block may use to round its inputs itself; Rust knows it too.
constexpr size_t OWN_ROUNDING = 40 << 10;

enum Plane { FOUR = 0, FIVE = 1, SIX = 2, EIGHT = 3 };
enum Scales { HALF = 0, HALF_SHIFT = 1, SUPER32 = 2, SUPER16 = 3, SIGNED16 = 4, SIGNED32 = 5, EXPONENT = 6 };

/// Also Rust's, field by field.
struct Format {
    int plane, scales;
    int offset;
    float unit;
    /// What nibbles stand for, four to a word, where `has_table`.
    int has_table;
    unsigned table[4];
};

/// A group of an input row: x[k] ~ scale * codes[k].
struct alignas(16) Rounded {
    int codes[8];
    float scale;
    /// Sums of the codes of either half.
    int sums[2];
    int unused;
};

__host__ __device__ constexpr int group_bytes(int plane) {
    return plane == FOUR ? 256 : plane == FIVE ? 320 : plane == SIX ? 384 : 512;
}
__host__ __device__ constexpr int groups_of(int scales) {
    return scales == HALF_SHIFT ? 1 : scales == HALF ? 2 : scales == EXPONENT ? 4 : 8;
}
__host__ __device__ constexpr int header_bytes(int scales) {
    return scales == SUPER32 || scales == SIGNED16 ? 320 : scales == SUPER16 ? 576 : scales == SIGNED32 ? 192 : 64;
}
__host__ __device__ constexpr int halves_of(int scales) { return scales == SUPER16 || scales == SIGNED16 ? 2 : 1; }
__host__ __device__ constexpr bool has_shift(int scales) {
    return scales == HALF_SHIFT || scales == SUPER32 || scales == SUPER16;
}
/// Groups of a row, in whole blocks of the widest format.
__host__ __device__ constexpr int padded_groups(int cols) { return (cols + 255) / 256 * 8; }

/// Bytes of a tile of rows of `cols`.
__host__ __device__ constexpr size_t tile_bytes(int plane, int scales, int cols) {
    const int wide = GROUP * groups_of(scales);
    const size_t block = header_bytes(scales) + groups_of(scales) * group_bytes(plane);
    return (cols + wide - 1) / wide * block;
}

/// The header of the block in which group `group` of a tile lies.
template <int PLANE, int SCALES>
__device__ __forceinline__ const uint8_t* header_at(const uint8_t* tile, int group) {
    constexpr size_t BLOCK = header_bytes(SCALES) + groups_of(SCALES) * group_bytes(PLANE);
    return tile + group / groups_of(SCALES) * BLOCK;
}

/// Half of 2^(exponent - 127): the table of FP4 is doubled. The two smallest are subnormal.
__device__ __forceinline__ float exponent_half(unsigned exponent) {
    return __uint_as_float(exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23);
}

struct Scale {
    float scale[2], shift[2];
};

/// Scales of group `group` of a block, for the tile's row `lane`.
template <int SCALES>
__device__ __forceinline__ Scale scales_of(const uint8_t* header, int group, int lane, float unit) {
    const auto half = [&](int at) { return __half2float(reinterpret_cast<const half_t*>(header + at)[lane]); };
    const auto natural = [&](int at) { return static_cast<float>(header[at + lane]); };
    const auto whole = [&](int at) { return static_cast<float>(reinterpret_cast<const int8_t*>(header)[at + lane]); };
    Scale out = {{0.f, 0.f}, {0.f, 0.f}};
    if constexpr (SCALES == HALF) {
        out.scale[0] = half(32 * group);
    } else if constexpr (SCALES == HALF_SHIFT) {
        out.scale[0] = half(0);
        out.shift[0] = half(32);
    } else if constexpr (SCALES == SUPER32) {
        out.scale[0] = half(0) * natural(64 + 32 * group);
        out.shift[0] = -(half(32) * natural(80 + 32 * group));
    } else if constexpr (SCALES == SUPER16) {
        UNROLL
        for (int s = 0; s < 2; ++s) {
            out.scale[s] = half(0) * natural(64 + 64 * group + 16 * s);
            out.shift[s] = -(half(32) * natural(96 + 64 * group + 16 * s));
        }
    } else if constexpr (SCALES == SIGNED16) {
        UNROLL
        for (int s = 0; s < 2; ++s) out.scale[s] = half(0) * unit * whole(64 + 32 * group + 16 * s);
    } else if constexpr (SCALES == SIGNED32) {
        out.scale[0] = half(0) * whole(64 + 16 * group);
    } else {
        out.scale[0] = exponent_half(header[16 * group + lane]);
    }
    return out;
}

/// Four nibbles, a byte each, into the bytes they stand for.
__device__ __forceinline__ unsigned look_up(const unsigned* table, unsigned nibbles) {
    const unsigned packed = (nibbles & 0xf) | (nibbles >> 4 & 0xf0) | (nibbles >> 8 & 0xf00) | (nibbles >> 12 & 0xf000);
    const unsigned low = __byte_perm(table[0], table[1], packed & 0x7777);
    const unsigned high = __byte_perm(table[2], table[3], packed & 0x7777);
    // 0xff in every byte whose nibble is 8 or more.
    const unsigned upper = (nibbles >> 3 & 0x01010101) * 0xff;
    return (low & ~upper) | (high & upper);
}

/// The codes of a group in row `lane`, a quad to a word.
template <int PLANE>
__device__ __forceinline__ void quads_of(const uint8_t* codes, int lane, const Format& format, unsigned (&quads)[8]) {
    const unsigned* const lines = reinterpret_cast<const unsigned*>(codes) + lane;
    if constexpr (PLANE == EIGHT) {
        UNROLL
        for (int i = 0; i < 8; ++i) quads[i] = lines[ROWS * i];
    } else {
        for (int i = 0; i < 4; ++i) {
            const unsigned line = lines[ROWS * i];
            quads[i] = line & 0x0f0f0f0f;
            quads[i + 4] = line >> 4 & 0x0f0f0f0f;
        }
        if constexpr (PLANE == FIVE) {
            const unsigned bits = lines[ROWS * 4];
            UNROLL
            for (int i = 0; i < 8; ++i) quads[i] |= (bits >> i & 0x01010101) << 4;
        } else if constexpr (PLANE == SIX) {
            UNROLL
            for (int i = 0; i < 8; ++i) quads[i] |= (lines[ROWS * (4 + i / 4)] >> (2 * (i % 4)) & 0x03030303) << 4;
        } else if (format.has_table) {
            UNROLL
            for (int i = 0; i < 8; ++i) quads[i] = look_up(format.table, quads[i]);
        }
    }
}

/// Rounds group `group` of a row; all lanes of a warp come.
__device__ __forceinline__ void round_group(const float* row, int cols, int group, Rounded& out) {
    const int lane = threadIdx.x % WARP, column = GROUP * group + lane;
    const float x = column < cols ? row[column] : 0.f;
    // As integers magnitudes compare alike, and NaN is the largest: it stays visible in the scale.
    unsigned largest = __float_as_uint(x) & 0x7fffffffu;
    for (int step = WARP / 2; step > 0; step /= 2) largest = max(largest, __shfl_xor_sync(ALL_LANES, largest, step));
    const float top = __uint_as_float(largest);
    const int code = __float2int_rn(x * (top == 0.f ? 0.f : 127.f / top));
    int sum = code;
    for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
    reinterpret_cast<int8_t*>(out.codes)[lane] = static_cast<int8_t>(code);
    if (lane % 16 == 0) out.sums[lane / 16] = sum;
    if (lane == 0) out.scale = top / 127.f;
}

/// A warp per group of rows of x.
__global__ void round_rows(const float* x, Rounded* out, long long rows, int cols) {
    wait_for_previous();
    const long long item = static_cast<long long>(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP;
    const int groups = padded_groups(cols);
    // Warps leave as a whole.
    if (item >= rows * groups) return;
    const long long row = item / groups;
    round_group(x + row * cols, cols, static_cast<int>(item % groups), out[item]);
}

/// What a group adds to a product: `dots` of either half, of a weight with `scale` and an input of `scale_of_input` and
/// `totals`. Nothing may be contracted, so that every kernel rounds alike.
template <int SCALES>
__device__ __forceinline__ float value_of(const int (&dots)[2], const int (&totals)[2], float scale_of_input, const Scale& scale,
                                          int offset) {
    float value = 0.f;
    UNROLL
    for (int half = 0; half < halves_of(SCALES); ++half) {
        const bool both = halves_of(SCALES) == 1;
        const int total = both ? totals[0] + totals[1] : totals[half], dot = both ? dots[0] + dots[1] : dots[half];
        const float product = static_cast<float>(dot - offset * total);
        value = __fadd_rn(value, __fmul_rn(product, __fmul_rn(scale.scale[half], scale_of_input)));
        if constexpr (has_shift(SCALES)) {
            value = __fadd_rn(value, __fmul_rn(scale.shift[half], __fmul_rn(scale_of_input, static_cast<float>(total))));
        }
    }
    return value;
}

/// Up to T tokens: a block has a tile of rows, or a pair of them, a half-warp every sixteenth span.
template <int PLANE, int SCALES, int T>
__global__ void __launch_bounds__(THREADS) multiply(Product p, Format format) {
    wait_for_previous();
    DYNAMIC_SHARED(Rounded, own);
    SHARED(float, partial, 2 * THREADS * T);
    const Chunk chunk = chunk_at(p, blockIdx.x, T);
    if (chunk.count <= 0) return;
    const int lane = threadIdx.x % ROWS, half_warp = threadIdx.x / ROWS, stride = padded_groups(p.cols);
    const int groups = (p.cols + GROUP - 1) / GROUP;
    const Rounded* x[T];
    if (p.rounded == nullptr) {
        for (int i = threadIdx.x / WARP; i < T * groups; i += THREADS / WARP) {
            const int t = i / groups, group = i % groups;
            round_group(p.x + source_row(p, chunk, t) * p.cols, p.cols, group, own[t * groups + group]);
        }
        __syncthreads();
        UNROLL
        for (int t = 0; t < T; ++t) x[t] = own + t * groups;
    } else {
        const Rounded* const rounded = static_cast<const Rounded*>(p.rounded);
        UNROLL
        for (int t = 0; t < T; ++t) x[t] = rounded + source_row(p, chunk, t) * stride;
    }
    // This thread's result, where it has one: of the tile itself, and of its pair.
    float results[2] = {0.f, 0.f};
    const int parts = p.gated ? 2 : 1, tiles_apart = p.rows / 2 / ROWS;
    int turn = 0;
    UNROLL
    for (int part = 0; part < 2; ++part) {
        if (part >= parts) break;
        const uint8_t* const tile = static_cast<const uint8_t*>(chunk.weight) +
                                    (blockIdx.y + static_cast<size_t>(part) * tiles_apart) * tile_bytes(PLANE, SCALES, p.cols);
        for (int first = 0; first < groups; first += SPAN * HALF_WARPS, turn ^= 1) {
            float sums[T] = {};
            const int from = first + half_warp * SPAN;
            UNROLL
            for (int group = from; group < from + SPAN; ++group) {
                if (group >= groups) continue;
                const uint8_t* const header = header_at<PLANE, SCALES>(tile, group);
                const int within = group % groups_of(SCALES);
                const Scale scale = scales_of<SCALES>(header, within, lane, format.unit);
                unsigned quads[8];
                quads_of<PLANE>(header + header_bytes(SCALES) + within * group_bytes(PLANE), lane, format, quads);
                UNROLL
                for (int t = 0; t < T; ++t) {
                    const Rounded& input = x[t][group];
                    int dots[2] = {0, 0};
                    UNROLL
                    for (int i = 0; i < 8; ++i) dots[i / 4] = dot4(quads[i], input.codes[i], dots[i / 4]);
                    sums[t] = __fadd_rn(sums[t], value_of<SCALES>(dots, input.sums, input.scale, scale, format.offset));
                }
            }
            float* const to = partial + turn * THREADS * T;
            UNROLL
            for (int t = 0; t < T; ++t) to[(t * HALF_WARPS + half_warp) * ROWS + lane] = sums[t];
            // Two turns have places of their own, so one barrier a turn is enough.
            __syncthreads();
            if (half_warp >= T) continue;
            const int present = min(HALF_WARPS, (groups - first + SPAN - 1) / SPAN);
            for (int h = 0; h < present; ++h) results[part] = __fadd_rn(results[part], to[(half_warp * HALF_WARPS + h) * ROWS + lane]);
        }
    }
    const int row = blockIdx.y * ROWS + lane;
    if (half_warp < chunk.count && row < (p.gated ? p.rows / 2 : p.rows)) {
        finish(p, chunk, half_warp, row, results[0], results[1]);
    }
}

/// Codes of a row as a lane of an instruction takes them: quads `quarter` and four further on.
template <int PLANE>
__device__ __forceinline__ void quads_at(const uint8_t* codes, int row, int quarter, const Format& format, unsigned (&quads)[2]) {
    const unsigned* const lines = reinterpret_cast<const unsigned*>(codes) + row;
    if constexpr (PLANE == EIGHT) {
        quads[0] = lines[ROWS * quarter];
        quads[1] = lines[ROWS * (4 + quarter)];
    } else {
        const unsigned line = lines[ROWS * quarter];
        quads[0] = line & 0x0f0f0f0f;
        quads[1] = line >> 4 & 0x0f0f0f0f;
        UNROLL
        for (int i = 0; i < 2; ++i) {
            if constexpr (PLANE == FIVE) {
                quads[i] |= (lines[ROWS * 4] >> (quarter + 4 * i) & 0x01010101) << 4;
            } else if constexpr (PLANE == SIX) {
                quads[i] |= (lines[ROWS * (4 + i)] >> (2 * quarter) & 0x03030303) << 4;
            } else if (format.has_table) {
                quads[i] = look_up(format.table, quads[i]);
            }
        }
    }
}

/// Many tokens by tensor cores: a warp has two tiles of rows, or one and its pair, by LONG times 8 tokens; a block two
/// warps along the rows, four across the tokens.
template <int PLANE, int SCALES>
__global__ void __launch_bounds__(THREADS) multiply_many(Product p, Format format) {
    wait_for_previous();
    const Chunk chunk = chunk_at(p, blockIdx.x, MANY);
    if (chunk.count <= 0) return;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, quad = lane / 4, quarter = lane % 4;
    const int down = blockIdx.y * DOWN + warp % DOWN, across = warp / DOWN;
    const int rows = p.gated ? p.rows / 2 : p.rows, tiles = (rows + ROWS - 1) / ROWS;
    const int groups = (p.cols + GROUP - 1) / GROUP, stride = padded_groups(p.cols);
    int tile_of[2];
    const uint8_t* tile[2];
    UNROLL
    for (int m = 0; m < 2; ++m) {
        tile_of[m] = p.gated ? down : 2 * down + m;
        const size_t stored = min(tile_of[m], tiles - 1) + (p.gated ? m * tiles : 0);
        tile[m] = static_cast<const uint8_t*>(chunk.weight) + stored * tile_bytes(PLANE, SCALES, p.cols);
    }
    // A lane multiplies one token of every eight, and gets results of two.
    const Rounded* const rounded = static_cast<const Rounded*>(p.rounded);
    const Rounded* x[LONG];
    const Rounded* of_results[LONG][2];
    UNROLL
    for (int n = 0; n < LONG; ++n) {
        const int first = (across * LONG + n) * TOKENS;
        x[n] = rounded + source_row(p, chunk, first + quad) * stride;
        UNROLL
        for (int i = 0; i < 2; ++i) of_results[n][i] = rounded + source_row(p, chunk, first + 2 * quarter + i) * stride;
    }
    float sums[2][LONG][4] = {}, totals[2][LONG][4] = {};
    for (int group = 0; group < groups; ++group) {
        const int within = group % groups_of(SCALES);
        unsigned inputs[LONG][2];
        UNROLL
        for (int n = 0; n < LONG; ++n) {
            inputs[n][0] = x[n][group].codes[quarter];
            inputs[n][1] = x[n][group].codes[4 + quarter];
        }
        UNROLL
        for (int m = 0; m < 2; ++m) {
            const uint8_t* const header = header_at<PLANE, SCALES>(tile[m], group);
            unsigned quads[2][2];
            Scale scale[2];
            UNROLL
            for (int r = 0; r < 2; ++r) {
                quads_at<PLANE>(header + header_bytes(SCALES) + within * group_bytes(PLANE), quad + 8 * r, quarter, format, quads[r]);
                scale[r] = scales_of<SCALES>(header, within, quad + 8 * r, format.unit);
            }
            UNROLL
            for (int n = 0; n < LONG; ++n) {
                int halves[2][4] = {};
                if constexpr (halves_of(SCALES) == 1) {
                    const unsigned a[4] = {quads[0][0], quads[1][0], quads[0][1], quads[1][1]};
                    mma_u8(halves[0], a, inputs[n]);
                } else {
                    UNROLL
                    for (int half = 0; half < 2; ++half) {
                        const unsigned a[2] = {quads[0][half], quads[1][half]}, b[1] = {inputs[n][half]};
                        mma_u8(halves[half], a, b);
                    }
                }
                UNROLL
                for (int i = 0; i < 4; ++i) {
                    const Rounded& input = of_results[n][i % 2][group];
                    const int dots[2] = {halves[0][i], halves[1][i]};
                    const float value = value_of<SCALES>(dots, input.sums, input.scale, scale[i / 2], format.offset);
                    sums[m][n][i] = __fadd_rn(sums[m][n][i], value);
                }
            }
        }
        if ((group + 1) % SPAN != 0 && group + 1 < groups) continue;
        UNROLL
        for (int m = 0; m < 2; ++m) {
            UNROLL
            for (int n = 0; n < LONG; ++n) {
                UNROLL
                for (int i = 0; i < 4; ++i) {
                    totals[m][n][i] = __fadd_rn(totals[m][n][i], sums[m][n][i]);
                    sums[m][n][i] = 0.f;
                }
            }
        }
    }
    UNROLL
    for (int m = 0; m < 2; ++m) {
        if (p.gated && m > 0) break;
        UNROLL
        for (int n = 0; n < LONG; ++n) {
            UNROLL
            for (int i = 0; i < 4; ++i) {
                const int row = tile_of[m] * ROWS + quad + 8 * (i / 2);
                const int token = (across * LONG + n) * TOKENS + 2 * quarter + i % 2;
                if (row < rows && token < chunk.count) finish(p, chunk, token, row, totals[m][n][i], totals[1][n][i]);
            }
        }
    }
}

/// Rows `ids` of a table, decoded: a warp per group.
template <int PLANE, int SCALES>
__global__ void decode(const uint8_t* table, const unsigned* ids, float* out, int count, int cols, Format format) {
    wait_for_previous();
    const int groups = (cols + GROUP - 1) / GROUP;
    const long long item = static_cast<long long>(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP;
    const int which = static_cast<int>(item / groups), group = static_cast<int>(item % groups);
    if (which >= count) return;
    const int k = threadIdx.x % WARP, column = group * GROUP + k;
    const unsigned id = ids[which];
    const int within = group % groups_of(SCALES), row = id % ROWS;
    const uint8_t* const tile = table + static_cast<size_t>(id / ROWS) * tile_bytes(PLANE, SCALES, cols);
    const uint8_t* const header = header_at<PLANE, SCALES>(tile, group);
    const Scale scale = scales_of<SCALES>(header, within, row, format.unit);
    unsigned quads[8];
    quads_of<PLANE>(header + header_bytes(SCALES) + within * group_bytes(PLANE), row, format, quads);
    const int half = halves_of(SCALES) == 2 ? k / 16 : 0;
    const int code = static_cast<int>(quads[k / 4] >> (8 * (k % 4)) & 255) - format.offset;
    float value = __fmul_rn(scale.scale[half], static_cast<float>(code));
    if constexpr (has_shift(SCALES)) value = __fadd_rn(value, scale.shift[half]);
    if (column < cols) out[static_cast<size_t>(which) * cols + column] = value;
}

/// Calls `run.operator()<plane, scales>()` for the pair a format has; false where none was compiled.
template <typename Run>
bool dispatch(const Format& format, const Run& run) {
#define PAIR(plane_, scales_)                                              \
    if (format.plane == plane_ && format.scales == scales_) {             \
        run(std::integral_constant<int, plane_>(), std::integral_constant<int, scales_>()); \
        return true;                                                       \
    }
    PAIR(FOUR, HALF)
    PAIR(FIVE, HALF)
    PAIR(EIGHT, HALF)
    PAIR(FOUR, HALF_SHIFT)
    PAIR(FIVE, HALF_SHIFT)
    PAIR(FOUR, SUPER32)
    PAIR(FIVE, SUPER32)
    PAIR(FOUR, SUPER16)
    PAIR(FOUR, SIGNED16)
    PAIR(SIX, SIGNED16)
    PAIR(FOUR, SIGNED32)
    PAIR(FOUR, EXPONENT)
#undef PAIR
    return false;
}

template <int PLANE, int SCALES, int T>
void start(const Product& p, const Format& format, int chunks, size_t own, void* stream) {
    const dim3 grid(chunks, ceil_div(p.gated ? p.rows / 2 : p.rows, ROWS));
    // Together with the static part this may be more than a block has unasked.
    ALLOW_SHARED((multiply<PLANE, SCALES, T>), own);
    LAUNCH((multiply<PLANE, SCALES, T>), grid, THREADS, own, stream, p, format);
}

}  // namespace

extern "C" int EXPORT(round_rows)(const float* x, void* out, long long rows, int cols, void* stream) {
    const long long warps = rows * padded_groups(cols);
    Rounded* const rounded = static_cast<Rounded*>(out);
    if (warps > 0) LAUNCH(round_rows, ceil_div(warps, THREADS / WARP), THREADS, 0, stream, x, rounded, rows, cols);
    return launched();
}

/// `chunks` blocks of up to `tokens` (1, 4, 8 or 64) entries each; 64 are rounded before.
extern "C" int EXPORT(multiply)(const Product* p, const Format* format, int chunks, int tokens, void* stream) {
    const size_t groups = (p->cols + GROUP - 1) / GROUP;
    const size_t own = p->rounded == nullptr ? tokens * groups * sizeof(Rounded) : 0;
    const int warp_rows = p->gated ? ROWS : 2 * ROWS, rows = p->gated ? p->rows / 2 : p->rows;
    const dim3 many(chunks, ceil_div(rows, DOWN * warp_rows));
    if (own > OWN_ROUNDING || (tokens == MANY && own > 0) || (p->gated && p->rows % (2 * ROWS) != 0)) return INVALID_VALUE;
    if (chunks == 0 || p->rows == 0) return launched();
    const bool known = dispatch(*format, [&](auto plane, auto scales) {
        if (tokens == 1) start<plane(), scales(), 1>(*p, *format, chunks, own, stream);
        if (tokens == 4) start<plane(), scales(), 4>(*p, *format, chunks, own, stream);
        if (tokens == 8) start<plane(), scales(), 8>(*p, *format, chunks, own, stream);
        if (tokens == MANY) LAUNCH((multiply_many<plane(), scales()>), many, THREADS, 0, stream, *p, *format);
    });
    return known ? launched() : INVALID_VALUE;
}

extern "C" int EXPORT(decode)(const void* table, const unsigned* ids, float* out, int count, int cols,
                              const Format* format, void* stream) {
    const long long warps = static_cast<long long>(count) * ((cols + GROUP - 1) / GROUP);
    if (warps == 0) return launched();
    const bool known = dispatch(*format, [&](auto plane, auto scales) {
        LAUNCH((decode<plane(), scales()>), ceil_div(warps, THREADS / WARP), THREADS, 0, stream,
               static_cast<const uint8_t*>(table), ids, out, count, cols, *format);
    });
    return known ? launched() : INVALID_VALUE;
}
