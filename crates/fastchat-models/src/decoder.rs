//! The one decoder: runs any spec over flat batches through the kernels. Knows no model, no file and no request.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use fastchat_kernels::{Collective, ForwardBatch, Kernels, Linear, Plan, Rope};

use crate::ModelError;
use crate::cache::{Cache, bytes_per_block, bytes_per_state_slot};
use crate::cross::{self, CrossLayer};
use crate::description::Description;
use crate::layers::{Builder, DecoderWeights, MixerWeights};
use crate::options::LoadOptions;
use crate::shard::Shard;
use crate::spec::{DecoderSpec, Mixer, Residual};
use crate::step::{Step, scaled, tables};
use crate::vision::{ImageFeatures, Media};
use crate::weights::{LARGEST_BLOCK, TensorMap, Weights};

type Result<T> = std::result::Result<T, ModelError>;

/// A model ready to run.
#[derive(Debug)]
pub struct Decoder {
    spec: DecoderSpec,
    pub(crate) kernels: Arc<dyn Kernels>,
    max_model_len: usize,
    kv_dtype: DType,
    pub(crate) ropes: Vec<Rope>,
    weights: DecoderWeights,
    /// Those that compute the rest of the layers.
    ranks: Option<Arc<dyn Collective>>,
}

impl Decoder {
    pub(crate) fn new(
        description: Description,
        tensors: &TensorMap,
        kernels: Arc<dyn Kernels>,
        options: &LoadOptions,
    ) -> Result<Self> {
        let Description { spec, names } = description;
        let max_model_len = options.max_model_len.unwrap_or(spec.max_positions);
        if max_model_len == 0 || max_model_len > spec.max_positions {
            let limit = format!("the model's positions reach from 1 to {}", spec.max_positions);
            return Err(ModelError::request("max_model_len", max_model_len, limit));
        }
        let ropes = tables(&spec.ropes);
        let weights = Weights::new(tensors, &names, options.quantize);
        let ranks = options.ranks.clone();
        if ranks.is_some() && spec.layers.iter().any(|layer| matches!(layer.mixer, Mixer::Cross(_))) {
            return Err(one_device());
        }
        let shard = ranks.as_ref().map_or(Shard::ALONE, |ranks| {
            let block = options.quantize.map_or_else(|| tensors.largest_block(), |_| LARGEST_BLOCK);
            Shard { rank: ranks.rank(), size: ranks.size(), block }
        });
        let builder = Builder { weights, kernels: kernels.as_ref(), hidden: spec.hidden_size, ropes: &ropes, shard };
        let weights = builder.decoder(&spec)?;
        let kv_dtype = if tensors.is_quantized() || options.quantize.is_some() { DType::F16 } else { DType::F32 };
        Ok(Self { spec: shard.cut(&spec), kernels, max_model_len, kv_dtype, ropes, weights, ranks })
    }

    /// What is computed here: of a decoder that several devices compute, this one's share.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// Longest sequence that is served.
    pub fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    /// Whether sequences need a state slot.
    pub fn has_recurrent_state(&self) -> bool {
        self.spec.layers.iter().any(|layer| matches!(layer.mixer, Mixer::GatedDeltaNet(_)))
    }

    /// Type of cached keys and values: f16 beside quantised weights, else f32.
    pub fn default_kv_dtype(&self) -> DType {
        self.kv_dtype
    }

    /// Bytes of one cache block over all layers.
    pub fn bytes_per_block(&self, kv: DType) -> usize {
        bytes_per_block(&self.spec, kv)
    }

    /// Bytes of one recurrent state slot over all layers; 0 for models without.
    pub fn bytes_per_state_slot(&self) -> usize {
        bytes_per_state_slot(&self.spec)
    }

    /// Zeroed caches on the kernels' device.
    ///
    /// # Errors
    /// Sizes that cannot be addressed, or the device's allocation error.
    pub fn new_cache(&self, num_blocks: usize, num_state_slots: usize, kv: DType) -> Result<Cache> {
        Cache::new(&self.spec, (num_blocks, num_state_slots), kv, self.kernels.device())
    }

    /// Logits f32 `[batch.logits_rows, vocab]`; keys, values and states of all tokens are left in `cache`.
    ///
    /// # Errors
    /// A batch that does not fit the model or the cache, or the device's error.
    pub fn forward(&self, batch: &ForwardBatch, cache: &Cache) -> Result<Tensor> {
        self.forward_media(batch, &Media::default(), cache)
    }

    /// As `forward`, with pictures.
    ///
    /// # Errors
    /// As `forward`; also pictures that do not fit the batch.
    pub fn forward_media(&self, batch: &ForwardBatch, media: &Media, cache: &Cache) -> Result<Tensor> {
        media.check(batch.num_tokens())?;
        self.logits(&self.plan(batch, cache)?, media, cache)
    }

    /// As `forward_media`, into the first rows of `logits`, contiguous f32 `[at least batch.logits_rows, vocab]`.
    ///
    /// # Errors
    /// As `forward_media`; also logits that do not fit.
    pub fn forward_into(&self, batch: &ForwardBatch, media: &Media, cache: &Cache, logits: &Tensor) -> Result<()> {
        media.check(batch.num_tokens())?;
        self.logits_into(&self.plan(batch, cache)?, media, cache, logits)
    }

