//! The CUDA backend: overrides that launch the kernels of `cuda/`, on a device or an emulated one. Knows tensors and
//! launchers; which memory they lie in is the runtime's affair.

mod attention;
mod gated_delta;
pub mod launchers;
mod linear;
mod mlp;
mod moe;
mod norm;
mod plan;
mod qkv;
mod runtime;
mod sample;
mod weights;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Error, Result, Tensor, bail};

use crate::cpu::Pool;
use crate::{
    Activation, AttentionSpec, Capture, DeviceMemory, Fault, ForwardBatch, GatedDeltaSpec, Kernels, KvCache, Linear,
    MoeSpec, MoeWeights, PendingTokens, Plan, QkvSpec, Rope, SampleRow, SampledToken, StateCache, StepInput, StepRoom,
    Weight, Work,
};
#[cfg(feature = "cuda")]
pub(crate) use runtime::GpuRuntime;
pub use runtime::{Launchers, Runtime, Stream};
pub(crate) use weights::DeviceWeight;

/// Kernels for a CUDA device, or for the emulator of one.
#[derive(Debug)]
pub struct CudaKernels {
    runtime: Box<dyn Runtime>,
    /// Packs weights on the host.
    pool: Pool,
    tables: moe::Tables,
    /// u32 zeros by which blocks find out that they are the last; kernels leave them zero.
    counters: Mutex<Option<Tensor>>,
    launches: Arc<AtomicU64>,
    /// In how many bf16 numbers bf16 weights meet an input: 3 are the float itself, 1 rounds it.
    terms: i32,
}

impl CudaKernels {
    /// On the device or the emulator behind `runtime`.
    pub fn new(runtime: Box<dyn Runtime>) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            runtime,
            pool: Pool::new(threads),
            tables: moe::Tables::default(),
            counters: Mutex::default(),
            launches: Arc::default(),
            terms: 3,
        }
    }

    /// As `new`, but inputs of bf16 weights are rounded to bf16.
    pub fn with_bf16_products(runtime: Box<dyn Runtime>) -> Self {
        Self { terms: 1, ..Self::new(runtime) }
    }

    /// Counts the calls of launchers.
    pub fn launches(&self) -> Arc<AtomicU64> {
        self.launches.clone()
    }

    /// On an opened GPU.
    ///
    /// # Errors
    /// The driver's, in one line.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_gpu(gpu: crate::nvidia::Gpu, bf16: bool) -> std::result::Result<Self, String> {
        let kernels = if bf16 { Self::with_bf16_products } else { Self::new };
        Ok(kernels(Box::new(runtime::GpuRuntime::new(gpu)?)))
    }
}

impl CudaKernels {
    /// An unset f32 tensor.
    fn empty(&self, shape: &[usize]) -> Result<Tensor> {
        self.runtime.empty(shape, DType::F32)
    }

    /// Address of the elements of a contiguous f32 tensor.
    fn floats(&self, tensor: &Tensor) -> Result<*mut f32> {
        self.elements(tensor, DType::F32)
    }

    /// Address of the elements of a contiguous tensor of type `dtype`, which `T` stands for.
    fn elements<T>(&self, tensor: &Tensor, dtype: DType) -> Result<*mut T> {
        if tensor.dtype() != dtype {
            bail!("a kernel takes {dtype:?}, the tensor holds {:?}", tensor.dtype());
        }
        Ok(self.runtime.address(tensor)?.cast())
    }

    /// A counter for every block of a launch that is cut because it has fewer than two per multiprocessor.
    fn counters(&self) -> Result<*mut u32> {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let counters = if let Some(counters) = &*counters {
            counters.clone()
        } else {
            let zeros = Tensor::zeros(2 * self.runtime.processors(), DType::U32, self.runtime.device())?;
            counters.insert(zeros).clone()
        };
        self.elements(&counters, DType::U32)
    }

