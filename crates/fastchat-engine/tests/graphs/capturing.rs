//! A fake device over the CPU's kernels that captures. The arrays of a step that is written over lie in its memory, of
//! which there is one, and whatever reads them reads them there: the plan in the host's hands is old in every replay.
//! Replays that choose tokens are put off until somebody waits for their results, as far behind the host as a device can be.
#![allow(dead_code)] // each test uses a part

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use candle_core::{Device, Error, Result, Tensor, bail};
use fastchat_kernels::cpu::CpuKernels;
use fastchat_kernels::{
    Activation, AttentionSpec, Capture, ForwardBatch, GatedDeltaSpec, Graph, KNOWN, Kernels, KvCache, Linear, MoeSpec,
    MoeWeights, PendingTokens, Plan, QkvSpec, Rope, SampleRow, StateCache, StepInput, StepRoom, Weight, Work,
};

/// A step as it was written over the last one, and the tokens that were chosen last.
#[derive(Debug, Default)]
struct Memory {
    plan: Option<Arc<Plan>>,
    follows: Vec<u32>,
    asked: Vec<SampleRow>,
    chosen: Vec<u32>,
}

type Later = Box<dyn FnOnce() -> Result<()> + Send>;

/// What the device was told and has not done.
#[derive(Default)]
struct Stream {
    told: Mutex<VecDeque<Later>>,
    /// Held by whoever does the next thing.
    doing: Mutex<()>,
    /// Whether it does what it was told without being waited for.
    runs: AtomicBool,
    /// What went wrong there: nothing is done after that.
    lost: OnceLock<String>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

impl Stream {
    fn push(&self, later: Later) {
        self.told.lock().unwrap().push_back(later);
    }

    /// Does the next thing; `false` when there was none.
    fn advance(&self) -> Result<bool> {
        let _doing = self.doing.lock().unwrap();
        self.alive()?;
        let next = self.told.lock().unwrap().pop_front();
        let done = next.map_or(Ok(false), |next| next().map(|()| true));
        if let (Err(error), true) = (&done, self.runs.load(Ordering::SeqCst)) {
            self.lost.get_or_init(|| error.to_string());
        }
        done
    }

    fn alive(&self) -> Result<()> {
        self.lost.get().map_or(Ok(()), |line| Err(Error::Msg(line.clone())))
    }

    /// Does what it was told on a thread of its own, whether or not anybody waits.
    fn run(self: &Arc<Self>) {
        self.runs.store(true, Ordering::SeqCst);
        let stream = Arc::downgrade(self);
        std::thread::spawn(move || {
            while let Some(stream) = stream.upgrade() {
                match stream.advance() {
                    Ok(true) => {}
                    Ok(false) => std::thread::sleep(Duration::from_micros(50)),
                    Err(_) => return,
                }
            }
        });
    }

    fn drain(&self) -> Result<()> {
        while self.advance()? {}
        Ok(())
    }
}

/// Tokens that are there once the stream has come to their copy.
#[derive(Debug)]
struct Pending(Arc<Stream>, Arc<Mutex<Option<Vec<u32>>>>);

impl PendingTokens for Pending {
    fn wait(self: Box<Self>) -> Result<Vec<u32>> {
        loop {
            self.0.alive()?;
            if let Some(tokens) = self.1.lock().unwrap().take() {
                return Ok(tokens);
            }
            let advanced = self.0.advance()?;
            let there = self.1.lock().unwrap().is_some();
            assert!(advanced || there, "nothing is queued that would give these tokens");
        }
    }
}

/// Fails to capture steps of `fails_from` sequences and more; of 0, has no memory for plans that are written over.
#[derive(Debug)]
pub struct Capturing {
    honest: CpuKernels,
    ropes: Mutex<Vec<Rope>>,
    memory: Arc<Mutex<Memory>>,
    stream: Arc<Stream>,
    captured: Mutex<Vec<(usize, bool)>>,
    /// Chooses tokens, where the default would leave that to the host.
    samples: bool,
    pub fails_from: AtomicUsize,
    pub failures: AtomicUsize,
    pub replays: Arc<AtomicU64>,
    /// The replay that fails, once somebody waits for it.
    pub breaks_at: Arc<AtomicU64>,
}

impl Default for Capturing {
    fn default() -> Self {
        Self {
            honest: CpuKernels::new(Some(1)),
            ropes: Mutex::default(),
            memory: Arc::default(),
            stream: Arc::default(),
            captured: Mutex::default(),
            samples: false,
            fails_from: AtomicUsize::new(usize::MAX),
            failures: AtomicUsize::default(),
            replays: Arc::default(),
            breaks_at: Arc::new(AtomicU64::new(u64::MAX)),
        }
    }
}

struct Again {
    work: Arc<Work>,
    stream: Arc<Stream>,
    chooses: bool,
    replays: Arc<AtomicU64>,
    breaks_at: Arc<AtomicU64>,
}

impl fmt::Debug for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Again")
    }
}

impl Graph for Again {
    fn replay(&self) -> Result<()> {
        let breaks = self.replays.fetch_add(1, Ordering::SeqCst) == self.breaks_at.load(Ordering::SeqCst);
        let work = self.work.clone();
        self.stream.push(Box::new(move || if breaks { bail!("the fake stumbles") } else { work() }));
        // Logits are read without a word to the device.
        if self.chooses { Ok(()) } else { self.stream.drain() }
    }
}

impl Capturing {
    /// One that chooses tokens itself.
    pub fn sampling() -> Self {
        Self { samples: true, ..Self::default() }
    }

