//! What a decoder is, as closed data: every layer expanded, every alternative an enum, no option that means "unknown".
//! Knows no model names, files or tensors; `decoder` runs it, `names` says which stored tensor fills which slot.

use fastchat_kernels::{Activation, NormScope, RopeLayout, RouterScore};
use serde::{Serialize, Serializer};

pub use crate::rope::Scaling;

/// A whole decoder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DecoderSpec {
    /// Rows of the embedding table that have a logit.
    pub vocab_size: usize,
    /// Rows of the embedding table after those, for tokens that are never generated.
    #[serde(skip_serializing_if = "is_zero")]
    pub added_rows: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Longest sequence the positions were made for.
    pub max_positions: usize,
    /// Factor on embedding rows.
    pub embed_scale: f32,
    /// Where the output matrix comes from.
    pub head: Head,
    /// Norm before the output matrix.
    pub final_norm: Norm,
    /// Factor on logits.
    pub logit_scale: f32,
    /// `cap * tanh(logit / cap)`, after the factor.
    pub logit_softcap: Option<f32>,
    /// The distinct rope tables; layers refer to them by index.
    pub ropes: Vec<RopeSpec>,
    /// One entry per layer, in order.
    pub layers: Vec<LayerSpec>,
}

/// Where the output matrix comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Head {
    /// The embedding table.
    Tied,
    /// Its own matrix.
    Separate,
}

/// Whether a linear layer has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Bias {
    /// No bias.
    Absent,
    /// A stored bias.
    Present,
}

/// A norm over the last dimension.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum Norm {
    /// Root mean square (arXiv 1910.07467).
    Rms {
        /// Added to the mean square.
        eps: f32,
    },
    /// Mean and variance (arXiv 1607.06450).
    Layer {
        /// Added to the variance.
        eps: f32,
        /// Whether there is a bias beside the weight.
        bias: Bias,
    },
}

impl Norm {
    /// What keeps the root from zero.
    pub fn eps(self) -> f32 {
        match self {
            Self::Rms { eps } | Self::Layer { eps, .. } => eps,
        }
    }
}

/// One rope table, resolved: every scaling kind ends as frequencies and a factor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RopeSpec {
    /// Scaling kind by which the frequencies were made, for readers only.
    pub kind: &'static str,
    /// Pairing of elements.
    #[serde(serialize_with = "debug")]
    pub layout: RopeLayout,
    /// Angle per position of each rotated pair; twice as many elements of a head are rotated.
    #[serde(serialize_with = "short_floats")]
    pub inv_freq: Vec<f32>,
    /// Axis (time, line, column) by whose position each pair turns; empty: all by the one position there is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub axes: Vec<u8>,
    /// Factor on cos and sin.
    pub attention_factor: f32,
    /// Base of the frequencies, for files that must say it again.
    #[serde(skip)]
    pub theta: f32,
    /// What was done to them, likewise.
    #[serde(skip)]
    pub scaling: Scaling,
}

/// One layer: a mixer over time, then an MLP, each with a norm before and after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerSpec {
    /// How the two halves add to the stream.
    pub residual: Residual,
    /// Factor on what each half adds.
    pub residual_scale: f32,
    /// Norm before the mixer.
    pub pre_attn: Option<Norm>,
    /// Norm of the mixer's output.
    pub post_attn: Option<Norm>,
    /// Norm before the MLP; with a parallel residual `None` means the MLP reads what the mixer reads.
    pub pre_mlp: Option<Norm>,
    /// Norm of the MLP's output.
    pub post_mlp: Option<Norm>,
    /// Mixing over time.
    pub mixer: Mixer,
    /// Mixing over channels.
    pub mlp: Mlp,
}

/// How the two halves of a layer add to the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Residual {
    /// The MLP sees the stream after the mixer.
    Sequential,
    /// Both see the stream before the layer.
    Parallel,
}

/// Mixing over time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Mixer {
    /// Softmax attention over cached keys and values.
    Attention(Attention),
    /// Softmax attention over a cached latent (arXiv 2405.04434), in absorbed form.
    Mla(Mla),
    /// Gated delta rule with a recurrent state (arXiv 2412.06464).
    GatedDeltaNet(GatedDeltaNet),
    /// Softmax attention over the patches of pictures; without pictures the layer does nothing.
    Cross(Cross),
}

/// Attention over the patches of pictures, q and k normed per head, both halves of the layer times a learnt factor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cross {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor on `q . k`.
    pub scale: f32,
    /// Of the norms of q and k.
    pub eps: f32,
}