    /// The most likely token of each row that `forward_media` would give, without its logits; `None`, with nothing computed,
    /// where they are more than products.
    ///
    /// # Errors
    /// As `forward_media`.
    pub fn most_likely(&self, batch: &ForwardBatch, media: &Media, cache: &Cache) -> Result<Option<Vec<Option<u32>>>> {
        if !self.has_plain_logits() {
            return Ok(None);
        }
        media.check(batch.num_tokens())?;
        let rows = self.rows(&self.plan(batch, cache)?, media, cache)?;
        Ok(Some(if batch.logits_rows.is_empty() { vec![] } else { self.kernels.most_likely(&rows, self.head())? }))
    }

    /// Whether logits are products of the output matrix and nothing else.
    fn has_plain_logits(&self) -> bool {
        #[allow(clippy::float_cmp)] // exactly 1 is how a spec says that there is no factor
        let unscaled = self.spec.logit_scale == 1.0;
        unscaled && self.spec.logit_softcap.is_none() && self.ranks.is_none()
    }

    /// Logits of a step that is planned.
    fn logits(&self, plan: &Plan, media: &Media, cache: &Cache) -> Result<Tensor> {
        let rows = self.rows(plan, media, cache)?;
        if plan.batch.logits_rows.is_empty() {
            return Ok(Tensor::zeros((0, self.spec.vocab_size), DType::F32, self.kernels.device())?);
        }
        self.bounded(self.products(&rows)?)
    }

    /// The same, into the first rows of `logits`.
    pub(crate) fn logits_into(&self, plan: &Plan, media: &Media, cache: &Cache, logits: &Tensor) -> Result<()> {
        let rows = self.rows(plan, media, cache)?;
        if plan.batch.logits_rows.is_empty() {
            return Ok(());
        }
        if self.has_plain_logits() {
            return Ok(self.kernels.linear_into(&rows, self.head(), logits)?);
        }
        Ok(logits.slice_set(&self.bounded(self.products(&rows)?)?, 0, 0)?)
    }

    fn head(&self) -> &Linear {
        self.weights.head.as_ref().unwrap_or(&self.weights.embed)
    }

    /// Products of the output matrix: f32 `[rows, vocab]`.
    fn products(&self, rows: &Tensor) -> Result<Tensor> {
        let own = self.kernels.linear(rows, self.head())?;
        match self.ranks.as_ref().filter(|_| self.weights.logits.is_part()) {
            Some(ranks) => Ok(Tensor::cat(&ranks.all_gather(&own)?, 1)?),
            None => Ok(own),
        }
    }

    /// What a half computes, of which this device has all or its term. Terms are added in the order of the ranks, whatever
    /// the batch, so that a row's result depends on the row alone.
    fn total(&self, own: Tensor, is_part: bool) -> Result<Tensor> {
        let Some(ranks) = self.ranks.as_ref().filter(|_| is_part) else { return Ok(own) };
        let mut terms = ranks.all_gather(&own)?.into_iter();
        let first = terms.next().unwrap_or(own);
        Ok(terms.try_fold(first, |sum, term| sum + term)?)
    }

    /// Products of the output matrix, scaled and capped as the model says.
    fn bounded(&self, logits: Tensor) -> Result<Tensor> {
        let logits = scaled(logits, self.spec.logit_scale)?;
        match self.spec.logit_softcap.map(f64::from) {
            Some(cap) => Ok(((logits / cap)?.tanh()? * cap)?),
            None => Ok(logits),
        }
    }

    /// What the output matrix is given: f32 `[batch.logits_rows, hidden]`.
    ///
    /// # Errors
    /// As `forward`.
    pub fn hidden(&self, batch: &ForwardBatch, cache: &Cache) -> Result<Tensor> {
        self.rows(&self.plan(batch, cache)?, &Media::default(), cache)
    }

    fn plan(&self, batch: &ForwardBatch, cache: &Cache) -> Result<Plan> {
        self.check(batch, cache)?;
        Ok(self.kernels.plan(batch, &self.ropes)?)
    }

