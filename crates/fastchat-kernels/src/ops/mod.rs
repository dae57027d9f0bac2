//! The contract of the hardware: one method per fused operation, each with a default body in plain candle that is slow
//! and obviously right. Backends override what is worth it; the test of an override is: override == default.

pub(crate) mod attention;
pub(crate) mod embed;
pub(crate) mod full_attention;
pub(crate) mod gated_delta;
pub(crate) mod linear;
pub(crate) mod mlp;
pub(crate) mod moe;
mod norm;
pub(crate) mod qkv;
pub(crate) mod sample;

use std::fmt::Debug;
use std::ops::Range;

use candle_core::{DType, Device, Error, Result, Tensor, bail};

pub use attention::AttentionSpec;
pub use gated_delta::GatedDeltaSpec;
pub use mlp::Activation;
pub use moe::{MoeSpec, MoeWeights, RouterScore};
pub use norm::NormScope;
pub use qkv::{QkvSpec, Rope, RopeLayout};
pub use sample::{MostLikely, SampleRow, SampledToken};

use crate::{
    Capture, DeviceMemory, Fault, ForwardBatch, KvCache, Linear, PendingTokens, Plan, StateCache, StepInput, StepRoom,
    Weight, Work,
};

/// Fused operations over flat `[tokens, ..]` f32 activations ([`DoubleKernels`]: f64). All results of a row depend on that
/// row's sequence only: never on its neighbours in the batch, nor on how its prefill was cut into chunks (bit for bit on
/// one backend).
pub trait Kernels: Send + Sync + Debug {
    /// Where the tensors live.
    fn device(&self) -> &Device;

    /// What serves the calls, for logs, `doctor` and the system fingerprint, e.g. `cpu-avx512-vnni`.
    fn name(&self) -> String;

    /// Memory of the device as it is now; `None` where tensors lie in the host's.
    fn memory(&self) -> Option<DeviceMemory> {
        None
    }

    /// What an error of one of these operations says about the device.
    fn fault(&self, error: &Error) -> Fault {
        let _ = error;
        Fault::Plain
    }

    /// Packs weights that share an input into one layer; outputs are stacked in order. `bias` is f32 `[sum of rows]`.
    /// Called once per layer at load; the stored bytes may be dropped afterwards.
    fn pack(&self, weights: &[Weight], bias: Option<Tensor>) -> Result<Linear> {
        linear::pack(weights, bias, self.device(), DType::F32)
    }

    /// Packs a matrix of which `most_likely` looks for the largest product; it serves `linear` and `embed` too.
    fn pack_lm_head(&self, weight: &Weight) -> Result<Linear> {
        self.pack(std::slice::from_ref(weight), None)
    }

    /// Derives what all layers of a step share; `ropes` are the model's distinct rope tables.
    fn plan(&self, batch: &ForwardBatch, ropes: &[Rope]) -> Result<Plan> {
        qkv::plan(batch, ropes, self.device())
    }

    /// Whether work can be captured: what queues it costs time on the device.
    fn captures(&self) -> bool {
        false
    }

    /// Runs `work`, and captures what it queues, to be replayed. An error is that of the run.
    fn capture(&self, work: Work) -> Result<Capture> {
        work()?;
        Ok(Capture::Failed(Error::Msg(format!("{} captures nothing", self.name()))))
    }

    /// A plan that is written over by `replan`, for steps of the shape and within the bounds of `room`.
    fn lasting_plan(&self, room: &StepRoom, ropes: &[Rope]) -> Result<Plan> {
        let _ = (room, ropes);
        bail!("plans of {} are not written over", self.name())
    }

    /// Writes a step over that of a plan that `lasting_plan` made, where it is.
    fn replan(&self, plan: &Plan, input: &StepInput) -> Result<()> {
        let _ = (plan, input);
        bail!("plans of {} are not written over", self.name())
    }

    /// Gives the sequences of a plan that is written over the tokens that the step before has chosen for them.
    fn follow(&self, plan: &Plan) -> Result<()> {
        let _ = plan;
        bail!("plans of {} are not written over", self.name())
    }

