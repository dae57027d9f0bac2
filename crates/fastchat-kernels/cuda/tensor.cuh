// What products by tensor cores share: floats taken as TERMS numbers of 16 bits, and instructions by the type of those.
#pragma once

#include "rt.cuh"

namespace {

/// Neighbours of 16 bits that a lane holds at once: its share of two instructions.
constexpr int WIDE = 8;

__device__ __forceinline__ unsigned bits_of_16(half_t x) { return __half_as_ushort(x); }
__device__ __forceinline__ unsigned bits_of_16(bf16_t x) { return __bfloat16_as_ushort(x); }
__device__ __forceinline__ half_t half_of_bits(unsigned bits) { return __ushort_as_half(static_cast<unsigned short>(bits)); }

/// d += a . b, of 16 x 16 and 16 x 8 numbers of type E.
template <typename E>
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    if constexpr (std::is_same_v<E, half_t>) {
        mma_f16(d, a, b);
    } else {
        mma_bf16(d, a, b);
    }
}

/// Parts of x, the largest first; three leave nothing of it but what is below the smallest E.
template <typename E, int TERMS>
__device__ __forceinline__ void split(float x, E (&parts)[TERMS]) {
    UNROLL
    for (int i = 0; i < TERMS; ++i) {
        parts[i] = from_float<E>(x);
        const float part = to_float(parts[i]);
        // Infinity and NaN are one part: what they leave is no number.
        x = fabsf(part) < INFINITY ? x - part : 0.f;
    }
}

/// Two floats in parts, the first in the lower halves.
template <typename E, int TERMS>
__device__ __forceinline__ void split_pair(float first, float second, unsigned (&words)[TERMS]) {
    E low[TERMS], high[TERMS];
    split(first, low);
    split(second, high);
    UNROLL
    for (int term = 0; term < TERMS; ++term) words[term] = bits_of_16(low[term]) | bits_of_16(high[term]) << 16;
}

/// Eight floats in parts.
template <typename E, int TERMS>
__device__ __forceinline__ void split_wide(const float* at, uint4 (&out)[TERMS]) {
    const float4 low = reinterpret_cast<const float4*>(at)[0], high = reinterpret_cast<const float4*>(at)[1];
    unsigned words[4][TERMS];
    split_pair<E>(low.x, low.y, words[0]);
    split_pair<E>(low.z, low.w, words[1]);
    split_pair<E>(high.x, high.y, words[2]);
    split_pair<E>(high.z, high.w, words[3]);
    UNROLL
    for (int term = 0; term < TERMS; ++term) out[term] = {words[0][term], words[1][term], words[2][term], words[3][term]};
}

/// One of the two instructions for eight neighbours of two rows and of a column in TERMS parts. Which numbers an
/// instruction takes is the lanes' affair, as long as both sides agree.
template <typename E, int TERMS>
__device__ __forceinline__ void multiply(float (&sums)[4], const uint4 (&rows)[2], const uint4 (&column)[TERMS], int half) {
    const unsigned a[4] = {
        half ? rows[0].z : rows[0].x,
        half ? rows[1].z : rows[1].x,
        half ? rows[0].w : rows[0].y,
        half ? rows[1].w : rows[1].y,
    };
    UNROLL
    for (int term = 0; term < TERMS; ++term) {
        const unsigned b[2] = {half ? column[term].z : column[term].x, half ? column[term].w : column[term].y};
        mma<E>(sums, a, b);
    }
}

}  // namespace
