//! The CUDA backend in its emulator, for the tests of other crates, which cannot know whether it could be compiled.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::Kernels;

/// Emulated kernels, and how many launches they have made.
#[derive(Debug)]
pub struct Emulated {
    /// The backend.
    pub kernels: Arc<dyn Kernels>,
    /// Calls of launchers so far.
    pub launches: Arc<AtomicU64>,
}

/// `None` where no C++ compiler was found when this crate was built. `checked` watches every access to memory.
pub fn emulated(checked: bool) -> Option<Emulated> {
    #[cfg(emulated)]
    {
        let kernels = crate::cuda::CudaKernels::emulated(checked);
        let launches = kernels.launches();
        Some(Emulated { kernels: Arc::new(kernels), launches })
    }
    #[cfg(not(emulated))]
    {
        let _ = checked;
        None
    }
}