    /// Queues what `call` launches. The tensors whose addresses it uses must live until then: device memory is given
    /// back in the order of the stream.
    fn launch(&self, name: &'static str, call: impl FnOnce(&Launchers, Stream) -> i32) -> Result<()> {
        self.launches.fetch_add(1, Ordering::Relaxed);
        let status = call(self.runtime.launchers(), self.runtime.stream());
        self.runtime.finish(name, status)
    }
}

impl Kernels for CudaKernels {
    fn device(&self) -> &Device {
        self.runtime.device()
    }

    fn name(&self) -> String {
        let name = self.runtime.name();
        if self.terms == 1 { format!("{name}-bf16") } else { name }
    }

    fn memory(&self) -> Option<DeviceMemory> {
        self.runtime.memory()
    }

    fn fault(&self, error: &Error) -> Fault {
        self.runtime.fault(error)
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

    fn pack(&self, weights: &[Weight], bias: Option<Tensor>) -> Result<Linear> {
        weights::pack(self, weights, bias)
    }

    fn plan(&self, batch: &ForwardBatch, ropes: &[Rope]) -> Result<Plan> {
        let plan = crate::ops::qkv::plan(batch, ropes, self.device())?;
        Ok(Plan { uploaded: Some(plan::upload(self, batch)?), ..plan })
    }

    fn captures(&self) -> bool {
        self.runtime.captures()
    }

    fn capture(&self, work: Work) -> Result<Capture> {
        self.runtime.capture(work)
    }

    fn lasting_plan(&self, room: &StepRoom, ropes: &[Rope]) -> Result<Plan> {
        plan::lasting(self, room, ropes)
    }

    fn replan(&self, plan: &Plan, input: &StepInput) -> Result<()> {
        plan::rewrite(self, plan, input)
    }

    fn follow(&self, plan: &Plan) -> Result<()> {
        plan::follow(self, plan)
    }

    fn choose_next(&self, logits: &Tensor, plan: &Plan, greedy: bool) -> Result<()> {
        self.choose_in_place(logits, plan, greedy)
    }

    fn chosen(&self, plan: &Plan) -> Result<Box<dyn PendingTokens>> {
        let Some(chosen) = &plan.chosen else { bail!("the plan is not written over") };
        self.runtime.read_later(&chosen.narrow(0, 0, plan.batch.num_sequences())?)
    }

    fn embed(&self, table: &Linear, ids: &[u32]) -> Result<Tensor> {
        linear::embed(self, table, ids)
    }

    fn embed_tokens(&self, table: &Linear, plan: &Plan) -> Result<Tensor> {
        linear::embed_tokens(self, table, plan)
    }

    fn linear(&self, x: &Tensor, layer: &Linear) -> Result<Tensor> {
        linear::linear(self, x, layer)
    }

    fn gated_linear(&self, x: &Tensor, gate_up: &Linear, act: Activation) -> Result<Tensor> {
        match linear::gated_linear(self, x, gate_up, act)? {
            Some(out) => Ok(out),
            None => self.gated_act(&self.linear(x, gate_up)?, act),
        }
    }

    fn qk_norm_rope_write(&self, qkv: &Tensor, spec: &QkvSpec, cache: &KvCache, plan: &Plan) -> Result<Tensor> {
        qkv::qk_norm_rope_write(self, qkv, spec, cache, plan)
    }

    fn rope(&self, x: &Tensor, head_dim: usize, rope: &Rope, tail: bool, plan: &Plan) -> Result<Tensor> {
        qkv::rope(self, x, head_dim, rope, tail, plan)
    }

    fn write_kv(&self, k: &Tensor, v: Option<&Tensor>, cache: &KvCache, plan: &Plan) -> Result<()> {
        qkv::write_kv(self, k, v, cache, plan)
    }

    fn attention(&self, q: &Tensor, spec: &AttentionSpec, cache: &KvCache, plan: &Plan) -> Result<Tensor> {
        attention::attention(self, q, spec, cache, plan)
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

    fn samples(&self) -> bool {
        true
    }

    fn sample(&self, logits: &Tensor, rows: &[SampleRow]) -> Result<Vec<SampledToken>> {
        self.choose(logits, rows)
    }
}
