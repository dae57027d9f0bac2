//! Turns a scheduled batch into the model's flat arrays, runs it, eagerly or as a graph, and gives the rows of logits back
//! by sequence. Owns the decoder and its cache; knows nothing of requests.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Storage, Tensor};
use fastchat_kernels::{Fault, ForwardBatch, Kernels, PendingTokens, SampleRow, SampledToken};
use fastchat_models::vision::Media;
use fastchat_models::{Cache, DecodeStep, Decoder, ModelError};
use hashbrown::HashMap;

use crate::config::EngineConfig;
use crate::device::StepError;
use crate::error::EngineError;
use crate::forward::{Spare, forward_batch};
use crate::graphs::{Captured, Graphs};
use crate::media::ActiveMedia;
use crate::memory::MemoryPlan;
use crate::scheduler::{ScheduledBatch, Scheduler};

/// Logits are kept while a step needs a quarter of their rows, or these are few.
const KEPT_ROWS: usize = 8;

/// The model and its memory.
#[derive(Debug)]
pub(crate) struct Runner {
    decoder: Arc<Decoder>,
    kernels: Arc<dyn Kernels>,
    cache: Arc<Cache>,
    /// Or why there are none, in one line.
    graphs: Result<Graphs, String>,
    /// Logits of the last step that ran in host memory, f32 `[rows, vocab]`. The next one's are written over them: the system
    /// would hand out and take back 67 MB a step of 64 sequences of a large vocabulary.
    logits: Option<Tensor>,
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
    pub fn new(
        decoder: Decoder,
        kernels: Arc<dyn Kernels>,
        plan: &MemoryPlan,
        config: &EngineConfig,
    ) -> Result<Self, EngineError> {
        let wanted = if !kernels.captures() {
            Err(format!("{} has none", kernels.name()))
        } else if config.enforce_eager {
            Err("enforce_eager".to_owned())
        } else if !DecodeStep::serves(&decoder) {
            Err("this model has layers whose steps the host looks at".to_owned())
        } else {
            Ok(())
        };
        let spare = usize::from(wanted.is_ok());
        let slots = plan.num_state_slots.unwrap_or(0);
        let spare_slot = if slots == 0 { 0 } else { spare };
        let cache = decoder.new_cache(plan.num_blocks + spare, slots + spare_slot, plan.kv_dtype)?;
        let (decoder, cache) = (Arc::new(decoder), Arc::new(cache));
        let of = Captured {
            decoder: &decoder,
            kernels: &kernels,
            cache: &cache,
            max_num_seqs: config.max_num_seqs,
            max_model_len: plan.max_model_len,
            spare: Spare { block: plan.num_blocks as u32, slot: slots as u32 },
        };
        let graphs = wanted.and_then(|()| Graphs::new(&of).map_err(|error| error.to_string()));
        Ok(Self { decoder, kernels, cache, graphs, logits: None })
    }

    /// Whether decode steps become graphs, in one line.
    pub fn graphs_line(&self) -> String {
        match &self.graphs {
            Ok(graphs) => format!("on, for decode steps of up to {} sequences", graphs.most()),
            Err(why) => format!("off: {why}"),
        }
    }

    /// Steps that were replayed as graphs, and why no more of them are captured.
    pub fn graphs_so_far(&self) -> (u64, Option<Arc<str>>) {
        self.graphs.as_ref().map_or((0, None), |graphs| (graphs.replays(), graphs.failure()))
    }

    /// The model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Computes the batch, in which requests that `pictures` names have some.
    pub fn run(
        &mut self,
        batch: &ScheduledBatch,
        scheduler: &Scheduler,
        pictures: &HashMap<u64, ActiveMedia>,
    ) -> Result<Logits, StepError> {
        let (mut forward, rows) = forward_batch(batch, scheduler);
        let media =
            if pictures.is_empty() { Media::default() } else { add_media(&mut forward, batch, scheduler, pictures) };
        let captured = match &mut self.graphs {
            Ok(graphs) if media.placed.is_empty() && media.looking.is_empty() => graphs.run(&mut forward),
            _ => Ok(None),
        };
        let tensor = match captured {
            Ok(Some(tensor)) => Ok(tensor),
            Ok(None) if self.kernels.device().is_cpu() && !forward.logits_rows.is_empty() => {
                self.run_on_host(&forward, &media)
            }
            Ok(None) => self.decoder.forward_media(&forward, &media, &self.cache),
            Err(error) => Err(error),
        };
        let tensor = tensor.map_err(|error| self.judge(error))?;
        Ok(Logits { tensor, vocab: self.decoder.spec().vocab_size, rows })
    }

    /// Queues a decode step and the choice of its tokens, without pictures: `None` if it is not to be had that way.
    /// `follows` and `asked` are as in `StepInput`.
    pub fn queue(
        &mut self,
        batch: &ScheduledBatch,
        scheduler: &Scheduler,
        follows: Vec<u32>,
        asked: Vec<SampleRow>,
    ) -> Result<Option<Box<dyn PendingTokens>>, StepError> {
        let Ok(graphs) = &mut self.graphs else { return Ok(None) };
        let (mut forward, _) = forward_batch(batch, scheduler);
        graphs.choose(&mut forward, follows, asked).map_err(|error| self.judge(error))
    }

    /// Whether decode steps can choose their tokens on the device and be queued before those of the last are known.
    pub fn queues(&self) -> bool {
        self.kernels.samples() && self.graphs.is_ok()
    }

    /// What waiting for a queued step found.
    pub fn await_tokens(&self, tokens: Box<dyn PendingTokens>) -> Result<Vec<u32>, StepError> {
        tokens.wait().map_err(|error| self.judge(ModelError::Kernel(error)))
    }

    /// Logits that are valid until the next step.
    fn run_on_host(&mut self, forward: &ForwardBatch, media: &Media) -> Result<Tensor, ModelError> {
        let rows = forward.logits_rows.len();
        let kept = rows..=rows.next_multiple_of(KEPT_ROWS) * 4;
        let room = self.logits.take().filter(|logits| kept.contains(&logits.dims()[0]));
        let room = if let Some(room) = room {
            room
        } else {
            // Rows that no step uses take no memory.
            let most = (2 * rows).next_multiple_of(KEPT_ROWS);
            Tensor::zeros((most, self.decoder.spec().vocab_size), DType::F32, self.kernels.device())?
        };
        self.decoder.forward_into(forward, media, &self.cache, &room)?;
        let logits = room.narrow(0, 0, rows)?;
        self.logits = Some(room);
        Ok(logits)
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
