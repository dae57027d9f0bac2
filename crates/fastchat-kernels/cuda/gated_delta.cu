// The gated delta rule behind its causal convolution, for steps of any length. Four launches: convolution; unit length of q
// and k; the recurrence, a block per sequence and value head with the state in shared memory; the convolution's new state.
#include "activation.cuh"

namespace {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;
constexpr int MOST_TAPS = 16;

/// Also Rust's, field by field.
struct Delta {
    /// f32 [tokens, channels], [tokens, v_heads] twice.
    const float* qkv;
    const float* beta;
    const float* decay;
    /// f32 [channels, taps].
    const float* taps;
    const unsigned* query_start;
    /// Per sequence the slot to start from, or -1, and its saves: [sequences], [sequences + 1], (tokens consumed, slot)s.
    const int* sources;
    const unsigned* save_start;
    const unsigned* saves;
    /// f32 [.., num_taps - 1, channels] and [.., v_heads, k_dim, v_dim], read and written.
    float* conv;
    float* states;
    /// f32 [tokens, channels].
    float* mixed;
    /// f32 [tokens, v_heads * v_dim].
    float* out;
    float l2_eps;
    int sequences, tokens, channels, num_taps, k_heads, v_heads, k_dim, v_dim;
};

/// The sequence of a token.
__device__ __forceinline__ int sequence_of(const Delta& a, unsigned token) {
    int low = 0, high = a.sequences;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (a.query_start[middle] <= token) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

/// Row `at` of the sequence's inputs, with the state's num_taps - 1 rows before the step's.
__device__ __forceinline__ float history(const Delta& a, int sequence, int at, int channel) {
    const int kept = a.num_taps - 1;
    if (at >= kept) return a.qkv[(static_cast<size_t>(a.query_start[sequence]) + at - kept) * a.channels + channel];
    const int source = a.sources[sequence];
    if (source < 0) return 0.f;
    return a.conv[(static_cast<size_t>(source) * kept + at) * a.channels + channel];
}

__global__ void convolve(Delta a) {
    wait_for_previous();
    const int token = blockIdx.x, channel = blockIdx.y * THREADS + threadIdx.x;
    if (channel >= a.channels) return;
    const int sequence = sequence_of(a, token), at = token - a.query_start[sequence];
    float sum = 0.f;
    for (int i = 0; i < a.num_taps; ++i) {
        sum += history(a, sequence, at + i, channel) * a.taps[static_cast<size_t>(channel) * a.num_taps + i];
    }
    a.mixed[static_cast<size_t>(token) * a.channels + channel] = sum * sigmoid(sum);
}

/// A warp per head of q and k.
__global__ void unit_length(Delta a) {
    wait_for_previous();
    const long long item = static_cast<long long>(blockIdx.x) * WARPS + threadIdx.x / WARP;
    const int heads = 2 * a.k_heads, lane = threadIdx.x % WARP;
    if (item >= static_cast<long long>(a.tokens) * heads) return;
    const int head = static_cast<int>(item % heads);
    float* const x = a.mixed + static_cast<size_t>(item / heads) * a.channels + head * a.k_dim;
    float squares = 0.f;
    for (int i = lane; i < a.k_dim; i += WARP) squares += x[i] * x[i];
    const float norm = sqrtf(warp_sum(squares) + a.l2_eps);
    const float root = head < a.k_heads ? sqrtf(static_cast<float>(a.k_dim)) : 1.f;
    for (int i = lane; i < a.k_dim; i += WARP) x[i] = x[i] / norm / root;
}

__global__ void recur(Delta a) {
    wait_for_previous();
    DYNAMIC_SHARED(float, memory);
    float* const state = memory;
    float* const q = state + static_cast<size_t>(a.k_dim) * a.v_dim;
    float* const k = q + a.k_dim;
    const int head = blockIdx.x, sequence = blockIdx.y, size = a.k_dim * a.v_dim;
    const int key_head = head / (a.v_heads / a.k_heads), source = a.sources[sequence];
    const auto slot = [&](unsigned index) { return (static_cast<size_t>(index) * a.v_heads + head) * size; };
    for (int i = threadIdx.x; i < size; i += THREADS) state[i] = source < 0 ? 0.f : a.states[slot(source) + i];
    const unsigned start = a.query_start[sequence], end = a.query_start[sequence + 1];
    unsigned save = a.save_start[sequence];
    for (unsigned token = start; token < end; ++token) {
        const float* const row = a.mixed + static_cast<size_t>(token) * a.channels;
        for (int i = threadIdx.x; i < a.k_dim; i += THREADS) {
            q[i] = row[key_head * a.k_dim + i];
            k[i] = row[(a.k_heads + key_head) * a.k_dim + i];
        }
        __syncthreads();
        const float kept = expf(a.decay[static_cast<size_t>(token) * a.v_heads + head]);
        const float beta = a.beta[static_cast<size_t>(token) * a.v_heads + head];
        // A thread has columns of the state.
        for (int j = threadIdx.x; j < a.v_dim; j += THREADS) {
            float remembered = 0.f;
            for (int i = 0; i < a.k_dim; ++i) {
                state[i * a.v_dim + j] *= kept;
                remembered += k[i] * state[i * a.v_dim + j];
            }
            const float v = row[2 * a.k_heads * a.k_dim + head * a.v_dim + j], delta = (v - remembered) * beta;
            float sum = 0.f;
            for (int i = 0; i < a.k_dim; ++i) {
                state[i * a.v_dim + j] += k[i] * delta;
                sum += q[i] * state[i * a.v_dim + j];
            }
            a.out[(static_cast<size_t>(token) * a.v_heads + head) * a.v_dim + j] = sum;
        }
        // Before others read the state, and before the next token's q and k.
        __syncthreads();
        for (; save < a.save_start[sequence + 1] && a.saves[2 * save] == token + 1 - start; ++save) {
            for (int i = threadIdx.x; i < size; i += THREADS) a.states[slot(a.saves[2 * save + 1]) + i] = state[i];
        }
        __syncthreads();
    }
}

/// A thread per channel of a sequence. Saves ascend, and the slot that is read is written last.
__global__ void save_conv(Delta a) {
    wait_for_previous();
    const int channel = blockIdx.x * THREADS + threadIdx.x, sequence = blockIdx.y, kept = a.num_taps - 1;
    if (channel >= a.channels) return;
    for (unsigned save = a.save_start[sequence]; save < a.save_start[sequence + 1]; ++save) {
        float rows[MOST_TAPS];
        for (int i = 0; i < kept; ++i) rows[i] = history(a, sequence, static_cast<int>(a.saves[2 * save]) + i, channel);
        for (int i = 0; i < kept; ++i) {
            a.conv[(static_cast<size_t>(a.saves[2 * save + 1]) * kept + i) * a.channels + channel] = rows[i];
        }
    }
}

}  // namespace

extern "C" int EXPORT(gated_delta)(const Delta* a, void* stream) {
    if (a->num_taps > MOST_TAPS || a->num_taps < 1) return INVALID_VALUE;
    if (a->tokens == 0) return launched();
    LAUNCH(convolve, dim3(a->tokens, ceil_div(a->channels, THREADS)), THREADS, 0, stream, *a);
    const long long heads = static_cast<long long>(a->tokens) * 2 * a->k_heads;
    LAUNCH(unit_length, ceil_div(heads, WARPS), THREADS, 0, stream, *a);
    const size_t shared = sizeof(float) * (static_cast<size_t>(a->k_dim) * a->v_dim + 2 * a->k_dim);
    ALLOW_SHARED(recur, shared);
    LAUNCH(recur, dim3(a->v_heads, a->sequences), THREADS, shared, stream, *a);
    if (a->num_taps > 1) {
        LAUNCH(save_conv, dim3(ceil_div(a->channels, THREADS), a->sequences), THREADS, 0, stream, *a);
    }
    return launched();
}
