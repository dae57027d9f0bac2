//! A decoder's weights in their slots, packed for the hardware: built once at load from a spec and named tensors.
//! Knows no model names and no steps of computation.

use candle_core::{Device, Tensor};
use fastchat_kernels::{AttentionSpec, GatedDeltaSpec, Kernels, Linear, MoeSpec, MoeWeights, QkvSpec, Rope};

use crate::ModelError;
use crate::names::Slot;
use crate::spec::{
    Attention, Bias, Cross, DecoderSpec, Dense, GatedDeltaNet, Head, LayerSpec, Mixer, Mla, Mlp, Moe, Norm, OutputGate,
    Shared, Sinks,
};
use crate::weights::{At, Weights};

/// Everything a decoder computes with.
#[derive(Debug)]
pub(crate) struct DecoderWeights {
    pub embed: Linear,
    /// `None` when the output matrix is the embedding table.
    pub head: Option<Linear>,
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
}

/// Added under the root when the gated delta rule brings q and k to unit length, in every published model.
const L2_EPS: f32 = 1e-6;

type Result<T> = std::result::Result<T, ModelError>;

impl Builder<'_> {
    /// Fills every slot of a decoder; tensors that fill none are an error.
    pub fn decoder(&self, spec: &DecoderSpec) -> Result<DecoderWeights> {
        let (vocab, hidden) = (spec.vocab_size, self.hidden);
        let at = At::default();
        let embed = self.pack(&[(Slot::Embed, vocab + spec.added_rows)], at, hidden, Bias::Absent)?;
        let head = match spec.head {
            Head::Tied => None,
            Head::Separate => Some(self.pack(&[(Slot::Head, vocab)], at, hidden, Bias::Absent)?),
        };
        let final_norm = self.norm(spec.final_norm, Slot::FinalNorm, at, hidden)?;
        let layers = spec.layers.iter().enumerate().map(|(i, layer)| self.layer(layer, i)).collect::<Result<_>>()?;
        self.weights.finish()?;
        Ok(DecoderWeights { embed, head, final_norm, layers })
    }

    pub fn device(&self) -> &Device {
        self.kernels.device()
    }

    /// Slots that share an input, stacked in order.
    pub fn pack(&self, parts: &[(Slot, usize)], at: At, cols: usize, bias: Bias) -> Result<Linear> {
        let matrix = |&(slot, rows): &(Slot, usize)| self.weights.matrix(slot, at, rows, cols);
        let weights = parts.iter().map(matrix).collect::<Result<Vec<_>>>()?;
        let bias = match bias {
            Bias::Absent => None,
            Bias::Present => {
                let mut values = Vec::new();
                for &(slot, rows) in parts {
                    values.extend(self.weights.bias(slot, at, rows)?);
                }
                let len = values.len();
                Some(Tensor::from_vec(values, len, self.device())?)
            }
        };
        Ok(self.kernels.pack(&weights, bias)?)
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
        })
    }

    pub fn attention(&self, spec: &Attention, at: At) -> Result<AttentionWeights> {
        let hidden = self.hidden;
        let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let qkv = self.pack(&[(Slot::Q, q), (Slot::K, kv), (Slot::V, kv)], at, hidden, spec.qkv_bias)?;
        let gate = match spec.gate {
            OutputGate::Absent => None,
            OutputGate::Sigmoid => Some(self.pack(&[(Slot::AttnGate, q)], at, hidden, spec.qkv_bias)?),
        };
        let out = self.pack(&[(Slot::O, hidden)], at, q, spec.out_bias)?;
        let qk_norm = match spec.qk_norm {
            None => None,
            Some(norm) => {
                let (q, kv) = match norm.scope {
                    fastchat_kernels::NormScope::PerHead => (spec.head_dim, spec.head_dim),
                    fastchat_kernels::NormScope::FullWidth => (q, kv),
                };
                let q = self.weights.tensor(Slot::QNorm, at, q, self.device())?;
                let k = self.weights.tensor(Slot::KNorm, at, kv, self.device())?;
                Some((q, k, norm.eps, norm.scope))
            }
        };
        let sinks = match spec.sinks {
            Sinks::Absent => None,
            Sinks::PerHead => Some(self.weights.tensor(Slot::Sinks, at, spec.heads, self.device())?),
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

    fn mla(&self, spec: &Mla, at: At) -> Result<MlaWeights> {
        let hidden = self.hidden;
        let norm = Norm::Rms { eps: spec.eps };
        let q_width = spec.heads * (spec.nope_dim + spec.rope_dim);
        let query = match spec.q_lora_rank {
            None => MlaQuery::Direct(self.pack(&[(Slot::Q, q_width)], at, hidden, Bias::Absent)?),
            Some(rank) => MlaQuery::Latent {
                down: self.pack(&[(Slot::QDown, rank)], at, hidden, Bias::Absent)?,
                norm: self.norm(norm, Slot::QDownNorm, at, rank)?,
                up: self.pack(&[(Slot::QUp, q_width)], at, rank, Bias::Absent)?,
            },
        };
        let per_head = |slot, rows, cols| -> Result<Vec<Linear>> {
            let head = |part| self.pack(&[(slot, rows)], At { part, ..at }, cols, Bias::Absent);
            (0..spec.heads).map(head).collect()
        };
        Ok(MlaWeights {
            query,
            kv_down: self.pack(&[(Slot::KvDown, spec.kv_lora_rank + spec.rope_dim)], at, hidden, Bias::Absent)?,
            kv_norm: self.norm(norm, Slot::KvDownNorm, at, spec.kv_lora_rank)?,
            key: per_head(Slot::LatentKey, spec.kv_lora_rank, spec.nope_dim)?,
            value: per_head(Slot::LatentValue, spec.v_dim, spec.kv_lora_rank)?,
            out: self.pack(&[(Slot::O, hidden)], at, spec.heads * spec.v_dim, Bias::Absent)?,
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

    fn delta(&self, spec: &GatedDeltaNet, at: At) -> Result<DeltaWeights> {
        let hidden = self.hidden;
        let (channels, values) = (spec.conv_channels(), spec.v_heads * spec.v_dim);
        let input = [
            (Slot::DeltaQkv, channels),
            (Slot::DeltaZ, values),
            (Slot::DeltaB, spec.v_heads),
            (Slot::DeltaA, spec.v_heads),
        ];
        let taps = self.weights.matrix(Slot::DeltaConv, at, channels, spec.conv_taps)?.to_f32()?;
        Ok(DeltaWeights {
            input: self.pack(&input, at, hidden, Bias::Absent)?,
            decay: self.weights.tensor(Slot::DeltaDecay, at, spec.v_heads, self.device())?,
            dt_bias: self.weights.tensor(Slot::DeltaBias, at, spec.v_heads, self.device())?,
            norm: self.norm(Norm::Rms { eps: spec.eps }, Slot::DeltaNorm, at, spec.v_dim)?,
            out: self.pack(&[(Slot::DeltaOut, hidden)], at, values, Bias::Absent)?,
            spec: GatedDeltaSpec {
                num_k_heads: spec.k_heads,
                conv_weight: Tensor::from_vec(taps, (channels, spec.conv_taps), self.device())?,
                l2_eps: L2_EPS,
            },
        })
    }

    pub fn mlp(&self, mlp: &Mlp, at: At) -> Result<MlpWeights> {
        let hidden = self.hidden;
        match mlp {
            Mlp::Gated(dense) => Ok(MlpWeights::Gated(self.gated([Slot::Gate, Slot::Up, Slot::Down], *dense, at)?)),
            Mlp::Plain(dense) => Ok(MlpWeights::Plain {
                up: self.pack(&[(Slot::Up, dense.inter)], at, hidden, dense.bias)?,
                down: self.pack(&[(Slot::Down, hidden)], at, dense.inter, dense.bias)?,
            }),
            Mlp::Moe(moe) => self.moe(moe, at),
        }
    }

    fn gated(&self, [gate, up, down]: [Slot; 3], dense: Dense, at: At) -> Result<GatedMlp> {
        let hidden = self.hidden;
        Ok(GatedMlp {
            gate_up: self.pack(&[(gate, dense.inter), (up, dense.inter)], at, hidden, dense.bias)?,
            down: self.pack(&[(down, hidden)], at, dense.inter, dense.bias)?,
        })
    }

    fn moe(&self, moe: &Moe, at: At) -> Result<MlpWeights> {
        let hidden = self.hidden;
        let router = self.pack(&[(Slot::Router, moe.experts)], at, hidden, moe.expert.bias)?;
        let score_bias = match moe.score_bias {
            Bias::Absent => None,
            Bias::Present => Some(self.weights.tensor(Slot::ScoreBias, at, moe.experts, self.device())?),
        };
        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        for part in 0..moe.experts {
            let slots = [Slot::ExpertGate, Slot::ExpertUp, Slot::ExpertDown];
            let expert = self.gated(slots, moe.expert, At { part, ..at })?;
            gate_up.push(expert.gate_up);
            down.push(expert.down);
        }
        let shared = match moe.shared {
            Shared::Absent => None,
            Shared::Always(inter) => Some((inter, None)),
            Shared::Gated(inter) => {
                Some((inter, Some(self.pack(&[(Slot::SharedSwitch, 1)], at, hidden, Bias::Absent)?)))
            }
        };
        let shared = match shared {
            None => None,
            Some((inter, switch)) => {
                let slots = [Slot::SharedGate, Slot::SharedUp, Slot::SharedDown];
                let dense = Dense { inter, act: moe.expert.act, bias: Bias::Absent };
                Some(Box::new(SharedExpert { mlp: self.gated(slots, dense, at)?, switch }))
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