/// Multi-head attention with grouped keys and values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor on `q . k`.
    pub scale: f32,
    /// Biases of q, k and v.
    pub qkv_bias: Bias,
    /// Bias of the output projection.
    pub out_bias: Bias,
    /// Norm of q and k before the rotation.
    pub qk_norm: Option<QkNorm>,
    /// Index into [`DecoderSpec::ropes`]; `None` for a layer without positions.
    pub rope: Option<usize>,
    /// A token sees itself and the `window - 1` before it.
    pub window: Option<usize>,
    /// `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Extra logit per head in the softmax denominator.
    pub sinks: Sinks,
    /// What multiplies the heads before the output projection.
    pub gate: OutputGate,
}

/// Norm of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct QkNorm {
    /// Added to the mean square.
    pub eps: f32,
    /// Over one head or over all.
    #[serde(serialize_with = "debug")]
    pub scope: NormScope,
}

/// Attention sinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Sinks {
    /// None.
    Absent,
    /// A learnt logit per head.
    PerHead,
}

/// Gate on the heads' outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum OutputGate {
    /// None.
    Absent,
    /// Times the sigmoid of its own projection of the layer's input.
    Sigmoid,
}

/// Multi-head latent attention.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mla {
    /// Heads.
    pub heads: usize,
    /// Width of the query latent; `None` projects queries directly.
    pub q_lora_rank: Option<usize>,
    /// Width of the cached latent.
    pub kv_lora_rank: usize,
    /// Elements of a head without positions.
    pub nope_dim: usize,
    /// Rotated elements of a head, shared by all heads on the key side.
    pub rope_dim: usize,
    /// Elements of a value head.
    pub v_dim: usize,
    /// Factor on `q . k`.
    pub scale: f32,
    /// Index into [`DecoderSpec::ropes`].
    pub rope: usize,
    /// Of the norms of both latents.
    pub eps: f32,
}

/// Gated delta net.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GatedDeltaNet {
    /// Key heads.
    pub k_heads: usize,
    /// Value heads, a multiple of the key heads.
    pub v_heads: usize,
    /// Elements of a key.
    pub k_dim: usize,
    /// Elements of a value.
    pub v_dim: usize,
    /// Taps of the causal convolution.
    pub conv_taps: usize,
    /// Of the gated norm of the output.
    pub eps: f32,
}

impl GatedDeltaNet {
    /// Channels of q, k and v together, which pass through the convolution.
    pub fn conv_channels(&self) -> usize {
        2 * self.k_heads * self.k_dim + self.v_heads * self.v_dim
    }
}

/// Mixing over channels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Mlp {
    /// `down(act(gate x) * up x)`.
    Gated(Dense),
    /// `down(act(up x))`.
    Plain(Dense),
    /// Routed experts.
    Moe(Moe),
}

/// Sizes of a dense MLP.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Dense {
    /// Width.
    pub inter: usize,
    /// Activation.
    #[serde(serialize_with = "debug")]
    pub act: Activation,
    /// Of all its matrices.
    pub bias: Bias,
}

/// A mixture of gated experts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Moe {
    /// Experts in all.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Sizes of one expert; `bias` also covers the router.
    pub expert: Dense,
    /// Scores.
    #[serde(serialize_with = "debug")]
    pub score: RouterScore,
    /// Whether a learnt bias is added to the scores for the choice.
    pub score_bias: Bias,
    /// Divide the chosen scores by their sum.
    pub renormalize: bool,
    /// Factor on the chosen scores.
    pub scaling: f32,
    /// (groups, groups kept).
    pub groups: Option<(usize, usize)>,
    /// Expert that every token passes.
    pub shared: Shared,
}

/// Expert that every token passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Shared {
    /// None.
    Absent,
    /// Added as it is; the width is given.
    Always(usize),
    /// Added times the sigmoid of a projection to one number; the width is given.
    Gated(usize),
}

impl Shared {
    /// Its width; 0 where there is none.
    pub fn inter(self) -> usize {
        match self {
            Self::Absent => 0,
            Self::Always(inter) | Self::Gated(inter) => inter,
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_zero(value: &usize) -> bool {
    *value == 0
}

fn debug<T: std::fmt::Debug, S: Serializer>(value: &T, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(&format_args!("{value:?}"))
}

/// Six digits on one line: enough to see a wrong frequency, few enough not to depend on the last bit of `powf`.
fn short_floats<S: Serializer>(values: &[f32], out: S) -> Result<S::Ok, S::Error> {
    let text: Vec<String> = values.iter().map(|value| format!("{value:.5e}")).collect();
    out.serialize_str(&text.join(" "))
}
