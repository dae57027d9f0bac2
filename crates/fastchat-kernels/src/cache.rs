//! The paged key-value cache and the recurrent state slots of one layer. Owns their byte layout; who owns which block
//! is decided elsewhere.

use candle_core::{DType, Device, Result, Tensor};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};

use crate::BLOCK_SIZE;

/// Sizes of one attention layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Heads that are cached (1 for a latent cache).
    pub num_kv_heads: usize,
    /// Elements of a key.
    pub head_dim: usize,
    /// Elements of a value; 0 means values are the first `v` elements of the keys (latent cache).
    pub v_head_dim: usize,
    /// f32, f16 or bf16.
    pub dtype: DType,
}

impl KvLayout {
    /// Bytes of one block of this layer, keys and values together.
    pub fn bytes_per_block(&self) -> usize {
        BLOCK_SIZE * self.num_kv_heads * (self.head_dim + self.v_head_dim) * self.dtype.size_in_bytes()
    }
}

/// Keys `[blocks, kv_heads, head_dim, BLOCK_SIZE]` (transposed inside a block, so that one vector holds 16 tokens of
/// one element) and values `[blocks, kv_heads, BLOCK_SIZE, v_head_dim]`. Written in place by `Kernels::write_kv`.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// Sizes.
    pub layout: KvLayout,
    /// Keys.
    pub k: Tensor,
    /// Values; `None` when `layout.v_head_dim` is 0.
    pub v: Option<Tensor>,
}

impl KvCache {
    /// A zeroed cache of `num_blocks` blocks.
    ///
    /// # Errors
    /// The allocation error of the device.
    pub fn new(layout: KvLayout, num_blocks: usize, device: &Device) -> Result<Self> {
        let KvLayout { num_kv_heads, head_dim, v_head_dim, dtype } = layout;
        let k = zeros((num_blocks, num_kv_heads, head_dim, BLOCK_SIZE), dtype, device)?;
        let v = match v_head_dim {
            0 => None,
            _ => Some(zeros((num_blocks, num_kv_heads, BLOCK_SIZE, v_head_dim), dtype, device)?),
        };
        Ok(Self { layout, k, v })
    }
}

/// `Tensor::zeros`, except that half-width pages on the host stay untouched, and so take no memory, until they are used.
fn zeros(shape: (usize, usize, usize, usize), dtype: DType, device: &Device) -> Result<Tensor> {
    let words = || vec![0u16; shape.0 * shape.1 * shape.2 * shape.3];
    match (device, dtype) {
        (Device::Cpu, DType::F16) => Tensor::from_vec(words().reinterpret_into::<f16>(), shape, device),
        (Device::Cpu, DType::BF16) => Tensor::from_vec(words().reinterpret_into::<bf16>(), shape, device),
        _ => Tensor::zeros(shape, dtype, device),
    }
}

/// Sizes of one gated delta net layer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateLayout {
    /// Channels that pass through the causal convolution.
    pub conv_channels: usize,
    /// Taps of the convolution; the state holds the last `conv_taps - 1` inputs.
    pub conv_taps: usize,
    /// Value heads.
    pub num_v_heads: usize,
    /// Elements of a key.
    pub k_head_dim: usize,
    /// Elements of a value.
    pub v_head_dim: usize,
}

impl StateLayout {
    /// Bytes of one slot of this layer (f32).
    pub fn bytes_per_slot(&self) -> usize {
        4 * (self.conv_channels * (self.conv_taps - 1) + self.num_v_heads * self.k_head_dim * self.v_head_dim)
    }
}

/// Convolution inputs `[slots, conv_taps - 1, conv_channels]` (oldest first) and recurrent states
/// `[slots, v_heads, k_head_dim, v_head_dim]`, f32, written in place.
#[derive(Clone, Debug)]
pub struct StateCache {
    /// Sizes.
    pub layout: StateLayout,
    /// Last inputs of the convolution.
    pub conv: Tensor,
    /// Recurrent matrices.
    pub recurrent: Tensor,
}

impl StateCache {
    /// Zeroed state of `num_slots` slots.
    ///
    /// # Errors
    /// The allocation error of the device.
    pub fn new(layout: StateLayout, num_slots: usize, device: &Device) -> Result<Self> {
        let StateLayout { conv_channels, conv_taps, num_v_heads, k_head_dim, v_head_dim } = layout;
        let conv = Tensor::zeros((num_slots, conv_taps - 1, conv_channels), DType::F32, device)?;
        let recurrent = Tensor::zeros((num_slots, num_v_heads, k_head_dim, v_head_dim), DType::F32, device)?;
        Ok(Self { layout, conv, recurrent })
    }
}
