//! The CUDA backend in an emulator on the host, for tests: the kernels of `fastchat-kernels/cuda` as plain C++. Knows of
//! the backend what `Runtime` asks of a device. A crate of its own, so that tests use the libraries that the wheel has.

#![allow(unsafe_code)] // launchers are called as `fastchat-kernels` calls them

#[cfg(emulated)]
mod runtime;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use fastchat_kernels::Kernels;
#[cfg(emulated)]
use fastchat_kernels::cuda::CudaKernels;

/// Emulated kernels, and how many launches they have made.
#[derive(Debug)]
pub struct Emulated {
    /// The backend.
    pub kernels: Arc<dyn Kernels>,
    /// Calls of launchers so far.
    pub launches: Arc<AtomicU64>,
}

/// The backend itself; `checked` watches every access to memory, at a tenth of the speed.
#[cfg(emulated)]
pub fn kernels(checked: bool) -> CudaKernels {
    CudaKernels::new(Box::new(runtime::Emulator::new(checked)))
}

/// The same, with inputs of bf16 weights rounded to bf16.
#[cfg(emulated)]
pub fn bf16_kernels(checked: bool) -> CudaKernels {
    CudaKernels::with_bf16_products(Box::new(runtime::Emulator::new(checked)))
}

/// `None` where no C++ compiler was found when this crate was built; for `checked` see [`kernels`].
pub fn emulated(checked: bool) -> Option<Emulated> {
    #[cfg(emulated)]
    {
        let kernels = kernels(checked);
        let launches = kernels.launches();
        Some(Emulated { kernels: Arc::new(kernels), launches })
    }
    #[cfg(not(emulated))]
    {
        let _ = checked;
        None
    }
}
