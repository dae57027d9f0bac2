//! What runs on the hardware: fused operations, each with a contract, a plain default and per-device overrides.
//!
//! Owns every `unsafe` block of the workspace and every byte layout of packed weights and caches. Knows no model
//! names, no scheduling policy and no text.

mod batch;
mod cache;
mod collective;
pub mod cpu;
pub mod cuda;
pub mod device;
mod graph;
mod linear;
mod mapped;
#[cfg(feature = "cuda")]
mod nvidia;
mod ops;
pub mod probe;
pub mod quant;
pub mod random;
pub mod selftest;
mod weight;

pub use batch::{ForwardBatch, Plan, StateStep};
pub use cache::{KvCache, KvLayout, StateCache, StateLayout};
pub use collective::{Collective, HostRank};
pub use device::{DeviceChoice, DeviceMemory, Fault, KernelOptions};
pub use graph::{Capture, Graph, KNOWN, PendingTokens, StepInput, StepRoom, Work};
pub use linear::Linear;
pub use mapped::{Bytes, MappedFile};
pub use ops::{
    Activation, AttentionSpec, DefaultKernels, DoubleKernels, GatedDeltaSpec, Kernels, MoeSpec, MoeWeights, MostLikely,
    NormScope, QkvSpec, Rope, RopeLayout, RouterScore, SampleRow, SampledToken,
};
pub use quant::quantize;
pub use weight::{Weight, WeightKind};

/// Tokens per block of the paged cache, for every device and model.
pub const BLOCK_SIZE: usize = 16;