    /// Chooses a token of each row of `logits` as the step that was written over the plan asks, with the results of
    /// `sample`. They stay in the plan. `greedy`: every row is.
    fn choose_next(&self, logits: &Tensor, plan: &Plan, greedy: bool) -> Result<()> {
        let _ = (logits, plan, greedy);
        bail!("plans of {} are not written over", self.name())
    }

    /// The tokens that `choose_next` has left in the plan, on their way: what is queued from now on does not change them.
    fn chosen(&self, plan: &Plan) -> Result<Box<dyn PendingTokens>> {
        let _ = plan;
        bail!("plans of {} are not written over", self.name())
    }

    /// Rows `ids` of a packed table: f32 `[ids, in_features]`.
    fn embed(&self, table: &Linear, ids: &[u32]) -> Result<Tensor> {
        embed::embed(table, ids)
    }

    /// Rows of a packed table for the tokens of a step.
    fn embed_tokens(&self, table: &Linear, plan: &Plan) -> Result<Tensor> {
        self.embed(table, &plan.batch.token_ids)
    }

    /// `x [tokens, in] -> [tokens, out]`.
    fn linear(&self, x: &Tensor, layer: &Linear) -> Result<Tensor> {
        linear::linear(x, layer)
    }

    /// As `linear`, into the first rows of `out`, contiguous f32 `[at least tokens, out_features]`: for results so large that
    /// the memory of the last ones is worth keeping.
    fn linear_into(&self, x: &Tensor, layer: &Linear, out: &Tensor) -> Result<()> {
        out.slice_set(&self.linear(x, layer)?, 0, 0)
    }

    /// The output of `linear` that is largest in each row, the first of equals; `None` if none is above -inf.
    fn most_likely(&self, x: &Tensor, lm_head: &Linear) -> Result<Vec<Option<u32>>> {
        linear::most_likely(&self.linear(x, lm_head)?)
    }

