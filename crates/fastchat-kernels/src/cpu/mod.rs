//! The CPU backend: overrides of the operations that matter, on an owned pool of threads, with the widest instruction
//! set the machine has. Knows nothing of models; every override computes what the default in `ops` says.

mod isa;
pub(crate) mod linear;
mod pool;

use candle_core::{Device, Result, Tensor};

pub use isa::Isa;
pub use pool::Pool;

use crate::{Kernels, Linear, MoeSpec, MoeWeights, Weight};

/// Kernels for the host's processor.
#[derive(Debug)]
pub struct CpuKernels {
    pub(crate) pool: Pool,
    pub(crate) isa: Isa,
    /// Where packed weights lie.
    arena: linear::Arena,
}

impl CpuKernels {
    /// With `threads` threads (`None`: what affinity and cgroup quota allow) and the widest instruction set found, or the
    /// one that the environment variable `FASTCHAT_ISA` names (`avx512`, `avx2`, `portable`).
    pub fn new(threads: Option<usize>) -> Self {
        let asked = std::env::var("FASTCHAT_ISA").ok().and_then(|name| Isa::from_name(&name));
        Self::with_isa(threads, asked.unwrap_or(Isa::Avx512Vnni))
    }

    /// With the instruction set `isa`, or the widest below it that this machine has.
    pub fn with_isa(threads: Option<usize>, isa: Isa) -> Self {
        let allowed = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            pool: Pool::new(threads.unwrap_or_else(allowed)),
            isa: isa.min(Isa::detect()),
            arena: linear::Arena::default(),
        }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The threads that share an operation.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
}

impl Kernels for CpuKernels {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn name(&self) -> String {
        format!("cpu-{}", self.isa)
    }

    fn pack(&self, weights: &[Weight], bias: Option<Tensor>) -> Result<Linear> {
        self.pack_linear(weights, bias)
    }

    fn embed(&self, table: &Linear, ids: &[u32]) -> Result<Tensor> {
        self.run_embed(table, ids)
    }

    fn linear(&self, x: &Tensor, layer: &Linear) -> Result<Tensor> {
        self.run_linear(x, layer)
    }

    fn moe(&self, x: &Tensor, spec: &MoeSpec, weights: &MoeWeights) -> Result<Tensor> {
        crate::ops::moe::moe(self, x, spec, weights)
    }
}
