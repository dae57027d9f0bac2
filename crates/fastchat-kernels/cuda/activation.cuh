// Elementwise activations, for the kernels that end in one.
#pragma once

#include "rt.cuh"

namespace {

enum class Act : int { SILU = 0, GELU = 1, GELU_TANH = 2, RELU2 = 3, SWIGLU_OAI = 4, QUICK_GELU = 5 };

/// Also Rust's, field by field.
struct Activation {
    int kind;
    /// Slope and clamp of SWIGLU_OAI.
    float alpha, limit;
};

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

/// act(x); not for SWIGLU_OAI, which needs a gate.
__device__ __forceinline__ float activate(const Activation& act, float x) {
    switch (static_cast<Act>(act.kind)) {
        case Act::SILU: return x * sigmoid(x);
        case Act::GELU: return 0.5f * x * (1.f + erff(x * 0.70710678f));
        case Act::GELU_TANH: return 0.5f * x * (1.f + tanhf(0.79788456f * x * (1.f + 0.044715f * x * x)));
        case Act::QUICK_GELU: return x * sigmoid(1.702f * x);
        default: {
            const float positive = fmaxf(x, 0.f);
            return positive * positive;
        }
    }
}

/// act(gate) * up.
__device__ __forceinline__ float activate_gated(const Activation& act, float gate, float up) {
    if (static_cast<Act>(act.kind) != Act::SWIGLU_OAI) return activate(act, gate) * up;
    gate = fminf(gate, act.limit);
    up = fminf(fmaxf(up, -act.limit), act.limit);
    return (up + 1.f) * (gate * sigmoid(act.alpha * gate));
}

}  // namespace
