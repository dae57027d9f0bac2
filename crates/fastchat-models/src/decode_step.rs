//! A decode step whose inputs and logits stay where they are, so that a device can capture it once and replay it: what
//! changes from step to step is written over. Knows no requests and no graphs.

use candle_core::{DType, Tensor};
use fastchat_kernels::{PendingTokens, Plan, StepInput, StepRoom};

use crate::spec::Mixer;
use crate::vision::Media;
use crate::{Cache, Decoder, ModelError};

type Result<T> = std::result::Result<T, ModelError>;

/// What a step does with its logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Choosing {
    /// It leaves them.
    Nothing,
    /// It chooses the most likely token of each row, which the next step may follow.
    MostLikely,
    /// It chooses as each row asks.
    AsAsked,
}

impl Choosing {
    /// What a step does that is given this.
    pub fn of(input: &StepInput) -> Self {
        match input.asked {
            [] => Self::Nothing,
            asked if asked.iter().all(fastchat_kernels::SampleRow::is_greedy) => Self::MostLikely,
            _ => Self::AsAsked,
        }
    }
}

/// Inputs and logits of a step of a fixed number of sequences, one token each.
#[derive(Debug)]
pub struct DecodeStep {
    plan: Plan,
    /// f32 `[sequences, vocab]`.
    logits: Tensor,
}

impl DecodeStep {
    /// Whether every layer of a model leaves all that changes to the kernels: those that attend to pictures read what belongs
    /// to requests.
    pub fn serves(decoder: &Decoder) -> bool {
        decoder.spec().layers.iter().all(|layer| !matches!(layer.mixer, Mixer::Cross(_)))
    }

    /// A step of `sequences` sequences of at most `context` tokens each.
    ///
    /// # Errors
    /// Kernels whose plans cannot be written over, or the device's error.
    pub fn new(decoder: &Decoder, cache: &Cache, sequences: usize, context: usize) -> Result<Self> {
        let spec = decoder.spec();
        let vocab = spec.vocab_size + spec.added_rows;
        let slots = if spec.layers.iter().any(|layer| matches!(layer.mixer, Mixer::GatedDeltaNet(_))) {
            cache.num_state_slots()
        } else {
            0
        };
        let room = StepRoom { sequences, context, blocks: cache.num_blocks(), vocab, slots };
        let plan = decoder.kernels.lasting_plan(&room, &decoder.ropes)?;
        let logits = Tensor::zeros((sequences, spec.vocab_size), DType::F32, decoder.kernels.device())?;
        Ok(Self { plan, logits })
    }

    /// The step of fewer sequences in the same memory: only one of them holds a step at a time.
    ///
    /// # Errors
    /// When there are not as many.
    pub fn first(&self, sequences: usize) -> Result<Self> {
        Ok(Self { plan: self.plan.first(sequences)?, logits: self.logits.narrow(0, 0, sequences)? })
    }

    /// Writes a step over the inputs.
    ///
    /// # Errors
    /// A batch of another shape, one that does not fit the model or the cache, or the device's error.
    pub fn write(&self, decoder: &Decoder, cache: &Cache, input: &StepInput) -> Result<()> {
        decoder.check(input.batch, cache)?;
        Ok(decoder.kernels.replan(&self.plan, input)?)
    }

    /// Computes the logits of what was written last, and chooses from them.
    ///
    /// # Errors
    /// As `Decoder::forward`.
    pub fn run(&self, decoder: &Decoder, cache: &Cache, choosing: Choosing) -> candle_core::Result<()> {
        if choosing != Choosing::Nothing {
            decoder.kernels.follow(&self.plan)?;
        }
        decoder.logits_into(&self.plan, &Media::default(), cache, &self.logits).map_err(|error| match error {
            ModelError::Kernel(error) => error,
            other => candle_core::Error::msg(other),
        })?;
        if choosing != Choosing::Nothing {
            decoder.kernels.choose_next(&self.logits, &self.plan, choosing == Choosing::MostLikely)?;
        }
        Ok(())
    }

    /// What `run` chose, on its way.
    ///
    /// # Errors
    /// The device's.
    pub fn chosen(&self, decoder: &Decoder) -> Result<Box<dyn PendingTokens>> {
        Ok(decoder.kernels.chosen(&self.plan)?)
    }

    /// What `run` computed: f32 `[sequences, vocab]`.
    pub fn logits(&self) -> &Tensor {
        &self.logits
    }
}
