//! A fake device over the CPU's kernels that captures. The arrays of a step that is written over lie in its memory, of
//! which there is one, and whatever reads them reads them there: the plan in the host's hands is old in every replay.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::{Device, Error, Result, Tensor, bail};
use fastchat_kernels::cpu::CpuKernels;
use fastchat_kernels::{
    Activation, AttentionSpec, Capture, ForwardBatch, GatedDeltaSpec, Graph, Kernels, KvCache, Linear, MoeSpec,
    MoeWeights, Plan, QkvSpec, Rope, StateCache, StepRoom, Weight, Work,
};

/// Fails to capture steps of `fails_from` sequences and more.
#[derive(Debug)]
pub struct Capturing {
    honest: CpuKernels,
    ropes: Mutex<Vec<Rope>>,
    memory: Mutex<Option<Arc<Plan>>>,
    captured: Mutex<Vec<usize>>,
    pub fails_from: AtomicUsize,
    pub failures: AtomicUsize,
    pub replays: Arc<AtomicU64>,
}

impl Default for Capturing {
    fn default() -> Self {
        Self {
            honest: CpuKernels::new(Some(1)),
            ropes: Mutex::default(),
            memory: Mutex::default(),
            captured: Mutex::default(),
            fails_from: AtomicUsize::new(usize::MAX),
            failures: AtomicUsize::default(),
            replays: Arc::default(),
        }
    }
}

struct Again(Work, Arc<AtomicU64>);

impl fmt::Debug for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Again")
    }
}

impl Graph for Again {
    fn replay(&self) -> Result<()> {
        self.1.fetch_add(1, Ordering::SeqCst);
        (self.0)()
    }
}

impl Capturing {
    /// Sizes in the order in which they were captured.
    pub fn sizes(&self) -> Vec<usize> {
        self.captured.lock().unwrap().clone()
    }

    /// The arrays that a launch reads.
    fn read(&self, plan: &Plan) -> Result<Arc<Plan>> {
        let Some(room) = plan.room else { return Ok(Arc::new(plan.clone())) };
        match &*self.memory.lock().unwrap() {
            Some(now) if now.batch.num_sequences() == room.sequences => Ok(now.clone()),
            now => bail!("a step of {} sequences finds {now:?} in its memory", room.sequences),
        }
    }
}

impl Kernels for Capturing {
    fn device(&self) -> &Device {
        self.honest.device()
    }

    fn name(&self) -> String {
        "capturing".to_owned()
    }

    fn captures(&self) -> bool {
        true
    }

    fn capture(&self, work: Work) -> Result<Capture> {
        work()?;
        let size = self.memory.lock().unwrap().as_ref().unwrap().batch.num_sequences();
        if size >= self.fails_from.load(Ordering::SeqCst) {
            self.failures.fetch_add(1, Ordering::SeqCst);
            return Ok(Capture::Failed(Error::Msg("the fake is full\nand has a backtrace".to_owned())));
        }
        self.captured.lock().unwrap().push(size);
        Ok(Capture::Graph(Box::new(Again(work, self.replays.clone()))))
    }

    fn lasting_plan(&self, room: &StepRoom, ropes: &[Rope]) -> Result<Plan> {
        *self.ropes.lock().unwrap() = ropes.to_vec();
        Ok(Plan::lasting(*room, Vec::new()))
    }

    fn replan(&self, plan: &Plan, batch: &ForwardBatch) -> Result<()> {
        plan.room.unwrap().check(batch)?;
        // Sequences may read the same blocks; nobody writes where another does.
        let mut slots = batch.slot_mapping.clone();
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), batch.num_sequences(), "two rows share a slot: {batch:?}");
        *self.memory.lock().unwrap() = Some(Arc::new(self.honest.plan(batch, &self.ropes.lock().unwrap())?));
        Ok(())
    }

    fn embed_tokens(&self, table: &Linear, plan: &Plan) -> Result<Tensor> {
        self.honest.embed(table, &self.read(plan)?.batch.token_ids)
    }

    fn qk_norm_rope_write(&self, qkv: &Tensor, spec: &QkvSpec, cache: &KvCache, plan: &Plan) -> Result<Tensor> {
        self.honest.qk_norm_rope_write(qkv, spec, cache, &*self.read(plan)?)
    }

    fn rope(&self, x: &Tensor, head_dim: usize, rope: &Rope, tail: bool, plan: &Plan) -> Result<Tensor> {
        self.honest.rope(x, head_dim, rope, tail, &*self.read(plan)?)
    }

    fn write_kv(&self, k: &Tensor, v: Option<&Tensor>, cache: &KvCache, plan: &Plan) -> Result<()> {
        self.honest.write_kv(k, v, cache, &*self.read(plan)?)
    }

    fn attention(&self, q: &Tensor, spec: &AttentionSpec, cache: &KvCache, plan: &Plan) -> Result<Tensor> {
        self.honest.attention(q, spec, cache, &*self.read(plan)?)
    }

    fn gated_delta(
        &self,
        inputs: &[&Tensor; 3],
        spec: &GatedDeltaSpec,
        cache: &StateCache,
        plan: &Plan,
    ) -> Result<Tensor> {
        self.honest.gated_delta(inputs, spec, cache, &*self.read(plan)?)
    }

    fn pack(&self, weights: &[Weight], bias: Option<Tensor>) -> Result<Linear> {
        self.honest.pack(weights, bias)
    }

    fn plan(&self, batch: &ForwardBatch, ropes: &[Rope]) -> Result<Plan> {
        self.honest.plan(batch, ropes)
    }

    fn embed(&self, table: &Linear, ids: &[u32]) -> Result<Tensor> {
        self.honest.embed(table, ids)
    }

    fn linear(&self, x: &Tensor, layer: &Linear) -> Result<Tensor> {
        self.honest.linear(x, layer)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        self.honest.rms_norm(x, weight, eps)
    }

    fn add_rms_norm(&self, x: &Tensor, residual: &Tensor, weight: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
        self.honest.add_rms_norm(x, residual, weight, eps)
    }

    fn gated_act(&self, gate_up: &Tensor, act: Activation) -> Result<Tensor> {
        self.honest.gated_act(gate_up, act)
    }

    fn gated_linear(&self, x: &Tensor, gate_up: &Linear, act: Activation) -> Result<Tensor> {
        self.honest.gated_linear(x, gate_up, act)
    }

    fn moe(&self, x: &Tensor, spec: &MoeSpec, weights: &MoeWeights) -> Result<Tensor> {
        self.honest.moe(x, spec, weights)
    }
}
