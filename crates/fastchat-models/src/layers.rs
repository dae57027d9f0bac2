//! A decoder's weights in their slots, packed for the hardware: built once at load from a spec and named tensors.
//! Knows no model names and no steps of computation.

use candle_core::{Device, Tensor};
use fastchat_kernels::{
    AttentionSpec, GatedDeltaSpec, Kernels, Linear, MoeSpec, MoeWeights, NormScope, QkvSpec, Rope, Weight,
};

use crate::ModelError;
use crate::names::Slot;
use crate::shard::{Shard, Span};
use crate::spec::{
    Attention, Bias, Cross, DecoderSpec, GatedDeltaNet, Head, LayerSpec, Mixer, Mla, Mlp, Moe, Norm, OutputGate,
    Shared, Sinks,
};
use crate::weights::{At, Weights};

/// Everything a decoder computes with.
#[derive(Debug)]
pub(crate) struct DecoderWeights {
    pub embed: Linear,
    /// `None` when the output matrix is the embedding table, of which a rank of several has its part once more.
    pub head: Option<Linear>,
    /// Tokens whose logits `head` gives.
    pub logits: Span,
    pub final_norm: NormWeights,
    pub layers: Vec<Layer>,
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub pre_attn: Option<NormWeights>,
    pub post_attn: Option<NormWeights>,
    pub pre_mlp: Option<NormWeights>,
    pub post_mlp: Option<NormWeights>,
    pub mixer: MixerWeights,
    pub mlp: MlpWeights,
    /// Whether the mixer's result is one rank's term of a sum.
    pub mixer_is_part: bool,
    /// Likewise the MLP's.
    pub mlp_is_part: bool,
}

#[derive(Debug)]
pub(crate) struct NormWeights {
    pub norm: Norm,
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

#[derive(Debug)]
pub(crate) enum MixerWeights {
    Attention(Box<AttentionWeights>),
    Mla(Box<MlaWeights>),
    GatedDelta(Box<DeltaWeights>),
    Cross(Box<CrossWeights>),
}

#[derive(Debug)]
pub(crate) struct CrossWeights {
    pub q: Linear,
    pub q_norm: NormWeights,
    pub kv: Linear,
    pub k_norm: NormWeights,
    pub out: Linear,
    /// Factors on the halves of the layer.
    pub factors: (f32, f32),
}

#[derive(Debug)]
pub(crate) struct AttentionWeights {
    pub qkv: Linear,
    pub gate: Option<Linear>,
    pub out: Linear,
    pub qkv_spec: QkvSpec,
    pub attention: AttentionSpec,
}

#[derive(Debug)]
pub(crate) struct MlaWeights {
    pub query: MlaQuery,
    /// Latent, then the rotated key.
    pub kv_down: Linear,
    pub kv_norm: NormWeights,
    /// Per head: from its elements without positions to the latent.
    pub key: Vec<Linear>,
    /// Per head: from the latent to its values.
    pub value: Vec<Linear>,
    pub out: Linear,
    pub rope: Rope,
    pub attention: AttentionSpec,
}

#[derive(Debug)]
pub(crate) enum MlaQuery {
    Direct(Linear),
    Latent { down: Linear, norm: NormWeights, up: Linear },
}

#[derive(Debug)]
pub(crate) struct DeltaWeights {
    /// q, k, v before the convolution; z; b; a.
    pub input: Linear,
    /// f32 `[v_heads]`, at most 0.
    pub decay: Tensor,
    /// f32 `[v_heads]`.
    pub dt_bias: Tensor,
    pub norm: NormWeights,
    pub out: Linear,
    pub spec: GatedDeltaSpec,
}

#[derive(Debug)]
pub(crate) enum MlpWeights {
    Gated(GatedMlp),
    Plain { up: Linear, down: Linear },
    Moe { spec: MoeSpec, weights: Box<MoeWeights>, shared: Option<Box<SharedExpert>> },
}

/// Gate over up, then down.
#[derive(Debug)]
pub(crate) struct GatedMlp {
    pub gate_up: Linear,
    pub down: Linear,
}

#[derive(Debug)]
pub(crate) struct SharedExpert {
    pub mlp: GatedMlp,
    pub switch: Option<Linear>,
}

/// Reads slots and packs them.
pub(crate) struct Builder<'a> {
    pub weights: Weights<'a>,
    pub kernels: &'a dyn Kernels,
    /// Width of the residual stream.
    pub hidden: usize,
    pub ropes: &'a [Rope],
    /// What of a decoder is packed; specs are of the whole.
    pub shard: Shard,
}

