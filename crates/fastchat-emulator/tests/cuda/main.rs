//! The CUDA overrides against the plain defaults, in the emulator: as they run, and with every access to memory checked;
//! and the emulator's own checks. Needs a C++ compiler.
#![cfg(emulated)]
#![allow(clippy::unwrap_used, unsafe_code)] // a test may fail loudly, and calls broken kernels itself

mod attention;
mod chosen;
#[allow(dead_code)] // made for the CPU's tests
#[path = "../../../fastchat-kernels/tests/ops/data.rs"]
mod data;
mod emulator;
mod gated_delta;
#[path = "../../../fastchat-kernels/tests/ops/gated_delta_case.rs"]
mod gated_delta_case;
mod in_place;
mod linear;
mod moe;
mod qkv;
mod rows;
mod sample;
#[path = "../../../fastchat-kernels/tests/ops/weights.rs"]
mod weights;

use candle_core::Tensor;
use fastchat_kernels::cuda::CudaKernels;
use fastchat_kernels::{BLOCK_SIZE, KvCache};

/// The two ways to emulate.
fn backends() -> [CudaKernels; 2] {
    [fastchat_emulator::kernels(false), fastchat_emulator::kernels(true)]
}

/// Keys with tokens and elements exchanged within each block: what the backend holds where the default holds `cache`,
/// or the other way round.
fn exchanged(cache: &KvCache, elements_first: bool) -> KvCache {
    let (blocks, heads, dim, _) = cache.k.dims4().unwrap();
    let inner = if elements_first { (dim, BLOCK_SIZE) } else { (BLOCK_SIZE, dim) };
    let k = cache.k.reshape((blocks, heads, inner.0, inner.1)).unwrap().transpose(2, 3).unwrap();
    let k: Tensor = k.contiguous().unwrap().reshape(cache.k.shape()).unwrap();
    KvCache { k, ..cache.clone() }
}
