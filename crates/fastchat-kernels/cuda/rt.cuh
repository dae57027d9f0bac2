// The one header that knows which compiler reads it: nvcc, or g++ with the emulator of emu/ in its place. Every kernel is
// written against what both offer: CUDA's own names, and the macros below where the two differ.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

/// A static shared array. Only at the top of a kernel, where all threads pass.
#define SHARED(type, name, count) __shared__ type name[count]
/// The block's dynamic shared memory.
#define DYNAMIC_SHARED(type, name)                                \
    extern __shared__ __align__(16) unsigned char fc_dynamic[];   \
    type* const name = reinterpret_cast<type*>(fc_dynamic)
/// Queues a kernel; one with commas in its template arguments goes into parentheses.
#define LAUNCH(kernel, grid, block, shared, stream, ...) launch(kernel, grid, block, shared, stream, __VA_ARGS__)
/// Lets a kernel have more than 48 KiB of dynamic shared memory.
#define ALLOW_SHARED(kernel, bytes) \
    static_cast<void>(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)))
/// Name of a launcher.
#define EXPORT(name) fc_##name
/// Before a loop over registers, and before one whose loads should be under way together.
#define UNROLL _Pragma("unroll")
#define UNROLL_BY_4 _Pragma("unroll 4")

namespace {
/// What a launcher returns: 0, or a cudaError_t.
inline int launched() { return static_cast<int>(cudaGetLastError()); }

/// kernel<<<grid, block, shared, stream>>>(arguments...), which from sm_90 on may start while the kernel before still runs:
/// up to `wait_for_previous` ("Programmatic Dependent Launch" of the CUDA programming guide).
template <typename... Parameters, typename... Arguments>
inline void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, void* stream, Arguments... arguments) {
    int device = 0, major = 0;
    static_cast<void>(cudaGetDevice(&device));
    static_cast<void>(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &early;
    config.numAttrs = major >= 9 ? 1 : 0;
    // What it fails with is what `launched` finds.
    static_cast<void>(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

/// Waits until all that was queued before has run, and lets the next kernel start as far as here. The first thing in every
/// kernel, for one that ended without it would not stand for those before it.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/// sum + a . b over four unsigned bytes of a and four signed ones of b.
__device__ __forceinline__ int dot4(unsigned a, int b, int sum) {
    int out;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(sum));
    return out;
}

/// d += a . b, of 16 x 16 and 16 x 8 bf16 that the lanes of a warp hold as PTX's m16n8k16 lays them out.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// The same of f16.
__device__ __forceinline__ void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// d += a . b, of 16 x 32 unsigned and 32 x 8 signed bytes as PTX's m16n8k32 lays them out, and of half as many columns.
__device__ __forceinline__ void mma_u8(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_u8(int (&d)[4], const unsigned (&a)[2], const unsigned (&b)[1]) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

/// Two bf16 times a power of two or another number that rounds none of them.
__device__ __forceinline__ unsigned scale_pair(unsigned pair, unsigned factors) {
    unsigned out;
    // Plus -0 keeps the sign of a zero; sm_80 has no multiplication alone.
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(pair), "r"(factors), "r"(0x80008000u));
    return out;
}

/// Starts a copy of 16 or 8 aligned bytes, or zeros where they are not inside, into shared memory; part of the open group.
template <int BYTES>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool inside) {
    static_assert(BYTES == 16 || BYTES == 8, "what one instruction copies");
    const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
    const int bytes = inside ? BYTES : 0;
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared), "l"(from), "r"(bytes) : "memory");
    }
}

/// Closes the open group.
__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits for this thread's groups but the last LEFT.
template <int LEFT>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
}  // namespace

#else
#include "emu/emu.h"
#endif

namespace {

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int WARP = 32;
/// Tokens of a cache block.
constexpr int BLOCK_SIZE = 16;

using half_t = __half;
using bf16_t = __nv_bfloat16;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(half_t x) { return __half2float(x); }
__device__ __forceinline__ float to_float(bf16_t x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ half_t from_float<half_t>(float x) {
    return __float2half_rn(x);
}
template <>
__device__ __forceinline__ bf16_t from_float<bf16_t>(float x) {
    return __float2bfloat16_rn(x);
}

__device__ __forceinline__ float warp_sum(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

/// Sum over a block of up to 32 warps, the same for all its threads. `scratch` holds a float per warp.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = warp_sum(lane < warps ? scratch[lane] : 0.f);
    // The next use of the scratch must not overtake these reads.
    __syncthreads();
    return x;
}

/// Element types as the launchers are told them.
enum class Element : int { F32 = 0, F16 = 1, BF16 = 2 };

inline int ceil_div(long long a, long long b) { return static_cast<int>((a + b - 1) / b); }

}  // namespace

/// Returned by a launcher that is given what no kernel was compiled for: CUDA's invalid value.
#define INVALID_VALUE 1
