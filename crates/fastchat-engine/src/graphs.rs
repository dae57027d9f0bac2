//! Decode steps as graphs: one for each padded batch size and way of choosing tokens, captured when such a step first comes
//! and replayed from then on. Owns the inputs and logits that all of them share; knows no requests.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use fastchat_kernels::{Capture, ForwardBatch, Graph, KNOWN, Kernels, PendingTokens, SampleRow, StepInput};
use fastchat_models::{Cache, Choosing, DecodeStep, Decoder, ModelError};

use crate::forward::{Spare, is_decode, pad, padded_size};

/// Most sequences of a captured step: one of more takes longer to compute than its launches take to queue.
const MOST: usize = 512;

/// The graphs of one model.
#[derive(Debug)]
pub(crate) struct Graphs {
    decoder: Arc<Decoder>,
    cache: Arc<Cache>,
    kernels: Arc<dyn Kernels>,
    /// The largest step, in whose memory the others lie.
    step: DecodeStep,
    most: usize,
    /// Rows that fill a batch up write there.
    spare: Spare,
    captured: BTreeMap<(usize, Choosing), Recorded>,
    failure: Option<Arc<str>>,
    replays: u64,
}

type Recorded = (Arc<DecodeStep>, Box<dyn Graph>);

/// What graphs are made of.
#[derive(Debug)]
pub(crate) struct Captured<'a> {
    pub decoder: &'a Arc<Decoder>,
    pub kernels: &'a Arc<dyn Kernels>,
    pub cache: &'a Arc<Cache>,
    pub max_num_seqs: usize,
    pub max_model_len: usize,
    pub spare: Spare,
}

impl Graphs {
    /// Graphs of steps of up to `max_num_seqs` sequences, none of them captured yet.
    ///
    /// # Errors
    /// The device's, which has no memory for what they share.
    pub fn new(of: &Captured) -> Result<Self, ModelError> {
        let most = of.max_num_seqs.min(MOST);
        let step = DecodeStep::new(of.decoder, of.cache, most, of.max_model_len)?;
        Ok(Self {
            decoder: of.decoder.clone(),
            cache: of.cache.clone(),
            kernels: of.kernels.clone(),
            step,
            most,
            spare: of.spare,
            captured: BTreeMap::new(),
            failure: None,
            replays: 0,
        })
    }

    /// Most sequences of a captured step.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Steps that were replayed.
    pub fn replays(&self) -> u64 {
        self.replays
    }

    /// Why nothing more is captured, if so.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.failure.clone()
    }

    /// Neither captures nor replays from now on.
    pub fn stop(&mut self, why: Arc<str>) {
        self.captured.clear();
        self.failure = Some(why);
    }

    /// Computes a decode step, which is filled up: f32 `[sequences, vocab]`, valid until the next. `None`, and the batch as
    /// it was, when it is something else, or has a size for which nothing is captured any more.
    ///
    /// # Errors
    /// As `Decoder::forward`.
    pub fn run(&mut self, batch: &mut ForwardBatch) -> Result<Option<Tensor>, ModelError> {
        let sequences = batch.num_sequences();
        let computed = self.queue(batch, Vec::new(), Vec::new())?;
        Ok(if computed.is_some() { Some(self.step.logits().narrow(0, 0, sequences)?) } else { None })
    }

    /// Queues a decode step that chooses each sequence's next token as its entry of `asked` says. The tokens of `follows`
    /// (as in `StepInput`) may still be under way in the step before. `None` as for `run`.
    ///
    /// # Errors
    /// As `Decoder::forward`.
    pub fn choose(
        &mut self,
        batch: &mut ForwardBatch,
        follows: Vec<u32>,
        asked: Vec<SampleRow>,
    ) -> Result<Option<Box<dyn PendingTokens>>, ModelError> {
        let step = self.queue(batch, follows, asked)?;
        step.map(|step| step.chosen(&self.decoder)).transpose()
    }

    fn queue(
        &mut self,
        batch: &mut ForwardBatch,
        mut follows: Vec<u32>,
        mut asked: Vec<SampleRow>,
    ) -> Result<Option<Arc<DecodeStep>>, ModelError> {
        let sequences = batch.num_sequences();
        if sequences > self.most || !is_decode(batch) {
            return Ok(None);
        }
        let size = padded_size(sequences).min(self.most);
        let choosing = Choosing::of(&StepInput { batch, follows: &follows, asked: &asked });
        let captured = self.captured.get(&(size, choosing));
        if captured.is_none() && self.failure.is_some() {
            return Ok(None);
        }
        pad(batch, size, self.spare);
        if !follows.is_empty() {
            follows.resize(size, KNOWN);
        }
        if !asked.is_empty() {
            asked.resize(size, SampleRow::greedy());
        }
        let input = StepInput { batch, follows: &follows, asked: &asked };
        if let Some((step, graph)) = captured {
            step.write(&self.decoder, &self.cache, &input)?;
            graph.replay()?;
            self.replays += 1;
            return Ok(Some(step.clone()));
        }
        let step = Arc::new(self.step.first(size)?);
        step.write(&self.decoder, &self.cache, &input)?;
        let (decoder, cache, own) = (self.decoder.clone(), self.cache.clone(), step.clone());
        match self.kernels.capture(Box::new(move || own.run(&decoder, &cache, choosing)))? {
            Capture::Graph(graph) => drop(self.captured.insert((size, choosing), (step.clone(), graph))),
            Capture::Failed(error) => {
                // Candle's errors end in a backtrace.
                let why = error.to_string();
                let line = why.lines().next().unwrap_or("no message");
                self.failure = Some(format!("a decode step of {size} sequences: {line}").into());
            }
        }
        Ok(Some(step))
    }
}
