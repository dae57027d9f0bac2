//! One device's share of a model, its cache and its graphs: computes batches, eagerly or as graphs. A model on one device
//! has one, of everything. Knows no requests.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use fastchat_kernels::{Fault, ForwardBatch, Kernels, PendingTokens, SampleRow};
use fastchat_models::vision::Media;
use fastchat_models::{Cache, DecodeStep, Decoder, ModelError};

use crate::config::EngineConfig;
use crate::device::StepError;
use crate::error::EngineError;
use crate::forward::Spare;
use crate::graphs::{Captured, Graphs};
use crate::memory::MemoryPlan;

/// Logits are kept while a step needs a quarter of their rows, or these are few.
const KEPT_ROWS: usize = 8;

/// A decoder, or a rank's share of one, and its memory.
#[derive(Debug)]
pub(crate) struct Rank {
    pub decoder: Arc<Decoder>,
    pub kernels: Arc<dyn Kernels>,
    pub cache: Arc<Cache>,
    /// Or why there are none, in one line.
    pub graphs: Result<Graphs, String>,
    /// Logits of the last step that ran in host memory, f32 `[rows, vocab]`. The next one's are written over them: the system
    /// would hand out and take back 67 MB a step of 64 sequences of a large vocabulary.
    logits: Option<Tensor>,
}

impl Rank {
    /// With caches as planned, and graphs where the device captures.
    ///
    /// # Errors
    /// The device's.
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

    /// Logits of a step: f32 `[rows, vocab]`, valid until the next. A decode step without pictures may be filled up.
    ///
    /// # Errors
    /// As `Decoder::forward_media`.
    pub fn compute(&mut self, forward: &mut ForwardBatch, media: &Media) -> Result<Tensor, StepError> {
        let captured = match &mut self.graphs {
            Ok(graphs) if media.placed.is_empty() && media.looking.is_empty() => graphs.run(forward),
            _ => Ok(None),
        };
        let tensor = match captured {
            Ok(Some(tensor)) => Ok(tensor),
            Ok(None) if self.kernels.device().is_cpu() && !forward.logits_rows.is_empty() => {
                self.compute_on_host(forward, media)
            }
            Ok(None) => self.decoder.forward_media(forward, media, &self.cache),
            Err(error) => Err(error),
        };
        tensor.map_err(|error| self.judge(error))
    }

    /// Queues a decode step and the choice of its tokens: `None` if it is not to be had that way. `follows` and `asked` are
    /// as in `StepInput`.
    ///
    /// # Errors
    /// As `Decoder::forward`.
    pub fn choose(
        &mut self,
        forward: &mut ForwardBatch,
        follows: Vec<u32>,
        asked: Vec<SampleRow>,
    ) -> Result<Option<Box<dyn PendingTokens>>, StepError> {
        let Ok(graphs) = &mut self.graphs else { return Ok(None) };
        graphs.choose(forward, follows, asked).map_err(|error| self.judge(error))
    }

    /// Logits that are valid until the next step.
    fn compute_on_host(&mut self, forward: &ForwardBatch, media: &Media) -> Result<Tensor, ModelError> {
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

    /// Why nothing is captured, or nothing more, if so.
    pub fn graph_failure(&self) -> Option<Arc<str>> {
        match &self.graphs {
            Ok(graphs) => graphs.failure(),
            Err(why) => Some(why.as_str().into()),
        }
    }

    /// Replays no graph any more, if there is a reason.
    pub fn stop_graphs(&mut self, why: Option<&Arc<str>>) {
        if let (Ok(graphs), Some(why)) = (&mut self.graphs, why) {
            graphs.stop(why.clone());
        }
    }

    /// What an error of the model says about the device.
    pub fn judge(&self, error: ModelError) -> StepError {
        let fault = match &error {
            ModelError::Kernel(cause) => self.kernels.fault(cause),
            _ => Fault::Plain,
        };
        StepError { error: error.into(), fault }
    }
}
