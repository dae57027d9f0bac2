//! What an encoder is, as closed data: the decoder's attention and MLP in layers that see both directions. Knows no model
//! names, files or tensors; `encoder` runs it.

use serde::Serialize;

use crate::names::Names;
use crate::spec::{Attention, Bias, Mlp, Norm, RopeSpec};

/// A whole encoder: tokens to hidden states.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EncoderSpec {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Longest sequence the positions were made for.
    pub max_positions: usize,
    /// How tokens know where they stand.
    pub positions: Positions,
    /// Whether one learnt row is added to every token.
    pub token_type: Bias,
    /// Norm of the embeddings.
    pub embed_norm: Norm,
    /// Norm after the last layer.
    pub final_norm: Option<Norm>,
    /// The distinct rope tables; layers refer to them by index.
    pub ropes: Vec<RopeSpec>,
    /// One entry per layer, in order.
    pub layers: Vec<EncoderLayer>,
    /// What makes a score of two texts; without it hidden states become vectors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scorer: Option<Scorer>,
}

/// From the first row to one number: dense, tanh, out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Scorer {
    /// Whether the second text of a pair has a row of its own added to its tokens.
    pub second_type: Bias,
    /// What the number goes through.
    pub activation: ScoreActivation,
}

/// What a score goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ScoreActivation {
    /// Nothing.
    Identity,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
}

/// How tokens know where they stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Positions {
    /// By the layers' ropes alone.
    Rotary,
    /// By a learnt row per position.
    Learned {
        /// Rows of the table.
        rows: usize,
        /// Row of the first token.
        first: usize,
    },
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EncoderLayer {
    /// Where the norms stand.
    pub order: NormOrder,
    /// Norm of the attention half; `None` where its input is normed already.
    pub attn_norm: Option<Norm>,
    /// Norm of the MLP half.
    pub mlp_norm: Norm,
    /// Mixing over all tokens; a window reaches `window - 1` tokens to either side.
    pub attention: Attention,
    /// Mixing over channels.
    pub mlp: Mlp,
}

/// Where the norms of a layer stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum NormOrder {
    /// `x + half(norm(x))`.
    Pre,
    /// `norm(x + half(x))`.
    Post,
}

/// From hidden states to one vector per sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pooling {
    /// What is taken of a sequence.
    pub mode: PoolingMode,
    /// Whether the vector is brought to length one.
    pub normalize: bool,
}

/// What is taken of a sequence's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum PoolingMode {
    /// The first row.
    Cls,
    /// The last row.
    Last,
    /// Their mean.
    Mean,
    /// Their sum over the root of their number.
    MeanSqrtLen,
    /// The largest of each column.
    Max,
}

impl PoolingMode {
    /// Whether the row at `position` of a sequence of `len` decides anything.
    pub(crate) fn needs(self, position: usize, len: usize) -> bool {
        match self {
            Self::Cls => position == 0,
            Self::Last => position + 1 == len,
            Self::Mean | Self::MeanSqrtLen | Self::Max => true,
        }
    }
}

/// A spec and the names of its tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderDescription {
    /// What to compute.
    pub spec: EncoderSpec,
    /// From which tensors.
    pub names: Names,
}

impl EncoderDescription {
    /// Edits every layer.
    pub fn layers(&mut self, mut edit: impl FnMut(usize, &mut EncoderLayer)) {
        self.spec.layers.iter_mut().enumerate().for_each(|(i, layer)| edit(i, layer));
    }
}
