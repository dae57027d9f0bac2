//! Paged causal attention and the write of keys and values, in plain candle.

use candle_core::{Result, Tensor};

use crate::{KvCache, Plan};

/// What one attention layer computes; sizes of keys and values come from the cache's layout.
#[derive(Clone, Debug)]
pub struct AttentionSpec {
    /// Query heads; a multiple of the cache's heads.
    pub num_heads: usize,
    /// Elements of a value head (also when values are the head of the keys).
    pub v_head_dim: usize,
    /// Factor on `q . k`.
    pub scale: f32,
    /// A token sees itself and the `window - 1` before it.
    pub window: Option<usize>,
    /// `cap * tanh(score / cap)` (arXiv 2408.00118).
    pub softcap: Option<f32>,
    /// f32 `[num_heads]`: one extra logit per head in the softmax denominator (gpt-oss).
    pub sinks: Option<Tensor>,
}
