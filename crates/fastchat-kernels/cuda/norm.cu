// Norms: one block per row, the row read twice. A row's result does not depend on the number of rows.
#include "rt.cuh"

namespace {

constexpr int THREADS = 256;

/// Root mean square norm of x, or of x + residual, which is then stored as `sum`.
__global__ void rms_norm(const float* x, const float* residual, const float* weight, float* sum, float* out, int width,
                         float eps) {
    wait_for_previous();
    SHARED(float, scratch, THREADS / WARP);
    const size_t start = static_cast<size_t>(blockIdx.x) * width;
    float squares = 0.f;
    for (int i = threadIdx.x; i < width; i += THREADS) {
        float value = x[start + i];
        if (residual != nullptr) {
            value += residual[start + i];
            sum[start + i] = value;
        }
        squares += value * value;
    }
    const float root = sqrtf(block_sum(squares, scratch) / width + eps);
    for (int i = threadIdx.x; i < width; i += THREADS) {
        // Every thread reads back what itself has written.
        const float value = residual != nullptr ? sum[start + i] : x[start + i];
        out[start + i] = value / root * weight[i];
    }
}

__global__ void layer_norm(const float* x, const float* weight, const float* bias, float* out, int width, float eps) {
    wait_for_previous();
    SHARED(float, scratch, THREADS / WARP);
    const size_t start = static_cast<size_t>(blockIdx.x) * width;
    float total = 0.f;
    for (int i = threadIdx.x; i < width; i += THREADS) total += x[start + i];
    const float mean = block_sum(total, scratch) / width;
    float squares = 0.f;
    for (int i = threadIdx.x; i < width; i += THREADS) {
        const float centred = x[start + i] - mean;
        squares += centred * centred;
    }
    const float root = sqrtf(block_sum(squares, scratch) / width + eps);
    for (int i = threadIdx.x; i < width; i += THREADS) {
        out[start + i] = (x[start + i] - mean) / root * weight[i] + (bias != nullptr ? bias[i] : 0.f);
    }
}

}  // namespace

extern "C" int EXPORT(rms_norm)(const float* x, const float* residual, const float* weight, float* sum, float* out,
                                int rows, int width, float eps, void* stream) {
    if (rows > 0) LAUNCH(rms_norm, rows, THREADS, 0, stream, x, residual, weight, sum, out, width, eps);
    return launched();
}

extern "C" int EXPORT(layer_norm)(const float* x, const float* weight, const float* bias, float* out, int rows,
                                  int width, float eps, void* stream) {
    if (rows > 0) LAUNCH(layer_norm, rows, THREADS, 0, stream, x, weight, bias, out, width, eps);
    return launched();
}