/// Added under the root when the gated delta rule brings q and k to unit length, in every published model.
const L2_EPS: f32 = 1e-6;

type Result<T> = std::result::Result<T, ModelError>;

impl Builder<'_> {
    /// Fills every slot of a decoder; tensors that fill none are an error.
    pub fn decoder(&self, spec: &DecoderSpec) -> Result<DecoderWeights> {
        let (vocab, hidden) = (spec.vocab_size, self.hidden);
        let at = At::default();
        let logits = self.shard.logits(vocab);
        let table = (vocab + spec.added_rows).into();
        let embed = match spec.head {
            Head::Tied if !logits.is_part() => self.lm_head(Slot::Embed, &table)?,
            _ => self.pack_part(&[(Slot::Embed, table)], at, &hidden.into(), Bias::Absent)?,
        };
        let head = match spec.head {
            Head::Tied if logits.is_part() => {
                let rows = logits.clone().within(0, spec.added_rows);
                Some(self.pack_part(&[(Slot::Embed, rows)], at, &hidden.into(), Bias::Absent)?)
            }
            Head::Tied => None,
            Head::Separate => Some(self.lm_head(Slot::Head, &logits)?),
        };
        let final_norm = self.norm(spec.final_norm, Slot::FinalNorm, at, hidden)?;
        let layers = spec.layers.iter().enumerate().map(|(i, layer)| self.layer(layer, i)).collect::<Result<_>>()?;
        self.weights.finish()?;
        Ok(DecoderWeights { embed, head, logits, final_norm, layers })
    }

    pub fn device(&self) -> &Device {
        self.kernels.device()
    }

    /// Slots that share an input, stacked in order.
    pub fn pack(&self, parts: &[(Slot, usize)], at: At, cols: usize, bias: Bias) -> Result<Linear> {
        let parts: Vec<_> = parts.iter().map(|&(slot, rows)| (slot, rows.into())).collect();
        self.pack_part(&parts, at, &cols.into(), bias)
    }

    /// The matrix that tokens are chosen by.
    fn lm_head(&self, slot: Slot, rows: &Span) -> Result<Linear> {
        Ok(self.kernels.pack_lm_head(&self.matrix(slot, At::default(), rows, &self.hidden.into())?)?)
    }

    /// As `pack`, of what the rank holds of the rows and columns. Where ranks' results are summed, the first has the bias.
    fn pack_part(&self, parts: &[(Slot, Span)], at: At, cols: &Span, bias: Bias) -> Result<Linear> {
        let weights =
            parts.iter().map(|(slot, rows)| self.matrix(*slot, at, rows, cols)).collect::<Result<Vec<_>>>()?;
        let bias = match bias {
            Bias::Present if !cols.is_part() || self.shard.rank == 0 => {
                let mut values = Vec::new();
                for (slot, rows) in parts {
                    values.extend_from_slice(&self.weights.bias(*slot, at, rows.whole)?[rows.own.clone()]);
                }
                let len = values.len();
                Some(Tensor::from_vec(values, len, self.device())?)
            }
            Bias::Present => {
                // Not a tensor that is left over.
                for (slot, rows) in parts {
                    self.weights.bias(*slot, at, rows.whole)?;
                }
                None
            }
            Bias::Absent => None,
        };
        Ok(self.kernels.pack(&weights, bias)?)
    }

    fn matrix(&self, slot: Slot, at: At, rows: &Span, cols: &Span) -> Result<Weight> {
        let mut weight = self.weights.matrix(slot, at, rows.whole, cols.whole)?;
        if rows.is_part() {
            weight = weight.narrow(rows.own.start, rows.len())?;
        }
        if cols.is_part() {
            weight = weight.narrow_cols(cols.own.clone()).map_err(|error| {
                let what = format!("{slot:?} of layer {}", at.layer);
                ModelError::request("tensor_parallel_size", self.shard.size, format!("{what}: {error}"))
            })?;
        }
        Ok(weight)
    }

    /// What the rank holds of a vector.
    fn vector(&self, slot: Slot, at: At, span: &Span) -> Result<Tensor> {
        let values = self.weights.vector(slot, at, span.whole)?;
        Ok(Tensor::new(&values[span.own.clone()], self.device())?)
    }

    pub fn norm(&self, norm: Norm, slot: Slot, at: At, width: usize) -> Result<NormWeights> {
        let weight = self.weights.tensor(slot, at, width, self.device())?;
        let bias = match norm {
            Norm::Layer { bias: Bias::Present, .. } => {
                Some(Tensor::from_vec(self.weights.bias(slot, at, width)?, width, self.device())?)
            }
            _ => None,
        };
        Ok(NormWeights { norm, weight, bias })
    }

    fn layer(&self, layer: &LayerSpec, index: usize) -> Result<Layer> {
        let at = At { layer: index, part: 0 };
        let hidden = self.hidden;
        let norm = |norm: Option<Norm>, slot| norm.map(|norm| self.norm(norm, slot, at, hidden)).transpose();
        Ok(Layer {
            pre_attn: norm(layer.pre_attn, Slot::PreAttn)?,
            post_attn: norm(layer.post_attn, Slot::PostAttn)?,
            pre_mlp: norm(layer.pre_mlp, Slot::PreMlp)?,
            post_mlp: norm(layer.post_mlp, Slot::PostMlp)?,
            mixer: match &layer.mixer {
                Mixer::Attention(spec) => MixerWeights::Attention(Box::new(self.attention(spec, at)?)),
                Mixer::Mla(spec) => MixerWeights::Mla(Box::new(self.mla(spec, at)?)),
                Mixer::GatedDeltaNet(spec) => MixerWeights::GatedDelta(Box::new(self.delta(spec, at)?)),
                Mixer::Cross(spec) => MixerWeights::Cross(Box::new(self.cross(spec, at)?)),
            },
            mlp: self.mlp(&layer.mlp, at)?,
            mixer_is_part: self.shard.mixer(&layer.mixer) != layer.mixer,
            mlp_is_part: self.shard.mlp(&layer.mlp) != layer.mlp,
        })
    }

    pub fn attention(&self, whole: &Attention, at: At) -> Result<AttentionWeights> {
        let (hidden, spec) = (self.hidden, &self.shard.attention(whole));
        let q = self.shard.span(whole.heads, spec.heads, spec.head_dim);
        let kv = self.shard.span(whole.kv_heads, spec.kv_heads, spec.head_dim);
        let parts = [(Slot::Q, q.clone()), (Slot::K, kv.clone()), (Slot::V, kv.clone())];
        let qkv = self.pack_part(&parts, at, &hidden.into(), spec.qkv_bias)?;
        let gate = match spec.gate {
            OutputGate::Absent => None,
            OutputGate::Sigmoid => {
                Some(self.pack_part(&[(Slot::AttnGate, q.clone())], at, &hidden.into(), spec.qkv_bias)?)
            }
        };
        let out = self.pack_part(&[(Slot::O, hidden.into())], at, &q, spec.out_bias)?;
        let qk_norm = match spec.qk_norm {
            None => None,
            Some(norm) => {
                let (q, kv) = match norm.scope {
                    NormScope::PerHead => (spec.head_dim.into(), spec.head_dim.into()),
                    NormScope::FullWidth => (q, kv),
                };
                let (q, k) = (self.vector(Slot::QNorm, at, &q)?, self.vector(Slot::KNorm, at, &kv)?);
                Some((q, k, norm.eps, norm.scope))
            }
        };
        let sinks = match spec.sinks {
            Sinks::Absent => None,
            Sinks::PerHead => Some(self.vector(Slot::Sinks, at, &self.shard.span(whole.heads, spec.heads, 1))?),
        };
        let qkv_spec = QkvSpec {
            num_heads: spec.heads,
            num_kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            qk_norm,
            rope: spec.rope.map(|index| self.ropes[index].clone()),
        };
        let attention = AttentionSpec {
            num_heads: spec.heads,
            v_head_dim: spec.head_dim,
            scale: spec.scale,
            window: spec.window,
            softcap: spec.softcap,
            sinks,
        };
        Ok(AttentionWeights { qkv, gate, out, qkv_spec, attention })
    }

    fn cross(&self, spec: &Cross, at: At) -> Result<CrossWeights> {
        let hidden = self.hidden;
        let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let norm = Norm::Rms { eps: spec.eps };
        let factor = |slot| Ok::<_, ModelError>(self.weights.vector(slot, at, 1)?[0]);
        Ok(CrossWeights {
            q: self.pack(&[(Slot::CrossQ, q)], at, hidden, Bias::Absent)?,
            q_norm: self.norm(norm, Slot::CrossQNorm, at, spec.head_dim)?,
            kv: self.pack(&[(Slot::CrossK, kv), (Slot::CrossV, kv)], at, hidden, Bias::Absent)?,
            k_norm: self.norm(norm, Slot::CrossKNorm, at, spec.head_dim)?,
            out: self.pack(&[(Slot::CrossO, hidden)], at, q, Bias::Absent)?,
            factors: (factor(Slot::AttnFactor)?, factor(Slot::MlpFactor)?),
        })
    }

    fn mla(&self, whole: &Mla, at: At) -> Result<MlaWeights> {
        let (hidden, spec) = (self.hidden, &self.shard.mla(whole));
        let norm = Norm::Rms { eps: spec.eps };
        let heads = |width| self.shard.span(whole.heads, spec.heads, width);
        let q = heads(spec.nope_dim + spec.rope_dim);
        let query = match spec.q_lora_rank {
            None => MlaQuery::Direct(self.pack_part(&[(Slot::Q, q)], at, &hidden.into(), Bias::Absent)?),
            Some(rank) => MlaQuery::Latent {
                down: self.pack(&[(Slot::QDown, rank)], at, hidden, Bias::Absent)?,
                norm: self.norm(norm, Slot::QDownNorm, at, rank)?,
                up: self.pack_part(&[(Slot::QUp, q)], at, &rank.into(), Bias::Absent)?,
            },
        };
        let per_head = |slot, rows, cols| -> Result<Vec<Linear>> {
            let head = |part| self.pack(&[(slot, rows)], At { part, ..at }, cols, Bias::Absent);
            heads(1).own.map(head).collect()
        };
        Ok(MlaWeights {
            query,
            kv_down: self.pack(&[(Slot::KvDown, spec.kv_lora_rank + spec.rope_dim)], at, hidden, Bias::Absent)?,
            kv_norm: self.norm(norm, Slot::KvDownNorm, at, spec.kv_lora_rank)?,
            key: per_head(Slot::LatentKey, spec.kv_lora_rank, spec.nope_dim)?,
            value: per_head(Slot::LatentValue, spec.v_dim, spec.kv_lora_rank)?,
            out: self.pack_part(&[(Slot::O, hidden.into())], at, &heads(spec.v_dim), Bias::Absent)?,
            rope: self.ropes[spec.rope].clone(),
            attention: AttentionSpec {
                num_heads: spec.heads,
                v_head_dim: spec.kv_lora_rank,
                scale: spec.scale,
                window: None,
                softcap: None,
                sinks: None,
            },
        })
    }

    fn delta(&self, whole: &GatedDeltaNet, at: At) -> Result<DeltaWeights> {
        let (hidden, spec) = (self.hidden, &self.shard.delta(whole));
        let keys = self.shard.span(whole.k_heads, spec.k_heads, spec.k_dim);
        let values = self.shard.span(whole.v_heads, spec.v_heads, spec.v_dim);
        let heads = self.shard.span(whole.v_heads, spec.v_heads, 1);
        // q, k and v, one behind the other.
        let (k, v) = (keys.whole, values.whole);
        let channels = [keys.clone().within(0, k + v), keys.within(k, v), values.clone().within(2 * k, 0)];
        let mut input: Vec<_> = channels.iter().map(|rows| (Slot::DeltaQkv, rows.clone())).collect();
        input.extend([(Slot::DeltaZ, values.clone()), (Slot::DeltaB, heads.clone()), (Slot::DeltaA, heads.clone())]);
        let mut taps = Vec::new();
        for rows in &channels {
            taps.extend(self.matrix(Slot::DeltaConv, at, rows, &spec.conv_taps.into())?.to_f32()?);
        }
        Ok(DeltaWeights {
            input: self.pack_part(&input, at, &hidden.into(), Bias::Absent)?,
            decay: self.vector(Slot::DeltaDecay, at, &heads)?,
            dt_bias: self.vector(Slot::DeltaBias, at, &heads)?,
            norm: self.norm(Norm::Rms { eps: spec.eps }, Slot::DeltaNorm, at, spec.v_dim)?,
            out: self.pack_part(&[(Slot::DeltaOut, hidden.into())], at, &values, Bias::Absent)?,
            spec: GatedDeltaSpec {
                num_k_heads: spec.k_heads,
                conv_weight: Tensor::from_vec(taps, (spec.conv_channels(), spec.conv_taps), self.device())?,
                l2_eps: L2_EPS,
            },
        })
    }

    pub fn mlp(&self, mlp: &Mlp, at: At) -> Result<MlpWeights> {
        let hidden = self.hidden;
        match mlp {
            Mlp::Gated(dense) => {
                let slots = [Slot::Gate, Slot::Up, Slot::Down];
                Ok(MlpWeights::Gated(self.gated(slots, &self.shard.inter(dense.inter), dense.bias, at)?))
            }
            Mlp::Plain(dense) => {
                let inter = self.shard.inter(dense.inter);
                Ok(MlpWeights::Plain {
                    up: self.pack_part(&[(Slot::Up, inter.clone())], at, &hidden.into(), dense.bias)?,
                    down: self.pack_part(&[(Slot::Down, hidden.into())], at, &inter, dense.bias)?,
                })
            }
            Mlp::Moe(moe) => self.moe(moe, at),
        }
    }

    fn gated(&self, [gate, up, down]: [Slot; 3], inter: &Span, bias: Bias, at: At) -> Result<GatedMlp> {
        let hidden = self.hidden;
        Ok(GatedMlp {
            gate_up: self.pack_part(&[(gate, inter.clone()), (up, inter.clone())], at, &hidden.into(), bias)?,
            down: self.pack_part(&[(down, hidden.into())], at, inter, bias)?,
        })
    }

    fn moe(&self, moe: &Moe, at: At) -> Result<MlpWeights> {
        let (hidden, own) = (self.hidden, self.shard.moe(moe));
        // All of the experts are dealt out, or none.
        let dealt = |whole: usize, own: usize| if own == whole { whole.into() } else { self.shard.inter(whole) };
        let inter = dealt(moe.expert.inter, own.expert.inter);
        let router = self.pack(&[(Slot::Router, moe.experts)], at, hidden, moe.expert.bias)?;
        let score_bias = match moe.score_bias {
            Bias::Absent => None,
            Bias::Present => Some(self.weights.tensor(Slot::ScoreBias, at, moe.experts, self.device())?),
        };
        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        for part in 0..moe.experts {
            let slots = [Slot::ExpertGate, Slot::ExpertUp, Slot::ExpertDown];
            let expert = self.gated(slots, &inter, moe.expert.bias, At { part, ..at })?;
            gate_up.push(expert.gate_up);
            down.push(expert.down);
        }
        let shared_expert = |switch| -> Result<SharedExpert> {
            let width = dealt(moe.shared.inter(), own.shared.inter());
            let slots = [Slot::SharedGate, Slot::SharedUp, Slot::SharedDown];
            Ok(SharedExpert { mlp: self.gated(slots, &width, Bias::Absent, at)?, switch })
        };
        let shared = match moe.shared {
            Shared::Absent => None,
            Shared::Always(_) => Some(Box::new(shared_expert(None)?)),
            Shared::Gated(_) => {
                let by = self.pack(&[(Slot::SharedSwitch, 1)], at, hidden, Bias::Absent)?;
                Some(Box::new(shared_expert(Some(by))?))
            }
        };
        let spec = MoeSpec {
            num_experts: moe.experts,
            top_k: moe.top_k,
            score: moe.score,
            renormalize: moe.renormalize,
            scaling: moe.scaling,
            groups: moe.groups,
            act: moe.expert.act,
        };
        Ok(MlpWeights::Moe { spec, weights: Box::new(MoeWeights { router, score_bias, gate_up, down }), shared })
    }
}
