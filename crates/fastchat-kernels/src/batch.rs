//! One step's work as plain integers, and the plan a backend derives from it once per step. Knows no requests, only
//! rows: sequences are `query_start` ranges of flat tokens.

use candle_core::{Result, Tensor, bail};

use crate::StepRoom;

/// What the scheduler's batch becomes on its way to the model: flat, no padding.
#[derive(Clone, Debug, Default)]
pub struct ForwardBatch {
    /// Token ids `[tokens]`.
    pub token_ids: Vec<u32>,
    /// Absolute positions `[tokens]`, consecutive within a sequence.
    pub positions: Vec<u32>,
    /// Positions by which ropes turn `[tokens]`, one per axis (time, row, column); empty: `positions` on every axis.
    pub rope_positions: Vec<[u32; 3]>,
    /// Last position that each token sees `[tokens]`, below its sequence's context length; empty: its own.
    pub reach: Vec<u32>,
    /// Cache slot of each token `[tokens]`: `block * BLOCK_SIZE + offset`.
    pub slot_mapping: Vec<u32>,
    /// Prefix sums `[sequences + 1]`: sequence `s` owns tokens `query_start[s] .. query_start[s + 1]`.
    pub query_start: Vec<u32>,
    /// Tokens of each sequence in the cache once this step has written its own `[sequences]`.
    pub context_lens: Vec<u32>,
    /// Blocks of each sequence in order `[sequences][..]`, at least `context_len / BLOCK_SIZE` rounded up.
    pub block_tables: Vec<Vec<u32>>,
    /// Rows (token indices, ascending) whose logits are wanted.
    pub logits_rows: Vec<u32>,
    /// Recurrent state moves `[sequences]`; empty for models without recurrent layers.
    pub states: Vec<StateStep>,
}

/// Where a sequence's recurrent state comes from and goes to in one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateStep {
    /// Slot to start from; `None` starts from zeros.
    pub source: Option<u32>,
    /// Slot that holds the state after the step's last token.
    pub target: u32,
    /// (tokens of this step consumed, slot): copies of the state taken on the way, at block borders.
    pub snapshots: Vec<(u32, u32)>,
}

impl StateStep {
    /// Whether it goes on in its own slot and leaves no copies, as a decoding sequence does.
    pub fn stays(&self) -> bool {
        self.source == Some(self.target) && self.snapshots.is_empty()
    }
}

impl ForwardBatch {
    /// Number of flat tokens.
    pub fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Number of sequences.
    pub fn num_sequences(&self) -> usize {
        self.context_lens.len()
    }

    /// Token range of sequence `s`.
    pub fn query_range(&self, s: usize) -> std::ops::Range<usize> {
        self.query_start[s] as usize..self.query_start[s + 1] as usize
    }

    /// Last position that token `t` sees.
    pub fn last_seen(&self, t: usize) -> u32 {
        self.reach.get(t).copied().unwrap_or_else(|| self.positions[t])
    }

    /// Checks that the arrays agree with one another and fit a cache of `num_blocks` blocks.
    ///
    /// # Errors
    /// Names the first array that does not fit.
    pub fn check(&self, num_blocks: usize) -> Result<()> {
        let (tokens, sequences) = (self.num_tokens(), self.num_sequences());
        if self.positions.len() != tokens || self.slot_mapping.len() != tokens {
            bail!("positions and slot_mapping must have {tokens} entries");
        }
        if ![0, tokens].contains(&self.rope_positions.len()) || ![0, tokens].contains(&self.reach.len()) {
            bail!("rope_positions and reach must be empty or have {tokens} entries");
        }
        if self.query_start.len() != sequences + 1
            || self.block_tables.len() != sequences
            || self.query_start.first() != Some(&0)
            || self.query_start.last().map(|&end| end as usize) != Some(tokens)
            || self.query_start.windows(2).any(|pair| pair[0] >= pair[1])
        {
            bail!("query_start must rise from 0 to {tokens} over {sequences} sequences");
        }
        if !self.states.is_empty() && self.states.len() != sequences {
            bail!("states must be empty or have {sequences} entries");
        }
        for s in 0..sequences {
            let needed = (self.context_lens[s] as usize).div_ceil(crate::BLOCK_SIZE);
            let table = &self.block_tables[s];
            if table.len() < needed || table[..needed].iter().any(|&block| block as usize >= num_blocks) {
                bail!("block_tables[{s}] does not cover {} tokens in {num_blocks} blocks", self.context_lens[s]);
            }
        }
        for (s, &context) in self.context_lens.iter().enumerate().filter(|_| !self.reach.is_empty()) {
            if let Some(reach) = self.reach[self.query_range(s)].iter().find(|&&reach| reach >= context) {
                bail!("reach {reach} of sequence {s} leaves its context of {context} tokens");
            }
        }
        if self.slot_mapping.iter().any(|&slot| slot as usize >= num_blocks * crate::BLOCK_SIZE) {
            bail!("slot_mapping leaves the cache of {num_blocks} blocks");
        }
        if self.logits_rows.iter().any(|&row| row as usize >= tokens) {
            bail!("logits_rows leaves the {tokens} tokens of the batch");
        }
        Ok(())
    }
}

/// What every layer of one step shares, derived once by `Kernels::plan`.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The batch itself.
    pub batch: ForwardBatch,
    /// Per distinct rope of the model: (cos, sin), each f32 `[tokens, rotary_dim / 2]`, or `[room.context, ..]`.
    pub rope: Vec<(Tensor, Tensor)>,
    /// The batch's arrays where a device can read them, if the backend needs that.
    pub(crate) uploaded: Option<Tensor>,
    /// Tokens that the last step over this plan has chosen, u32 `[room.sequences]`, if the backend keeps them.
    pub(crate) chosen: Option<Tensor>,
    /// Bounds of a plan that is written over from step to step; its own `batch` says the shape and nothing else.
    pub room: Option<StepRoom>,
}

impl Plan {
    /// For backends that read the batch on the host.
    pub fn new(batch: ForwardBatch, rope: Vec<(Tensor, Tensor)>) -> Self {
        Self { batch, rope, uploaded: None, chosen: None, room: None }
    }

    /// A plan that is written over, without arrays but for `rope`, in which a backend has what all its steps share.
    pub fn lasting(room: StepRoom, rope: Vec<(Tensor, Tensor)>) -> Self {
        Self { room: Some(room), ..Self::new(room.template(), rope) }
    }

    /// The first `sequences` of a plan that is written over, in the same memory.
    ///
    /// # Errors
    /// When it has fewer, or is not written over.
    pub fn first(&self, sequences: usize) -> Result<Self> {
        let Some(room) = self.room.filter(|room| sequences <= room.sequences) else {
            bail!("{sequences} sequences of a plan for {:?}", self.room)
        };
        let room = StepRoom { sequences, ..room };
        let (uploaded, chosen) = (self.uploaded.clone(), self.chosen.clone());
        Ok(Self { uploaded, chosen, ..Self::lasting(room, self.rope.clone()) })
    }

    /// Refuses a cache of `blocks` blocks that what is written over this plan may leave.
    ///
    /// # Errors
    /// When the plan allows more.
    pub fn check_cache(&self, blocks: usize) -> Result<()> {
        match self.room {
            Some(room) if room.blocks > blocks => bail!("a plan for {} blocks, a cache of {blocks}", room.blocks),
            _ => Ok(()),
        }
    }
}
