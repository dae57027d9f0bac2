//! The CPU backend: overrides of the operations that matter, on an owned pool of threads, with the widest instruction
//! set the machine has. Knows nothing of models; every override computes what the default in `ops` says.

mod attention;
mod full_attention;
mod gated_delta;
pub(crate) mod host;
mod isa;
pub(crate) mod linear;
mod mlp;
mod moe;
mod norm;
mod pool;
mod probe;
mod qkv;
mod simd;
mod write_kv;

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

pub use isa::Isa;
pub use pool::Pool;
pub use probe::Limits;

use crate::{
    Activation, AttentionSpec, GatedDeltaSpec, Kernels, KvCache, Linear, MoeSpec, MoeWeights, Plan, QkvSpec, Rope,
    StateCache, Weight,
};

/// Kernels for the host's processor.
#[derive(Debug)]
pub struct CpuKernels {
    pub(crate) pool: Pool,
    pub(crate) isa: Isa,
    /// Where packed weights lie.
    arena: linear::Arena,
    rounded: linear::Rounded,
    pairs: linear::Pairs,
    bounds: host::Spare<Vec<f32>>,
    buffers: attention::Buffers,
}

impl CpuKernels {
    /// With `threads` threads (`None`: what affinity and cgroup quota allow) and the widest instruction set found that
    /// computes bf16 weights in f32, or the one that the environment variable `FASTCHAT_ISA` names (`avx512bf16`,
    /// `avx512`, `avxvnni`, `avx2`, `portable`).
    pub fn new(threads: Option<usize>) -> Self {
        Self::preferring(threads, Isa::Avx512Vnni)
    }

    /// As `new`, but inputs of bf16 weights are rounded to bf16 where the processor multiplies that.
    pub fn with_bf16_products(threads: Option<usize>) -> Self {
        Self::preferring(threads, Isa::Avx512Bf16)
    }

    fn preferring(threads: Option<usize>, isa: Isa) -> Self {
        let asked = std::env::var("FASTCHAT_ISA").ok().and_then(|name| Isa::from_name(&name));
        Self::with_isa(threads, asked.unwrap_or(isa))
    }

    /// With the instruction set `isa`, or the widest below it that this machine has.
    pub fn with_isa(threads: Option<usize>, isa: Isa) -> Self {
        let allowed = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            pool: Pool::new(threads.unwrap_or_else(allowed)),
            isa: isa.min(Isa::detect()),
            arena: linear::Arena::default(),
            rounded: linear::Rounded::default(),
            pairs: linear::Pairs::default(),
            bounds: host::Spare::default(),
            buffers: attention::Buffers::default(),
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

    fn pack_lm_head(&self, weight: &Weight) -> Result<Linear> {
        self.pack_split(weight)
    }

    fn embed(&self, table: &Linear, ids: &[u32]) -> Result<Tensor> {
        self.run_embed(table, ids)
    }

    fn linear(&self, x: &Tensor, layer: &Linear) -> Result<Tensor> {
        self.run_linear(x, layer)
    }

    fn linear_into(&self, x: &Tensor, layer: &Linear, out: &Tensor) -> Result<()> {
        self.run_linear_into(x, layer, out)
    }

    fn most_likely(&self, x: &Tensor, lm_head: &Linear) -> Result<Vec<Option<u32>>> {
        self.run_most_likely(x, lm_head)
    }

    fn gated_linear(&self, x: &Tensor, gate_up: &Linear, act: Activation) -> Result<Tensor> {
        self.run_gated_linear(x, gate_up, act)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        norm::rms_norm(self, x, weight, eps)
    }

    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
        norm::layer_norm(self, x, weight, bias, eps)
    }

    fn add_rms_norm(&self, x: &Tensor, residual: &Tensor, weight: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
        norm::add_rms_norm(self, x, residual, weight, eps)
    }

    fn qk_norm_rope_write(&self, qkv: &Tensor, spec: &QkvSpec, cache: &KvCache, plan: &Plan) -> Result<Tensor> {
        qkv::qk_norm_rope_write(self, qkv, spec, cache, plan)
    }

    fn rope(&self, x: &Tensor, head_dim: usize, rope: &Rope, tail: bool, plan: &Plan) -> Result<Tensor> {
        qkv::rope(self, x, head_dim, rope, tail, plan)
    }

    fn write_kv(&self, k: &Tensor, v: Option<&Tensor>, cache: &KvCache, plan: &Plan) -> Result<()> {
        write_kv::write_kv(self, k, v, cache, plan)
    }

    fn attention(&self, q: &Tensor, spec: &AttentionSpec, cache: &KvCache, plan: &Plan) -> Result<Tensor> {
        attention::attention(self, q, spec, cache, plan)
    }

    fn full_attention(
        &self,
        qkv: &Tensor,
        parts: &QkvSpec,
        spec: &AttentionSpec,
        plan: &Plan,
        rows: Range<usize>,
    ) -> Result<Tensor> {
        match spec.window {
            None => full_attention::full_attention(self, qkv, parts, (spec, plan), &rows),
            Some(_) => crate::ops::full_attention::full_attention(qkv, parts, spec, plan, &rows),
        }
    }

    fn gated_act(&self, gate_up: &Tensor, act: Activation) -> Result<Tensor> {
        mlp::gated_act(self, gate_up, act)
    }

    fn act(&self, x: &Tensor, act: Activation) -> Result<Tensor> {
        mlp::act(self, x, act)
    }

    fn moe(&self, x: &Tensor, spec: &MoeSpec, weights: &MoeWeights) -> Result<Tensor> {
        moe::moe(self, x, spec, weights)
    }

    fn gated_delta(
        &self,
        inputs: &[&Tensor; 3],
        spec: &GatedDeltaSpec,
        cache: &StateCache,
        plan: &Plan,
    ) -> Result<Tensor> {
        gated_delta::gated_delta(self, inputs, spec, cache, plan)
    }
}
