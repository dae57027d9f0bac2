//! From a fused qkv projection to rotated queries and keys (arXiv 2104.09864), in plain candle.

use candle_core::{Result, Tensor};

use super::NormScope;
use crate::Plan;

/// Which elements of a head form a rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// Element `i` with `i + rotary_dim / 2`.
    HalfSplit,
    /// Element `2 i` with `2 i + 1`.
    Interleaved,
}

/// A resolved rope table: all scaling kinds end as frequencies and a factor.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Index into `Plan::rope`.
    pub index: usize,
    /// Pairing.
    pub layout: RopeLayout,
    /// `[rotary_dim / 2]` angle per position.
    pub inv_freq: Vec<f32>,
    /// Factor on cos and sin (yarn, longrope), 1 otherwise.
    pub attention_factor: f32,
}

/// What happens between the qkv projection and attention.
#[derive(Clone, Debug)]
pub struct QkvSpec {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// (q weight, k weight, eps, scope): root mean square norm of q and k before the rotation.
    pub qk_norm: Option<(Tensor, Tensor, f32, NormScope)>,
    /// Rotation; `None` for layers without positions.
    pub rope: Option<Rope>,
}
