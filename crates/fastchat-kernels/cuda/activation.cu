// Activations that stand alone: a thread per element.
#include "activation.cuh"

namespace {

constexpr int THREADS = 256;

__global__ void act(const float* x, float* out, long long count, Activation act) {
    wait_for_previous();
    const long long i = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
    if (i < count) out[i] = activate(act, x[i]);
}

/// Rows of `width` gates and as many ups.
__global__ void gated_act(const float* x, float* out, long long count, int width, Activation act) {
    wait_for_previous();
    const long long i = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= count) return;
    const long long gate = i / width * 2 * width + i % width;
    out[i] = activate_gated(act, x[gate], x[gate + width]);
}

}  // namespace

extern "C" int EXPORT(act)(const float* x, float* out, long long count, const Activation* kind, void* stream) {
    if (count > 0) LAUNCH(act, ceil_div(count, THREADS), THREADS, 0, stream, x, out, count, *kind);
    return launched();
}

extern "C" int EXPORT(gated_act)(const float* x, float* out, long long rows, int width, const Activation* kind,
                                 void* stream) {
    const long long count = rows * width;
    if (count > 0) LAUNCH(gated_act, ceil_div(count, THREADS), THREADS, 0, stream, x, out, count, width, *kind);
    return launched();
}