    fn rows(&self, plan: &Plan, media: &Media, cache: &Cache) -> Result<Tensor> {
        let batch = &plan.batch;
        let step = Step { kernels: self.kernels.as_ref(), plan };
        let rows = self.kernels.embed_tokens(&self.weights.embed, plan)?;
        let mut stream = media.place(scaled(rows, self.spec.embed_scale)?)?;
        // What the half before has computed and nobody has yet added to the stream.
        let mut pending: Option<Tensor> = None;
        let mut cross = 0;
        let mut picked = false;
        for (index, ((spec, layer), cache)) in
            self.spec.layers.iter().zip(&self.weights.layers).zip(&cache.layers).enumerate()
        {
            if let (Mixer::Cross(mixer), MixerWeights::Cross(weights)) = (&spec.mixer, &layer.mixer) {
                (stream, _) = step.join(stream, pending.take(), None)?;
                stream = CrossLayer { spec, mixer, layer, weights, number: cross }.run(&step, stream, media)?;
                cross += 1;
                continue;
            }
            let scale = spec.residual_scale;
            let mut input;
            (stream, input) = step.join(stream, pending.take(), layer.pre_attn.as_ref())?;
            let mut mixed = step.mixer(&input, &spec.mixer, &layer.mixer, cache)?;
            if index + 1 == self.spec.layers.len() && !media.deepens(index) {
                // Nothing mixes rows from here on: only those that sample are worth the last layer's other half.
                if batch.logits_rows.is_empty() {
                    break;
                }
                (stream, input, mixed) = (step.pick(&stream)?, step.pick(&input)?, step.pick(&mixed)?);
                picked = true;
            }
            let mixed = self.total(mixed, layer.mixer_is_part)?;
            let mixed = step.leave(mixed, layer.post_attn.as_ref(), scale)?;
            match spec.residual {
                Residual::Sequential => {
                    let input;
                    (stream, input) = step.join(stream, Some(mixed), layer.pre_mlp.as_ref())?;
                    let out = self.total(step.mlp(&input, &spec.mlp, &layer.mlp)?, layer.mlp_is_part)?;
                    pending = Some(media.deepen(step.leave(out, layer.post_mlp.as_ref(), scale)?, index)?);
                }
                Residual::Parallel => {
                    let own = layer.pre_mlp.as_ref().map(|norm| step.norm(&stream, norm)).transpose()?;
                    let out = step.mlp(own.as_ref().unwrap_or(&input), &spec.mlp, &layer.mlp)?;
                    let out = self.total(out, layer.mlp_is_part)?;
                    let both = (mixed + step.leave(out, layer.post_mlp.as_ref(), scale)?)?;
                    pending = Some(media.deepen(both, index)?);
                }
            }
        }
        if batch.logits_rows.is_empty() {
            return Ok(Tensor::zeros((0, self.spec.hidden_size), DType::F32, self.kernels.device())?);
        }
        if !picked {
            (stream, pending) = (step.pick(&stream)?, pending.map(|pending| step.pick(&pending)).transpose()?);
        }
        let (_, x) = step.join(stream, pending, Some(&self.weights.final_norm))?;
        Ok(x)
    }

    /// A tower's rows as this decoder takes them: for layers that look at pictures, their keys and values.
    ///
    /// # Errors
    /// Rows of another width, or the device's error.
    pub fn look(&self, mut features: ImageFeatures) -> Result<ImageFeatures> {
        let width = features.rows.dims().last().copied().unwrap_or(0);
        if width != self.spec.hidden_size {
            let limit = format!("the decoder's rows have {}", self.spec.hidden_size);
            return Err(ModelError::request("features", format!("rows of {width}"), limit));
        }
        for (spec, layer) in self.spec.layers.iter().zip(&self.weights.layers) {
            if let (Mixer::Cross(spec), MixerWeights::Cross(weights)) = (&spec.mixer, &layer.mixer) {
                features.looked_at.push(cross::keys_and_values(self.kernels.as_ref(), &features.rows, spec, weights)?);
            }
        }
        if !features.looked_at.is_empty() {
            features.rows = features.rows.narrow(0, 0, 0)?;
        }
        Ok(features)
    }

    /// Refuses a batch that would read or write outside the tables, the cache or the state slots.
    pub(crate) fn check(&self, batch: &ForwardBatch, cache: &Cache) -> Result<()> {
        batch.check(cache.num_blocks)?;
        let bad = |param, value: u32, limit: String| Err(ModelError::request(param, value, limit));
        let known = self.spec.vocab_size + self.spec.added_rows;
        if let Some(&id) = batch.token_ids.iter().find(|&&id| id as usize >= known) {
            return bad("token_ids", id, format!("the vocabulary has {known} tokens"));
        }
        if let Some(&position) = batch.positions.iter().find(|&&position| position as usize >= self.max_model_len) {
            return bad("positions", position, format!("max_model_len is {}", self.max_model_len));
        }
        if cache.layers.len() != self.spec.layers.len() {
            let limit = format!("the decoder has {} layers", self.spec.layers.len());
            return Err(ModelError::request("cache", format!("{} layers", cache.layers.len()), limit));
        }
        if self.has_recurrent_state() {
            if batch.states.len() != batch.num_sequences() {
                let limit = format!("one per sequence, {}", batch.num_sequences());
                return Err(ModelError::request("states", format!("{} entries", batch.states.len()), limit));
            }
            let slots = batch.states.iter().flat_map(|state| {
                state.source.into_iter().chain([state.target]).chain(state.snapshots.iter().map(|&(_, slot)| slot))
            });
            if let Some(slot) = slots.into_iter().find(|&slot| slot as usize >= cache.num_state_slots) {
                return bad("states", slot, format!("the cache has {} state slots", cache.num_state_slots));
            }
        }
        Ok(())
    }
}

/// Pictures are computed by one device.
pub(crate) fn one_device() -> ModelError {
    ModelError::request("tensor_parallel_size", "more than 1", "models that take pictures run on one device")
}
