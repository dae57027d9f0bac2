//! Activations and mixtures of experts, in plain candle.

use candle_core::{Result, Tensor};

use super::Kernels;
use crate::Linear;

/// Elementwise activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// Exact GELU.
    Gelu,
    /// GELU by tanh.
    GeluTanh,
    /// `max(x, 0)^2`.
    Relu2,
    /// gpt-oss: `(min(up, limit) clamped below by -limit, + 1) * gate sigmoid(alpha gate)`, gate capped at `limit`.
    SwigluOai {
        /// Slope inside the sigmoid.
        alpha: f32,
        /// Clamp.
        limit: f32,
    },
}

/// How router logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterScore {
    /// Softmax over all experts, then top k.
    Softmax,
    /// Top k of the logits, then softmax over those (gpt-oss).
    SoftmaxTopK,
    /// Sigmoid per expert (DeepSeek-V3).
    Sigmoid,
}

/// How tokens choose experts.
#[derive(Clone, Debug)]
pub struct MoeSpec {
    /// Experts in all.
    pub num_experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Scores.
    pub score: RouterScore,
    /// Divide the chosen scores by their sum.
    pub renormalize: bool,
    /// Factor on the chosen scores.
    pub scaling: f32,
    /// (groups, groups kept): experts outside the best groups are not chosen (arXiv 2412.19437).
    pub groups: Option<(usize, usize)>,
    /// Expert activation.
    pub act: Activation,
}

/// Weights of a mixture.
#[derive(Clone, Debug)]
pub struct MoeWeights {
    /// Router `[experts, hidden]`, with bias where the model has one.
    pub router: Linear,
    /// f32 `[experts]` added to the scores for the choice only (DeepSeek-V3).
    pub score_bias: Option<Tensor>,
    /// Per expert: gate and up stacked `[2 * inter, hidden]`.
    pub gate_up: Vec<Linear>,
    /// Per expert `[hidden, inter]`.
    pub down: Vec<Linear>,
}
