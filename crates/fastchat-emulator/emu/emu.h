// CUDA on the host, for tests: with this header in place of nvcc's, a .cu file is plain C++17. Blocks run one after the
// other, the threads of a block as fibers that give way at barriers and warp operations. Those must be reached by all
// threads (lanes) at the same line, or the launch fails. Compiled with EMU_CHECKED and -fsanitize=thread, whose calls
// emu.cpp answers itself, every access to memory is checked as well: bounds, races, and reads of unset shared memory;
// and blocks and threads run in reverse order.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};

namespace emu {

enum class Access { Read, Write, Atomic };

/// What a launch is told: name, sizes, and the kernel's call with its arguments.
struct Launch {
    const char* kernel;
    dim3 grid, block;
    size_t dynamic;
    bool checked;
    void (*body)(const void* arguments);
    const void* arguments;
};
/// Runs a kernel, unless an earlier one of the launcher has failed.
void launch(const Launch& launch);
/// Books a check that failed outside of a launch.
void fail(const char* what);
/// Whether the launches of a launcher succeeded, for its return value: 0, or CUDA's unspecified launch failure.
int status();

__attribute__((const)) dim3 thread_index();
__attribute__((const)) dim3 block_index();
__attribute__((const)) dim3 block_size();
__attribute__((const)) dim3 grid_size();

/// The next piece of the block's static shared memory, in the order in which every thread asks.
void* shared(size_t bytes);
void* dynamic_shared();
void barrier(const char* site);
/// From here on the thread may touch what kernels before have written or read.
void previous_is_over();
void warp_barrier(const char* site);
/// The bits that lane `source` of the warp brought; all lanes must come.
uint64_t exchange(const char* site, unsigned mask, uint64_t bits, int source);
unsigned ballot(const char* site, unsigned mask, bool vote);
/// d += a . b, of 16 x 16 and 16 x 8 numbers of 16 bits: a lane holds what PTX's mma.m16n8k16 gives it.
void mma(const char* site, float (*value)(unsigned bits), float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
/// The same of 16 x 16 * halves unsigned and 16 * halves x 8 signed bytes, as m16n8k16 and m16n8k32 lay them out.
void mma(const char* site, int halves, int (&d)[4], const unsigned* a, const unsigned* b);
/// Queues 16 bytes, or zeros, for shared memory; they come when their group is waited for.
void copy_later(void* to, const void* from, size_t bytes, bool inside);
void close_group();
/// Lets all groups but the last `left` come.
void wait_for_groups(int left);
/// What the block has written is seen by blocks that pass a fence later.
void fence();
/// Books an access of the current thread where the launch is checked.
void touch(const void* address, size_t bytes, Access access);

inline int lane() { return static_cast<int>(thread_index().x % 32); }

template <typename T>
static T shuffle(const char* site, unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= 8, "one register, or two");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = exchange(site, mask, bits, source);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

template <typename F>
static void launch(const char* kernel, dim3 grid, dim3 block, size_t dynamic, bool checked, const F& call) {
    launch({kernel, grid, block, dynamic, checked, [](const void* call) { (*static_cast<const F*>(call))(); }, &call});
}

template <typename T, typename F>
__attribute__((noinline, no_sanitize("thread"))) static T atomic(T* at, F change) {
    touch(at, sizeof(T), Access::Atomic);
    const T old = *at;
    *at = change(old);
    return old;
}

}  // namespace emu

#define threadIdx (emu::thread_index())
#define blockIdx (emu::block_index())
#define blockDim (emu::block_size())
#define gridDim (emu::grid_size())

#define EMU_TEXT2(x) #x
#define EMU_TEXT(x) EMU_TEXT2(x)
#define EMU_SITE (__FILE__ ":" EMU_TEXT(__LINE__))

#define __syncthreads() emu::barrier(EMU_SITE)
#define __syncwarp() emu::warp_barrier(EMU_SITE)
#define __shfl_sync(mask, value, from) emu::shuffle(EMU_SITE, mask, value, (from) % 32)
#define __shfl_xor_sync(mask, value, step) emu::shuffle(EMU_SITE, mask, value, emu::lane() ^ (step))
#define __shfl_up_sync(mask, value, step) \
    emu::shuffle(EMU_SITE, mask, value, emu::lane() < int(step) ? emu::lane() : emu::lane() - int(step))
#define __ballot_sync(mask, vote) emu::ballot(EMU_SITE, mask, vote)
#define __any_sync(mask, vote) (emu::ballot(EMU_SITE, mask, vote) != 0)
#define mma_bf16(d, a, b) emu::mma(EMU_SITE, [](unsigned bits) { return __bfloat162float({uint16_t(bits)}); }, d, a, b)
#define mma_u8(d, a, b) emu::mma(EMU_SITE, sizeof(b) / sizeof(unsigned), d, a, b)
#define mma_f16(d, a, b) emu::mma(EMU_SITE, [](unsigned bits) { return __half2float({uint16_t(bits)}); }, d, a, b)

#define SHARED(type, name, count) \
    type(&name)[count] = *reinterpret_cast<type(*)[count]>(emu::shared(sizeof(type) * (count)))
#define DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(emu::dynamic_shared())
#ifdef EMU_CHECKED
#define EMU_IS_CHECKED true
#define EXPORT(name) fcc_##name
#else
#define EMU_IS_CHECKED false
#define EXPORT(name) fc_##name
#endif
#define LAUNCH(kernel, grid, block, shared, stream, ...) \
    static_cast<void>(stream),                           \
        emu::launch(#kernel, grid, block, shared, EMU_IS_CHECKED, [&] { (kernel)(__VA_ARGS__); })
#define UNROLL
#define UNROLL_BY_4
#define ALLOW_SHARED(kernel, bytes) \
    static_cast<void>((bytes) > 227 * 1024 ? emu::fail("more shared memory than a block can have") : void())

namespace {

inline int launched() { return emu::status(); }
inline void wait_for_previous() { emu::previous_is_over(); }

inline void __threadfence() { emu::fence(); }
template <int BYTES>
inline void copy_async(void* to, const void* from, bool inside) {
    emu::copy_later(to, from, BYTES, inside);
}
inline void close_copies() { emu::close_group(); }
template <int LEFT>
inline void wait_copies() {
    emu::wait_for_groups(LEFT);
}

template <typename T>
T atomicAdd(T* at, T value) {
    return emu::atomic(at, [=](T old) { return old + value; });
}
template <typename T>
T atomicMax(T* at, T value) {
    return emu::atomic(at, [=](T old) { return old > value ? old : value; });
}

template <typename To, typename From>
inline To bits_of(From from) {
    To to;
    static_assert(sizeof(To) == sizeof(From), "same size");
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}

inline float __uint_as_float(unsigned x) { return bits_of<float>(x); }
inline unsigned __float_as_uint(float x) { return bits_of<unsigned>(x); }
inline float __int_as_float(int x) { return bits_of<float>(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t(a) * b) >> 32); }
template <typename T>
inline T min(T a, T b) {
    return b < a ? b : a;
}
template <typename T>
inline T max(T a, T b) {
    return a < b ? b : a;
}

inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t bytes = uint64_t(high) << 32 | low;
    unsigned out = 0;
    for (int i = 0; i < 4; ++i) out |= unsigned(bytes >> (8 * (selector >> (4 * i) & 7)) & 255) << (8 * i);
    return out;
}

inline int dot4(unsigned a, int b, int sum) {
    for (int i = 0; i < 4; ++i) sum += int(a >> (8 * i) & 255) * int(int8_t(unsigned(b) >> (8 * i)));
    return sum;
}

struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};

inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline float __bfloat162float(__nv_bfloat16 x) { return bits_of<float>(unsigned(x.bits) << 16); }

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    const unsigned bits = bits_of<unsigned>(x);
    if (x != x) return {uint16_t(bits >> 16 | 0x40)};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline unsigned scale_pair(unsigned pair, unsigned factors) {
    const auto half = [=](int shift) {
        const float x = __bfloat162float({uint16_t(pair >> shift)}), factor = __bfloat162float({uint16_t(factors >> shift)});
        return unsigned(__float2bfloat16_rn(x * factor).bits) << shift;
    };
    return half(0) | half(16);
}

inline float __half2float(__half x) {
    const unsigned magnitude = unsigned(x.bits & 0x7fff) << 13;
    // The exponents differ by 112; the product also normalises subnormals.
    const unsigned finite = bits_of<unsigned>(bits_of<float>(magnitude) * bits_of<float>((127u + 112) << 23));
    const bool special = (x.bits & 0x7c00) == 0x7c00;
    return bits_of<float>((special ? magnitude | 0xffu << 23 : finite) | unsigned(x.bits & 0x8000) << 16);
}

inline __half __float2half_rn(float x) {
    const unsigned bits = bits_of<unsigned>(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00 | (magnitude >> 13 & 0x3ff))};
    // 65520 is the first that rounds to infinity.
    if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};
    if (magnitude < 0x38800000) {
        // Subnormal: adding 0.5 leaves the rounded multiples of 2^-24 in the low bits.
        const unsigned rounded = bits_of<unsigned>(bits_of<float>(magnitude) + 0.5f) - 0x3f000000;
        return {uint16_t(sign | rounded)};
    }
    return {uint16_t(sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13))};
}

}  // namespace
