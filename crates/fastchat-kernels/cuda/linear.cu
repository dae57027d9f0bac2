// Products with GGML's quantised weights, in the tiles that cpu/linear/format.rs describes: 16 rows, groups of 32 columns,
// unsigned codes in quads of four columns. A half-warp has a lane per row; sixteen half-warps share a tile's groups.
// Inputs are rounded to 8 bits per group, dot products are exact, and what is added in which order depends on neither
// the number of tokens nor the launch: half-warp h adds groups h, h + 16, .., then the half-warps are added in order.
#include "linear.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int ROWS = 16;
constexpr int GROUP = 32;
constexpr int HALF_WARPS = THREADS / ROWS;
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
    const long long item = static_cast<long long>(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP;
    const int groups = padded_groups(cols);
    // Warps leave as a whole.
    if (item >= rows * groups) return;
    const long long row = item / groups;
    round_group(x + row * cols, cols, static_cast<int>(item % groups), out[item]);
}

template <int PLANE, int SCALES, int T>
__global__ void __launch_bounds__(THREADS) multiply(Product p, Format format) {
    DYNAMIC_SHARED(Rounded, own);
    SHARED(float, partial, THREADS * T);
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
    constexpr int BLOCK = header_bytes(SCALES) + groups_of(SCALES) * group_bytes(PLANE);
    // This thread's result, where it has one: of the tile itself, and of its pair.
    float results[2] = {0.f, 0.f};
    const int parts = p.gated ? 2 : 1, tiles_apart = p.rows / 2 / ROWS;
    for (int part = 0; part < parts; ++part) {
        const uint8_t* const tile = static_cast<const uint8_t*>(chunk.weight) +
                                    (blockIdx.y + static_cast<size_t>(part) * tiles_apart) * tile_bytes(PLANE, SCALES, p.cols);
        float sums[T] = {};
        for (int group = half_warp; group < groups; group += HALF_WARPS) {
            const int within = group % groups_of(SCALES);
            const uint8_t* const header = tile + static_cast<size_t>(group / groups_of(SCALES)) * BLOCK;
            const Scale scale = scales_of<SCALES>(header, within, lane, format.unit);
            unsigned quads[8];
            quads_of<PLANE>(header + header_bytes(SCALES) + within * group_bytes(PLANE), lane, format, quads);
            UNROLL
            for (int t = 0; t < T; ++t) {
                const Rounded& input = x[t][group];
                int dots[2] = {0, 0};
                UNROLL
                for (int i = 0; i < 8; ++i) dots[i / 4] = dot4(quads[i], input.codes[i], dots[i / 4]);
                int totals[2] = {input.sums[0], input.sums[1]};
                if constexpr (halves_of(SCALES) == 1) {
                    dots[0] += dots[1];
                    totals[0] += totals[1];
                }
                UNROLL
                for (int half = 0; half < halves_of(SCALES); ++half) {
                    const int dot = dots[half] - format.offset * totals[half];
                    sums[t] += static_cast<float>(dot) * (scale.scale[half] * input.scale);
                    if constexpr (has_shift(SCALES)) {
                        sums[t] += scale.shift[half] * (input.scale * static_cast<float>(totals[half]));
                    }
                }
            }
        }
        if (part > 0) __syncthreads();
        UNROLL
        for (int t = 0; t < T; ++t) partial[(t * HALF_WARPS + half_warp) * ROWS + lane] = sums[t];
        __syncthreads();
        if (half_warp < T) {
            float sum = 0.f;
            for (int h = 0; h < HALF_WARPS; ++h) sum += partial[(half_warp * HALF_WARPS + h) * ROWS + lane];
            results[part] = sum;
        }
    }
    const int row = blockIdx.y * ROWS + lane;
    if (half_warp < chunk.count && row < (p.gated ? p.rows / 2 : p.rows)) {
        finish(p, chunk, half_warp, row, results[0], results[1]);
    }
}

/// Rows `ids` of a table, decoded: a warp per group.
template <int PLANE, int SCALES>
__global__ void decode(const uint8_t* table, const unsigned* ids, float* out, int count, int cols, Format format) {
    const int groups = (cols + GROUP - 1) / GROUP;
    const long long item = static_cast<long long>(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP;
    const int which = static_cast<int>(item / groups), group = static_cast<int>(item % groups);
    if (which >= count) return;
    const int k = threadIdx.x % WARP, column = group * GROUP + k;
    const unsigned id = ids[which];
    constexpr int BLOCK = header_bytes(SCALES) + groups_of(SCALES) * group_bytes(PLANE);
    const int within = group % groups_of(SCALES), row = id % ROWS;
    const uint8_t* const header = table + static_cast<size_t>(id / ROWS) * tile_bytes(PLANE, SCALES, cols) +
                                  static_cast<size_t>(group / groups_of(SCALES)) * BLOCK;
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
    LAUNCH((multiply<PLANE, SCALES, T>), grid, THREADS, own, stream, p, format);
}

}  // namespace

extern "C" int EXPORT(round_rows)(const float* x, void* out, long long rows, int cols, void* stream) {
    const long long warps = rows * padded_groups(cols);
    Rounded* const rounded = static_cast<Rounded*>(out);
    if (warps > 0) LAUNCH(round_rows, ceil_div(warps, THREADS / WARP), THREADS, 0, stream, x, rounded, rows, cols);
    return launched();
}

/// `chunks` blocks of up to `tokens` (1, 4 or 8) entries each.
extern "C" int EXPORT(multiply)(const Product* p, const Format* format, int chunks, int tokens, void* stream) {
    const size_t groups = (p->cols + GROUP - 1) / GROUP;
    const size_t own = p->rounded == nullptr ? tokens * groups * sizeof(Rounded) : 0;
    if (own > OWN_ROUNDING || (p->gated && p->rows % (2 * ROWS) != 0)) return INVALID_VALUE;
    if (chunks == 0 || p->rows == 0) return launched();
    const bool known = dispatch(*format, [&](auto plane, auto scales) {
        if (tokens == 1) start<plane(), scales(), 1>(*p, *format, chunks, own, stream);
        if (tokens == 4) start<plane(), scales(), 4>(*p, *format, chunks, own, stream);
        if (tokens == 8) start<plane(), scales(), 8>(*p, *format, chunks, own, stream);
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
