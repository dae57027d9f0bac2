//! Norms in plain candle.

use candle_core::{Result, Tensor};

/// Over what q and k are normed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormScope {
    /// Each head by itself; weight `[head_dim]`.
    PerHead,
    /// All heads together; weight `[heads * head_dim]`.
    FullWidth,
}
