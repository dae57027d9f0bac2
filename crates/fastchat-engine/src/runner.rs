//! Turns a scheduled batch into the model's flat arrays, has it computed by all devices of the model, and gives the rows of
//! logits back by sequence. Knows nothing of requests.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Storage, Tensor};
use fastchat_kernels::{ForwardBatch, PendingTokens, SampleRow, SampledToken};
use fastchat_models::vision::Media;
use fastchat_models::{Decoder, ModelError};
use hashbrown::HashMap;

use crate::device::StepError;
use crate::followers::{Followers, Told};
use crate::forward::forward_batch;
use crate::media::ActiveMedia;
use crate::rank::Rank;
use crate::scheduler::{ScheduledBatch, Scheduler};

/// The model and its memory.
#[derive(Debug)]
pub(crate) struct Runner {
    rank: Rank,
    /// The other devices that compute the model.
    followers: Option<Followers>,
}

/// Logits of one step.
#[derive(Debug)]
pub(crate) struct Logits {
    tensor: Tensor,
    vocab: usize,
    /// Rows of each scheduled sequence, in the batch's order; the last is the one that samples.
    rows: Vec<Range<usize>>,
}

/// Tokens of rows, `None` where no logit is above -inf, and the rows of each scheduled sequence.
pub(crate) type MostLikelyTokens = (Vec<Option<u32>>, Vec<Range<usize>>);

impl Runner {
    /// On one device, or with those that compute the rest of the model.
    pub fn new(rank: Rank, followers: Option<Followers>) -> Self {
        Self { rank, followers }
    }

    /// Whether decode steps become graphs, in one line.
    pub fn graphs_line(&self) -> String {
        match &self.rank.graphs {
            Ok(graphs) => format!("on, for decode steps of up to {} sequences", graphs.most()),
            Err(why) => format!("off: {why}"),
        }
    }

    /// Steps that were replayed as graphs, and why no more of them are captured.
    pub fn graphs_so_far(&self) -> (u64, Option<Arc<str>>) {
        self.rank.graphs.as_ref().map_or((0, None), |graphs| (graphs.replays(), graphs.failure()))
    }

    /// The model.
    pub fn decoder(&self) -> &Decoder {
        &self.rank.decoder
    }

    /// Computes the batch, in which requests that `pictures` names have some.
    pub fn run(
        &mut self,
        batch: &ScheduledBatch,
        scheduler: &Scheduler,
        pictures: &HashMap<u64, ActiveMedia>,
    ) -> Result<Logits, StepError> {
        let (mut forward, media, rows) = arrays(batch, scheduler, pictures);
        let rank = &mut self.rank;
        let tensor = match &mut self.followers {
            None => rank.compute(&mut forward, &media),
            Some(followers) => {
                let batch = forward.clone();
                let theirs = move |rank: &mut Rank| {
                    rank.compute(&mut batch.clone(), &Media::default()).map(|logits| Some(Told::Logits(logits)))
                };
                followers.step(rank, theirs, |rank| rank.compute(&mut forward, &media))
            }
        };
        let tensor = tensor?;
        Ok(Logits { tensor, vocab: self.rank.decoder.spec().vocab_size, rows })
    }

    /// The most likely tokens of a batch, in rows as those of its logits would be, and which are each sequence's. `None`, with
    /// nothing computed, where logits are to be had instead.
    pub fn most_likely(
        &self,
        batch: &ScheduledBatch,
        scheduler: &Scheduler,
        pictures: &HashMap<u64, ActiveMedia>,
    ) -> Result<Option<MostLikelyTokens>, StepError> {
        if self.samples() || self.followers.is_some() || self.rank.graphs.is_ok() {
            return Ok(None);
        }
        let (forward, media, rows) = arrays(batch, scheduler, pictures);
        let tokens = self.rank.decoder.most_likely(&forward, &media, &self.rank.cache);
        Ok(tokens.map_err(|error| self.rank.judge(error))?.map(|tokens| (tokens, rows)))
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
        let (mut forward, _) = forward_batch(batch, scheduler);
        let rank = &mut self.rank;
        let Some(followers) = &mut self.followers else { return rank.choose(&mut forward, follows, asked) };
        let (batch, rows, wanted) = (forward.clone(), follows.clone(), asked.clone());
        let theirs = move |rank: &mut Rank| {
            let tokens = rank.choose(&mut batch.clone(), rows.clone(), wanted.clone())?;
            Ok(tokens.map(Told::Tokens))
        };
        followers.step(rank, theirs, |rank| rank.choose(&mut forward, follows, asked))
    }

    /// Whether decode steps can choose their tokens on the device and be queued before those of the last are known.
    pub fn queues(&self) -> bool {
        self.rank.kernels.samples() && self.rank.graphs.is_ok()
    }

    /// What waiting for a queued step found.
    pub fn await_tokens(&self, tokens: Box<dyn PendingTokens>) -> Result<Vec<u32>, StepError> {
        self.shared(tokens.wait().map_err(|error| self.rank.judge(ModelError::Kernel(error))))
    }

    /// What the first rank has waited for, unless any rank has failed meanwhile: then it is nothing.
    fn shared<T>(&self, outcome: Result<T, StepError>) -> Result<T, StepError> {
        match (&self.followers, outcome) {
            (None, outcome) => outcome,
            (Some(followers), Ok(waited)) => followers.check().map(|()| waited),
            (Some(followers), Err(error)) => Err(followers.lost(error)),
        }
    }

    /// Calls `read` with the rows of all sequences on the host, without a copy if they are there. Devices that work on
    /// their own report here what went wrong in the step.
    pub fn read<T>(&self, logits: &Logits, read: impl FnOnce(&Rows<'_>) -> T) -> Result<T, StepError> {
        self.shared(logits.read(read).map_err(|error| self.rank.judge(ModelError::Kernel(error))))
    }

    /// The contents of a block.
    pub fn read_block(&self, block: u32) -> Result<Vec<u8>, ModelError> {
        self.rank.cache.read_block(block as usize)
    }

    /// Fills a block with what `read_block` gave.
    pub fn write_block(&self, block: u32, bytes: &[u8]) -> Result<(), ModelError> {
        self.rank.cache.write_block(block as usize, bytes)
    }

    /// Whether tokens are chosen where the logits are.
    pub fn samples(&self) -> bool {
        self.rank.kernels.samples()
    }

    /// Tokens of the rows `of`, chosen where the logits are, each as its entry of `asked` says.
    pub fn choose(&self, logits: &Logits, of: &[u32], asked: &[SampleRow]) -> Result<Vec<SampledToken>, StepError> {
        let chosen = logits.pick(of).and_then(|rows| self.rank.kernels.sample(&rows, asked));
        self.shared(chosen.map_err(|error| self.rank.judge(ModelError::Kernel(error))))
    }
}

/// What the model is given for a batch, and the rows of logits of each sequence.
fn arrays<'a>(
    batch: &ScheduledBatch,
    scheduler: &Scheduler,
    pictures: &'a HashMap<u64, ActiveMedia>,
) -> (ForwardBatch, Media<'a>, Vec<Range<usize>>) {
    let (mut forward, rows) = forward_batch(batch, scheduler);
    let media =
        if pictures.is_empty() { Media::default() } else { add_media(&mut forward, batch, scheduler, pictures) };
    (forward, media, rows)
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
