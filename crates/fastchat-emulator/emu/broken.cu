// Kernels with one mistake each, to test that the emulator finds it. Never given to nvcc.
#include "rt.cuh"

namespace {

enum Mistake { NONE, RACE, MISSED_BARRIER, OTHER_BARRIER, MISSED_LANE, UNSET, BEFORE, BEHIND, SHARED_END, BLOCKS, WARP_RACE, EARLY, UNWAITED };

/// out[i] = the sum over the block of in, in a way that can be spoiled.
__global__ void sum(const float* in, float* out, int mistake) {
    const int t = threadIdx.x;
    const float first = mistake == EARLY ? in[blockIdx.x * 64 + t] : 0.f;
    if (mistake != UNWAITED || t != 9) wait_for_previous();
    SHARED(float, values, 64);
    if (mistake != UNSET || t != 5) values[t] = in[blockIdx.x * 64 + t];
    const int last = mistake == SHARED_END ? 64 : 63;
    if (t == 63) values[last] = in[blockIdx.x * 64 + t];
    if (mistake == MISSED_BARRIER && t == 7) return;
    if (mistake == OTHER_BARRIER && t >= 32) {
        __syncthreads();
    } else if (mistake != RACE) {
        __syncthreads();
    }
    float total = 0.f * first;
    for (int i = 0; i < 64; ++i) total += values[i];
    if (mistake != MISSED_LANE || t != 3) total += 0.f * __shfl_xor_sync(ALL_LANES, total, 1);
    __syncthreads();
    if (mistake == WARP_RACE) {
        if (t % 32 == 0) values[t] = total;
        total = values[t / 32 * 32];
    }
    const int start = mistake == BLOCKS ? 0 : blockIdx.x * 64;
    out[start + t - (mistake == BEFORE) + (mistake == BEHIND)] = total;
}

}  // namespace

extern "C" int EXPORT(broken)(const float* in, float* out, int blocks, int mistake, void* stream) {
    LAUNCH(sum, blocks, 64, 0, stream, in, out, mistake);
    return launched();
}
