//! Turns a scheduled batch into the model's flat arrays, runs it, and gives the rows of logits back by sequence. Owns
//! the decoder and its cache; knows nothing of requests.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Storage, Tensor};
use fastchat_kernels::{BLOCK_SIZE, Fault, ForwardBatch, Kernels, SampleRow, SampledToken};
use fastchat_models::vision::Media;
use fastchat_models::{Cache, Decoder, ModelError};

use crate::device::StepError;
use crate::error::EngineError;
use crate::media::ActiveMedia;
use crate::memory::MemoryPlan;
use crate::scheduler::{ScheduledBatch, Scheduler};

/// The model and its memory.
#[derive(Debug)]
pub(crate) struct Runner {
    decoder: Decoder,
    kernels: Arc<dyn Kernels>,
    cache: Cache,
}

/// Logits of one step.
#[derive(Debug)]
pub(crate) struct Logits {
    tensor: Tensor,
    vocab: usize,
    /// Rows of each scheduled sequence, in the batch's order; the last is the one that samples.
    rows: Vec<Range<usize>>,
}

impl Runner {
    pub fn new(decoder: Decoder, kernels: Arc<dyn Kernels>, plan: &MemoryPlan) -> Result<Self, EngineError> {
        let cache = decoder.new_cache(plan.num_blocks, plan.num_state_slots.unwrap_or(0), plan.kv_dtype)?;
        Ok(Self { decoder, kernels, cache })
    }

    /// The model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Computes the batch, in which requests that `pictures` names have some.
    pub fn run(
        &self,
        batch: &ScheduledBatch,
        scheduler: &Scheduler,
        pictures: &HashMap<u64, ActiveMedia>,
    ) -> Result<Logits, StepError> {
        let (mut forward, rows) = forward_batch(batch, scheduler);
        let media =
            if pictures.is_empty() { Media::default() } else { add_media(&mut forward, batch, scheduler, pictures) };
        let tensor = self.decoder.forward_media(&forward, &media, &self.cache).map_err(|error| self.judge(error))?;
        Ok(Logits { tensor, vocab: self.decoder.spec().vocab_size, rows })
    }

    /// Calls `read` with the rows of all sequences on the host, without a copy if they are there. Devices that work on
    /// their own report here what went wrong in the step.
    pub fn read<T>(&self, logits: &Logits, read: impl FnOnce(&Rows<'_>) -> T) -> Result<T, StepError> {
        logits.read(read).map_err(|error| self.judge(ModelError::Kernel(error)))
    }

    /// The contents of a block.
    pub fn read_block(&self, block: u32) -> Result<Vec<u8>, ModelError> {
        self.cache.read_block(block as usize)
    }

    /// Fills a block with what `read_block` gave.
    pub fn write_block(&self, block: u32, bytes: &[u8]) -> Result<(), ModelError> {
        self.cache.write_block(block as usize, bytes)
    }

    /// Whether tokens are chosen where the logits are.
    pub fn samples(&self) -> bool {
        self.kernels.samples()
    }

    /// Tokens of the rows `of`, chosen where the logits are, each as its entry of `asked` says.
    pub fn choose(&self, logits: &Logits, of: &[u32], asked: &[SampleRow]) -> Result<Vec<SampledToken>, StepError> {
        let chosen = logits.pick(of).and_then(|rows| self.kernels.sample(&rows, asked));
        chosen.map_err(|error| self.judge(ModelError::Kernel(error)))
    }

    fn judge(&self, error: ModelError) -> StepError {
        let fault = match &error {
            ModelError::Kernel(cause) => self.kernels.fault(cause),
            _ => Fault::Plain,
        };
        StepError { error: error.into(), fault }
    }
}

/// Places the pictures of a step's sequences.
fn add_media<'a>(
    forward: &mut ForwardBatch,
    batch: &ScheduledBatch,
    scheduler: &Scheduler,
    pictures: &'a HashMap<u64, ActiveMedia>,
) -> Media<'a> {
    let mut media = Media::default();
    for (place, scheduled) in batch.sequences.iter().enumerate() {
        let sequence = scheduler.sequence(scheduled.id).expect("scheduled sequences are live; this is a bug");
        let Some(active) = pictures.get(&sequence.request) else { continue };
        let rows = forward.query_range(place);
        let tokens = scheduled.start..scheduled.start + rows.len();
        if let Some(ropes) = &active.layout.ropes {
            if forward.rope_positions.is_empty() {
                forward.rope_positions = forward.positions.iter().map(|&position| [position; 3]).collect();
            }
            for (row, position) in rows.clone().zip(tokens.clone()) {
                forward.rope_positions[row] = ropes.at(position);
            }
        }
        if active.layout.sees_whole && scheduled.start < sequence.prompt_len {
            if forward.reach.is_empty() {
                forward.reach.clone_from(&forward.positions);
            }
            for (row, position) in rows.clone().zip(tokens.clone()) {
                forward.reach[row] = active.layout.reach(position) as u32;
            }
        }
        active.place(tokens, rows.start, &mut media);
    }
    media
}

