//! The opaque handle of a packed linear layer: one or more stacked weights sharing an input, and a bias. What a part
//! looks like inside is the backend's affair.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use crate::cpu::linear::{DenseTiles, SplitTiles, Tiles};
use crate::cuda::DeviceWeight;

/// `y = x W^T + b` with `W` of `[out_features, in_features]`, packed by `Kernels::pack`.
#[derive(Clone, Debug)]
pub struct Linear {
    pub(crate) in_features: usize,
    pub(crate) out_features: usize,
    pub(crate) parts: Vec<Part>,
    /// `[out_features]`.
    pub(crate) bias: Option<Tensor>,
}

/// One of the stacked weights.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) packed: Packed,
}

/// The layouts a part can have.
#[derive(Clone, Debug)]
pub(crate) enum Packed {
    /// `[rows, in_features]` of the activations' type: the default's layout.
    Dense(Tensor),
    /// The CPU backend's quantised layout.
    Tiles(Arc<Tiles>),
    /// The same with the high and low bits of codes apart.
    Split(Arc<SplitTiles>),
    /// The CPU backend's layout of plain floats.
    DenseTiles(Arc<DenseTiles>),
    /// The CUDA backend's, in the device's memory.
    Device(Arc<DeviceWeight>),
}

impl Part {
    /// The weight as the default packs it.
    ///
    /// # Errors
    /// When another backend packed it.
    pub(crate) fn dense(&self) -> Result<&Tensor> {
        match &self.packed {
            Packed::Dense(dense) => Ok(dense),
            _ => bail!("a layer packed by another backend was handed to the default"),
        }
    }
}

impl Linear {
    /// Length of an input row.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Length of an output row.
    pub fn out_features(&self) -> usize {
        self.out_features
    }
}
