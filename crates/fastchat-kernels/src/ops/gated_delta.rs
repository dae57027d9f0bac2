//! The gated delta rule, token by token, in plain candle.

use candle_core::{Result, Tensor};

use crate::{Plan, StateCache};

/// What one gated delta layer computes; sizes come from the cache's layout.
#[derive(Clone, Debug)]
pub struct GatedDeltaSpec {
    /// Key heads; value heads are a multiple of them.
    pub num_k_heads: usize,
    /// f32 `[conv_channels, conv_taps]`, depthwise, oldest tap first.
    pub conv_weight: Tensor,
    /// Added under the root when q and k are brought to unit length.
    pub l2_eps: f32,
}