fn forward_batch(batch: &ScheduledBatch, scheduler: &Scheduler) -> (ForwardBatch, Vec<Range<usize>>) {
    let mut forward = ForwardBatch { query_start: vec![0], ..ForwardBatch::default() };
    let mut rows = Vec::with_capacity(batch.sequences.len());
    for scheduled in &batch.sequences {
        let sequence = scheduler.sequence(scheduled.id).expect("scheduled sequences are live; this is a bug");
        let (start, end) = (scheduled.start, scheduled.end + scheduled.draft.len());
        let first_token = forward.token_ids.len() as u32;
        forward.token_ids.extend_from_slice(&sequence.tokens[start..scheduled.end]);
        forward.token_ids.extend_from_slice(&scheduled.draft);
        forward.positions.extend(start as u32..end as u32);
        forward.slot_mapping.extend((start..end).map(|position| {
            sequence.block_table[position / BLOCK_SIZE] * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32
        }));
        let last_token = forward.token_ids.len() as u32;
        forward.query_start.push(last_token);
        forward.context_lens.push(end as u32);
        forward.block_tables.push(sequence.block_table.clone());
        forward.states.extend(scheduled.state.clone());
        let first_row = forward.logits_rows.len();
        if scheduled.prompt_logits {
            forward.logits_rows.extend(first_token..last_token);
        } else if scheduled.samples {
            forward.logits_rows.extend(last_token - 1 - scheduled.draft.len() as u32..last_token);
        }
        rows.push(first_row..forward.logits_rows.len());
    }
    (forward, rows)
}

impl Logits {
    /// Rows of the sequence at `place` of the batch.
    pub fn rows_of(&self, place: usize) -> Range<usize> {
        self.rows[place].clone()
    }

    fn pick(&self, rows: &[u32]) -> candle_core::Result<Tensor> {
        if rows.iter().copied().eq(0..self.tensor.dim(0)? as u32) {
            return Ok(self.tensor.clone());
        }
        self.tensor.index_select(&Tensor::new(rows, self.tensor.device())?, 0)
    }

    fn read<T>(&self, read: impl FnOnce(&Rows<'_>) -> T) -> candle_core::Result<T> {
        let (storage, layout) = self.tensor.storage_and_layout();
        if let (Storage::Cpu(cpu), Some((start, end)), DType::F32) =
            (&*storage, layout.contiguous_offsets(), self.tensor.dtype())
        {
            let values = &cpu.as_slice::<f32>()?[start..end];
            return Ok(read(&Rows { values, logits: self }));
        }
        drop(storage);
        let values = self.tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(read(&Rows { values: &values, logits: self }))
    }
}

/// The rows of one step on the host.
pub(crate) struct Rows<'a> {
    values: &'a [f32],
    logits: &'a Logits,
}

impl<'a> Rows<'a> {
    /// Rows of the sequence at `place` of the batch, in order of position.
    pub fn of(&self, place: usize) -> impl ExactSizeIterator<Item = &'a [f32]> + use<'a> {
        let (rows, vocab) = (self.logits.rows[place].clone(), self.logits.vocab);
        self.values[rows.start * vocab..rows.end * vocab].chunks_exact(vocab)
    }
}