    /// As `sampling`, and does what it is told without being waited for, as ranks must that wait for each other.
    pub fn running() -> Self {
        let device = Self::sampling();
        device.stream.run();
        device
    }

    /// Sizes in the order in which they were captured.
    pub fn sizes(&self) -> Vec<usize> {
        self.captured.lock().unwrap().iter().map(|&(size, _)| size).collect()
    }

    /// The arrays that a launch reads.
    fn read(&self, plan: &Plan) -> Result<Arc<Plan>> {
        let Some(room) = plan.room else { return Ok(Arc::new(plan.clone())) };
        match &self.memory.lock().unwrap().plan {
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
        self.stream.drain()?;
        work()?;
        let (size, chooses) = {
            let memory = self.memory.lock().unwrap();
            (memory.plan.as_ref().unwrap().batch.num_sequences(), !memory.asked.is_empty())
        };
        if size >= self.fails_from.load(Ordering::SeqCst) {
            self.failures.fetch_add(1, Ordering::SeqCst);
            return Ok(Capture::Failed(Error::Msg("the fake is full\nand has a backtrace".to_owned())));
        }
        self.captured.lock().unwrap().push((size, chooses));
        let (stream, replays, breaks_at) = (self.stream.clone(), self.replays.clone(), self.breaks_at.clone());
        Ok(Capture::Graph(Box::new(Again { work: Arc::new(work), stream, chooses, replays, breaks_at })))
    }

    fn lasting_plan(&self, room: &StepRoom, ropes: &[Rope]) -> Result<Plan> {
        if self.fails_from.load(Ordering::SeqCst) == 0 {
            bail!("the fake has no memory for a lasting plan");
        }
        *self.ropes.lock().unwrap() = ropes.to_vec();
        Ok(Plan::lasting(*room, Vec::new()))
    }

    fn replan(&self, plan: &Plan, input: &StepInput) -> Result<()> {
        plan.room.unwrap().check(input)?;
        let StepInput { batch, follows, asked } = *input;
        // Sequences may read the same blocks; nobody writes where another does.
        let mut slots = batch.slot_mapping.clone();
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), batch.num_sequences(), "two rows share a slot: {batch:?}");
        let plan = Some(Arc::new(self.honest.plan(batch, &self.ropes.lock().unwrap())?));
        let (memory, follows, asked) = (self.memory.clone(), follows.to_vec(), asked.to_vec());
        self.stream.push(Box::new(move || {
            let chosen = std::mem::take(&mut memory.lock().unwrap().chosen);
            *memory.lock().unwrap() = Memory { plan, follows, asked, chosen };
            Ok(())
        }));
        Ok(())
    }

    fn follow(&self, _: &Plan) -> Result<()> {
        let mut memory = self.memory.lock().unwrap();
        let mut plan = Plan::clone(memory.plan.as_ref().unwrap());
        for (id, &row) in plan.batch.token_ids.iter_mut().zip(&memory.follows) {
            if row != KNOWN {
                *id = memory.chosen[row as usize];
            }
        }
        memory.plan = Some(Arc::new(plan));
        Ok(())
    }

    fn choose_next(&self, logits: &Tensor, _: &Plan, greedy: bool) -> Result<()> {
        let mut memory = self.memory.lock().unwrap();
        assert_eq!(greedy, memory.asked.iter().all(SampleRow::is_greedy));
        let chosen = self.honest.sample(logits, &memory.asked)?;
        memory.chosen = chosen.into_iter().map(|chosen| chosen.token.unwrap_or(u32::MAX)).collect();
        Ok(())
    }

    fn chosen(&self, _: &Plan) -> Result<Box<dyn PendingTokens>> {
        let (memory, tokens) = (self.memory.clone(), Arc::new(Mutex::new(None)));
        let to = tokens.clone();
        self.stream.push(Box::new(move || {
            *to.lock().unwrap() = Some(memory.lock().unwrap().chosen.clone());
            Ok(())
        }));
        Ok(Box::new(Pending(self.stream.clone(), tokens)))
    }

    fn samples(&self) -> bool {
        self.samples
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

    /// Row by row: those that fill a step up share a slot, which this device's honest part takes for a reason to be slow.
    fn gated_delta(
        &self,
        inputs: &[&Tensor; 3],
        spec: &GatedDeltaSpec,
        cache: &StateCache,
        plan: &Plan,
    ) -> Result<Tensor> {
        let now = self.read(plan)?;
        if plan.room.is_none() {
            return self.honest.gated_delta(inputs, spec, cache, &now);
        }
        let row = |s: usize| {
            let alone = ForwardBatch {
                token_ids: vec![now.batch.token_ids[s]],
                positions: vec![now.batch.positions[s]],
                query_start: vec![0, 1],
                context_lens: vec![now.batch.context_lens[s]],
                states: vec![now.batch.states[s].clone()],
                ..ForwardBatch::default()
            };
            let [qkv, beta, decay] = [0, 1, 2].map(|i| inputs[i].narrow(0, s, 1).and_then(|x| x.contiguous()));
            self.honest.gated_delta(&[&qkv?, &beta?, &decay?], spec, cache, &Plan::new(alone, vec![]))
        };
        let rows = (0..now.batch.num_sequences()).map(row).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&rows, 0)
    }

    fn pack(&self, weights: &[Weight], bias: Option<Tensor>) -> Result<Linear> {
        self.honest.pack(weights, bias)
    }

    fn plan(&self, batch: &ForwardBatch, ropes: &[Rope]) -> Result<Plan> {
        // Eager work comes after all that is queued.
        self.stream.drain()?;
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