    /// Root mean square norm over the last dimension (arXiv 1910.07467); `weight` f32 `[hidden]`.
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        norm::rms_norm(x, weight, eps)
    }

    /// Layer norm over the last dimension (arXiv 1607.06450); `weight`, `bias` f32 `[hidden]`.
    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
        norm::layer_norm(x, weight, bias, eps)
    }

    /// `sum = x + residual` and `rms_norm(sum)`: returns `(sum, normed)`.
    fn add_rms_norm(&self, x: &Tensor, residual: &Tensor, weight: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
        norm::add_rms_norm(x, residual, weight, eps)
    }

    /// Cuts `qkv [tokens, (heads + 2 kv_heads) * head_dim]` into q, k, v, norms and rotates q and k, writes k and v to
    /// their cache slots, returns q `[tokens, heads * head_dim]`.
    fn qk_norm_rope_write(&self, qkv: &Tensor, spec: &QkvSpec, cache: &KvCache, plan: &Plan) -> Result<Tensor> {
        let (q, k, v) = qkv::qk_norm_rope(qkv, spec, plan)?;
        self.write_kv(&k, Some(&v), cache, plan)?;
        Ok(q)
    }

    /// Rotates `x [tokens, heads * head_dim]` by the plan's rope table `rope`, over the last `rotary_dim` elements of
    /// each head when `tail`, else the first.
    fn rope(&self, x: &Tensor, head_dim: usize, rope: &Rope, tail: bool, plan: &Plan) -> Result<Tensor> {
        qkv::rope(x, head_dim, rope, tail, plan)
    }

    /// Writes keys `[tokens, kv_heads * head_dim]` (and values) to `plan.batch.slot_mapping`, rounding to the cache type.
    fn write_kv(&self, k: &Tensor, v: Option<&Tensor>, cache: &KvCache, plan: &Plan) -> Result<()> {
        attention::write_kv(k, v, cache, plan)
    }

    /// Paged attention of `q [tokens, heads * head_dim]` over the cache, causal but for `ForwardBatch::reach`:
    /// `[tokens, heads * v_head_dim]`.
    fn attention(&self, q: &Tensor, spec: &AttentionSpec, cache: &KvCache, plan: &Plan) -> Result<Tensor> {
        attention::attention(q, spec, cache, plan)
    }

    /// Cuts, norms and rotates `qkv` as `qk_norm_rope_write` does, then attends over each sequence of the plan in both
    /// directions, with nothing cached. Only the flat tokens `rows` ask: `[rows, heads * head_dim]`. A window reaches
    /// `window - 1` tokens to either side; `ForwardBatch::reach`, counted from the sequence's first token, hides what
    /// follows.
    fn full_attention(
        &self,
        qkv: &Tensor,
        parts: &QkvSpec,
        spec: &AttentionSpec,
        plan: &Plan,
        rows: Range<usize>,
    ) -> Result<Tensor> {
        full_attention::full_attention(qkv, parts, spec, plan, &rows)
    }

    /// `act(gate) * up` of `gate_up [tokens, 2 * inter]` (gate first): `[tokens, inter]`.
    fn gated_act(&self, gate_up: &Tensor, act: Activation) -> Result<Tensor> {
        mlp::gated_act(gate_up, act)
    }

    /// `gated_act(linear(x, gate_up), act)`: `[tokens, inter]`.
    fn gated_linear(&self, x: &Tensor, gate_up: &Linear, act: Activation) -> Result<Tensor> {
        self.gated_act(&self.linear(x, gate_up)?, act)
    }

    /// `act(x)`, element by element.
    fn act(&self, x: &Tensor, act: Activation) -> Result<Tensor> {
        mlp::act(x, act)
    }

    /// Routed experts of `x [tokens, hidden]`, grouped by expert, so that cost grows with active experts.
    fn moe(&self, x: &Tensor, spec: &MoeSpec, weights: &MoeWeights) -> Result<Tensor>;

    /// Gated delta rule (arXiv 2412.06464) with its causal convolution, state read and written in `cache`.
    /// `inputs` are `qkv [tokens, conv_channels]` before the convolution, `beta` and the log decay (at most 0), each
    /// `[tokens, v_heads]`; returns `[tokens, v_heads * v_head_dim]`. `plan.batch.states` says from which slot each
    /// sequence starts and where its state is left.
    fn gated_delta(
        &self,
        inputs: &[&Tensor; 3],
        spec: &GatedDeltaSpec,
        cache: &StateCache,
        plan: &Plan,
    ) -> Result<Tensor> {
        gated_delta::gated_delta(inputs, spec, cache, plan)
    }

    /// Whether tokens should be chosen by `sample`, because logits are far from the host. Where they are near, callers
    /// may choose from the rows themselves.
    fn samples(&self) -> bool {
        false
    }

    /// A token of each row of `logits`, f32 `[rows, vocab]`, chosen in the way its entry of `rows` says; the logits stay
    /// as they are. Random numbers are `random::uniform`'s.
    fn sample(&self, logits: &Tensor, rows: &[SampleRow]) -> Result<Vec<SampledToken>> {
        sample::sample(logits, rows)
    }
}

/// The plain candle bodies on a device, with nothing overridden: the reference of every test.
#[derive(Debug)]
pub struct DefaultKernels(pub Device);

impl Kernels for DefaultKernels {
    fn device(&self) -> &Device {
        &self.0
    }

    fn name(&self) -> String {
        "default".to_owned()
    }

    fn moe(&self, x: &Tensor, spec: &MoeSpec, weights: &MoeWeights) -> Result<Tensor> {
        moe::moe(self, x, spec, weights)
    }
}

/// The same bodies over f64 activations on the host: what of a difference is rounding does not show here. Rotations, the
/// weights of experts and what lies in a cache stay f32.
#[derive(Debug)]
pub struct DoubleKernels;

impl Kernels for DoubleKernels {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn name(&self) -> String {
        "double".to_owned()
    }

    fn pack(&self, weights: &[Weight], bias: Option<Tensor>) -> Result<Linear> {
        linear::pack(weights, bias, self.device(), DType::F64)
    }

    fn moe(&self, x: &Tensor, spec: &MoeSpec, weights: &MoeWeights) -> Result<Tensor> {
        moe::moe(self, x, spec, weights)
    }
}
