//! What one step does with the rows of a layer: linear maps, norms, attention, recurrences and MLPs by way of the kernels.
//! Knows no layer order: the decoder, the encoder and the tower put these together.

use candle_core::{D, Tensor};
use fastchat_kernels::{Activation, Kernels, KvCache, Linear, Plan, Rope, StateCache};

use crate::ModelError;
use crate::cache::LayerCache;
use crate::layers::{
    AttentionWeights, DeltaWeights, GatedMlp, MixerWeights, MlaQuery, MlaWeights, MlpWeights, NormWeights,
};
use crate::spec::{Dense, Mixer, Mla, Mlp, Norm, RopeSpec};

type Result<T> = std::result::Result<T, ModelError>;

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
    pub fn pick(&self, x: &Tensor) -> Result<Tensor> {
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
    pub fn join(
        &self,
        stream: Tensor,
        pending: Option<Tensor>,
        norm: Option<&NormWeights>,
    ) -> Result<(Tensor, Tensor)> {
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
    pub fn leave(&self, x: Tensor, norm: Option<&NormWeights>, scale: f32) -> Result<Tensor> {
        match norm {
            Some(norm) => scaled(self.norm(&x, norm)?, scale),
            None => scaled(x, scale),
        }
    }

    pub fn mixer(&self, x: &Tensor, spec: &Mixer, weights: &MixerWeights, cache: &LayerCache) -> Result<Tensor> {
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
    fn mla(&self, x: &Tensor, spec: &Mla, w: &MlaWeights, cache: &KvCache) -> Result<Tensor> {
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
        let rate = columns(&input, channels + values + heads, heads)?;
        let rate = rate.broadcast_add(&w.dt_bias.to_dtype(rate.dtype())?)?;
        let decay = softplus(&rate)?.broadcast_mul(&w.decay.to_dtype(rate.dtype())?)?;
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

/// `x` times a factor that is 1 for most models.
#[allow(clippy::float_cmp)] // exactly 1 is how a spec says that there is no factor
pub(crate) fn scaled(x: Tensor, factor: f32) -> Result<Tensor> {
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
