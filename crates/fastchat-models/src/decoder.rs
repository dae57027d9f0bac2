//! The one decoder: runs any spec over flat batches through the kernels. Knows no model, no file and no request.

use std::sync::Arc;

use candle_core::{D, DType, Tensor};
use fastchat_kernels::{Activation, ForwardBatch, Kernels, KvCache, Linear, Plan, Rope, StateCache};

use crate::ModelError;
use crate::cache::{Cache, LayerCache, bytes_per_block, bytes_per_state_slot};
use crate::cross::{self, CrossLayer};
use crate::description::Description;
use crate::layers::{
    AttentionWeights, Builder, DecoderWeights, DeltaWeights, GatedMlp, MixerWeights, MlaQuery, MlaWeights, MlpWeights,
    NormWeights,
};
use crate::load::LoadOptions;
use crate::spec::{DecoderSpec, Dense, Mixer, Mlp, Norm, Residual, RopeSpec};
use crate::vision::{ImageFeatures, Media};
use crate::weights::{TensorMap, Weights};

type Result<T> = std::result::Result<T, ModelError>;

/// A model ready to run.
#[derive(Debug)]
pub struct Decoder {
    spec: DecoderSpec,
    kernels: Arc<dyn Kernels>,
    max_model_len: usize,
    kv_dtype: DType,
    ropes: Vec<Rope>,
    weights: DecoderWeights,
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
        let builder = Builder { weights, kernels: kernels.as_ref(), hidden: spec.hidden_size, ropes: &ropes };
        let weights = builder.decoder(&spec)?;
        let kv_dtype = if tensors.is_quantized() || options.quantize.is_some() { DType::F16 } else { DType::F32 };
        Ok(Self { spec, kernels, max_model_len, kv_dtype, ropes, weights })
    }

    /// What is computed.
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
        let rows = self.rows(batch, media, cache)?;
        if batch.logits_rows.is_empty() {
            return Ok(Tensor::zeros((0, self.spec.vocab_size), DType::F32, self.kernels.device())?);
        }
        let head = self.weights.head.as_ref().unwrap_or(&self.weights.embed);
        let logits = scaled(self.kernels.linear(&rows, head)?, self.spec.logit_scale)?;
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
        self.rows(batch, &Media::default(), cache)
    }

    fn rows(&self, batch: &ForwardBatch, media: &Media, cache: &Cache) -> Result<Tensor> {
        self.check(batch, cache)?;
        media.check(batch.num_tokens())?;
        let plan = self.kernels.plan(batch, &self.ropes)?;
        let step = Step { kernels: self.kernels.as_ref(), plan: &plan };
        let rows = self.kernels.embed(&self.weights.embed, &batch.token_ids)?;
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
            let mixed = step.leave(mixed, layer.post_attn.as_ref(), scale)?;
            match spec.residual {
                Residual::Sequential => {
                    let input;
                    (stream, input) = step.join(stream, Some(mixed), layer.pre_mlp.as_ref())?;
                    let out = step.mlp(&input, &spec.mlp, &layer.mlp)?;
                    pending = Some(media.deepen(step.leave(out, layer.post_mlp.as_ref(), scale)?, index)?);
                }
                Residual::Parallel => {
                    let own = layer.pre_mlp.as_ref().map(|norm| step.norm(&stream, norm)).transpose()?;
                    let out = step.mlp(own.as_ref().unwrap_or(&input), &spec.mlp, &layer.mlp)?;
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
    fn check(&self, batch: &ForwardBatch, cache: &Cache) -> Result<()> {
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

/// One step's kernels and plan.
pub(crate) struct Step<'a> {
    pub kernels: &'a dyn Kernels,
    pub plan: &'a Plan,
}

impl Step<'_> {
    pub fn linear(&self, x: &Tensor, layer: &Linear) -> Result<Tensor> {
        Ok(self.kernels.linear(x, layer)?)
    }

    /// The rows that sample.
    fn pick(&self, x: &Tensor) -> Result<Tensor> {
        let rows = &self.plan.batch.logits_rows;
        if rows.len() == x.dim(0)? && rows.iter().enumerate().all(|(i, &row)| i == row as usize) {
            return Ok(x.clone());
        }
        Ok(x.index_select(&Tensor::from_slice(rows, rows.len(), x.device())?, 0)?)
    }

    pub fn norm(&self, x: &Tensor, weights: &NormWeights) -> Result<Tensor> {
        Ok(match weights.norm {
            Norm::Rms { eps } => self.kernels.rms_norm(x, &weights.weight, eps)?,
            Norm::Layer { eps, .. } => self.kernels.layer_norm(x, &weights.weight, weights.bias.as_ref(), eps)?,
        })
    }

    /// Adds what is pending to the stream and norms the sum: (stream, normed).
    fn join(&self, stream: Tensor, pending: Option<Tensor>, norm: Option<&NormWeights>) -> Result<(Tensor, Tensor)> {
        if let (Some(pending), Some(NormWeights { norm: Norm::Rms { eps }, weight, .. })) = (&pending, norm) {
            return Ok(self.kernels.add_rms_norm(pending, &stream, weight, *eps)?);
        }
        let stream = match pending {
            Some(pending) => (pending + stream)?,
            None => stream,
        };
        let normed = norm.map_or_else(|| Ok(stream.clone()), |norm| self.norm(&stream, norm))?;
        Ok((stream, normed))
    }

    /// What a half adds to the stream: its output, normed and scaled where the layer says so.
    fn leave(&self, x: Tensor, norm: Option<&NormWeights>, scale: f32) -> Result<Tensor> {
        match norm {
            Some(norm) => scaled(self.norm(&x, norm)?, scale),
            None => scaled(x, scale),
        }
    }

    fn mixer(&self, x: &Tensor, spec: &Mixer, weights: &MixerWeights, cache: &LayerCache) -> Result<Tensor> {
        match (weights, spec, cache) {
            (MixerWeights::Attention(weights), Mixer::Attention(_), LayerCache::Kv(cache)) => {
                self.attention(x, weights, cache)
            }
            (MixerWeights::Mla(weights), Mixer::Mla(spec), LayerCache::Kv(cache)) => self.mla(x, spec, weights, cache),
            (MixerWeights::GatedDelta(weights), Mixer::GatedDeltaNet(_), LayerCache::State(cache)) => {
                self.gated_delta(x, weights, cache)
            }
            _ => Err(ModelError::request("cache", "another decoder's", "make it by this decoder's new_cache")),
        }
    }

    fn attention(&self, x: &Tensor, w: &AttentionWeights, cache: &KvCache) -> Result<Tensor> {
        let qkv = self.linear(x, &w.qkv)?;
        let q = self.kernels.qk_norm_rope_write(&qkv, &w.qkv_spec, cache, self.plan)?;
        let mut out = self.kernels.attention(&q, &w.attention, cache, self.plan)?;
        if let Some(gate) = &w.gate {
            out = (out * sigmoid(&self.linear(x, gate)?)?)?;
        }
        self.linear(&out, &w.out)
    }

    /// Keys and values stay in the latent: queries are brought into it, results out of it.
    fn mla(&self, x: &Tensor, spec: &crate::spec::Mla, w: &MlaWeights, cache: &KvCache) -> Result<Tensor> {
        let (lora, head_dim) = (spec.kv_lora_rank, spec.nope_dim + spec.rope_dim);
        let q = match &w.query {
            MlaQuery::Direct(query) => self.linear(x, query)?,
            MlaQuery::Latent { down, norm, up } => self.linear(&self.norm(&self.linear(x, down)?, norm)?, up)?,
        };
        let q = self.kernels.rope(&q, head_dim, &w.rope, true, self.plan)?;
        let kv = self.linear(x, &w.kv_down)?;
        let latent = self.norm(&columns(&kv, 0, lora)?, &w.kv_norm)?;
        let key = self.kernels.rope(&columns(&kv, lora, spec.rope_dim)?, spec.rope_dim, &w.rope, false, self.plan)?;
        self.kernels.write_kv(&Tensor::cat(&[latent, key], 1)?, None, cache, self.plan)?;
        let mut queries = Vec::with_capacity(2 * spec.heads);
        for (head, key) in w.key.iter().enumerate() {
            queries.push(self.linear(&columns(&q, head * head_dim, spec.nope_dim)?, key)?);
            queries.push(columns(&q, head * head_dim + spec.nope_dim, spec.rope_dim)?);
        }
        let out = self.kernels.attention(&Tensor::cat(&queries, 1)?, &w.attention, cache, self.plan)?;
        let value = |(head, value)| self.linear(&columns(&out, head * lora, lora)?, value);
        let values = w.value.iter().enumerate().map(value).collect::<Result<Vec<_>>>()?;
        self.linear(&Tensor::cat(&values, 1)?, &w.out)
    }

    fn gated_delta(&self, x: &Tensor, w: &DeltaWeights, cache: &StateCache) -> Result<Tensor> {
        let layout = cache.layout;
        let (channels, heads) = (layout.conv_channels, layout.num_v_heads);
        let values = heads * layout.v_head_dim;
        let input = self.linear(x, &w.input)?;
        let qkv = columns(&input, 0, channels)?;
        let z = columns(&input, channels, values)?;
        let beta = sigmoid(&columns(&input, channels + values, heads)?)?;
        let rate = columns(&input, channels + values + heads, heads)?.broadcast_add(&w.dt_bias)?;
        let decay = softplus(&rate)?.broadcast_mul(&w.decay)?;
        let out = self.kernels.gated_delta(&[&qkv, &beta, &decay], &w.spec, cache, self.plan)?;
        let tokens = out.dim(0)?;
        let out = self.norm(&out.reshape((tokens * heads, layout.v_head_dim))?, &w.norm)?.reshape((tokens, values))?;
        self.linear(&(out * self.kernels.act(&z, Activation::Silu)?)?, &w.out)
    }

    pub fn mlp(&self, x: &Tensor, spec: &Mlp, weights: &MlpWeights) -> Result<Tensor> {
        let act = match spec {
            Mlp::Gated(Dense { act, .. }) | Mlp::Plain(Dense { act, .. }) => *act,
            Mlp::Moe(moe) => moe.expert.act,
        };
        match weights {
            MlpWeights::Gated(mlp) => self.gated(x, mlp, act),
            MlpWeights::Plain { up, down } => self.linear(&self.kernels.act(&self.linear(x, up)?, act)?, down),
            MlpWeights::Moe { spec, weights, shared } => {
                let routed = self.kernels.moe(x, spec, weights)?;
                let Some(shared) = shared else { return Ok(routed) };
                let mut out = self.gated(x, &shared.mlp, act)?;
                if let Some(switch) = &shared.switch {
                    out = out.broadcast_mul(&sigmoid(&self.linear(x, switch)?)?)?;
                }
                Ok((routed + out)?)
            }
        }
    }

    fn gated(&self, x: &Tensor, mlp: &GatedMlp, act: Activation) -> Result<Tensor> {
        self.linear(&self.kernels.gated_linear(x, &mlp.gate_up, act)?, &mlp.down)
    }
}

/// A spec's rope tables as the kernels take them.
pub(crate) fn tables(ropes: &[RopeSpec]) -> Vec<Rope> {
    let table = |(index, rope): (usize, &RopeSpec)| Rope {
        index,
        layout: rope.layout,
        axes: rope.axes.clone(),
        inv_freq: rope.inv_freq.clone(),
        attention_factor: rope.attention_factor,
    };
    ropes.iter().enumerate().map(table).collect()
}

#[allow(clippy::float_cmp)] // exactly 1 is how a spec says that there is no factor
fn scaled(x: Tensor, factor: f32) -> Result<Tensor> {
    if factor == 1.0 { Ok(x) } else { Ok((x * f64::from(factor))?) }
}

/// Columns `start .. start + len` of a matrix, as rows without gaps.
fn columns(x: &Tensor, start: usize, len: usize) -> Result<Tensor> {
    Ok(x.narrow(D::Minus1, start, len)?.contiguous()?)
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok((x.neg()?.exp()? + 1.0)?.recip()?)
}

/// `ln(1 + e^x)`, without overflow.
fn softplus(x: &Tensor) -> Result<Tensor> {
    Ok((x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?)
}
