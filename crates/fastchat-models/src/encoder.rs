//! The one encoder: runs any spec over flat batches of whole sequences through the kernels, and pools their rows. Knows
//! no model, no file and no request.

use std::sync::Arc;

use candle_core::Tensor;
use fastchat_kernels::{ForwardBatch, Kernels, Linear, Rope};

use crate::ModelError;
use crate::encoder_spec::{
    EncoderDescription, EncoderLayer, EncoderSpec, NormOrder, Pooling, Positions, ScoreActivation, Scorer,
};
use crate::layers::{AttentionWeights, Builder, MlpWeights, NormWeights};
use crate::names::Slot;
use crate::pooling::pool;
use crate::quantize::Quantize;
use crate::shard::Shard;
use crate::spec::Bias;
use crate::step::{Step, tables};
use crate::weights::{At, TensorMap, Weights};

type Result<T> = std::result::Result<T, ModelError>;

/// An encoder ready to run.
#[derive(Debug)]
pub struct Encoder {
    spec: EncoderSpec,
    pooling: Pooling,
    kernels: Arc<dyn Kernels>,
    max_model_len: usize,
    ropes: Vec<Rope>,
    weights: EncoderWeights,
}

#[derive(Debug)]
struct EncoderWeights {
    embed: Linear,
    positions: Option<Linear>,
    token_type: Option<Tensor>,
    embed_norm: NormWeights,
    layers: Vec<LayerWeights>,
    final_norm: Option<NormWeights>,
    scorer: Option<ScorerWeights>,
}

#[derive(Debug)]
struct ScorerWeights {
    /// `[2, hidden]`: what is added to the tokens of the first and of the second text.
    types: Option<Tensor>,
    dense: Linear,
    out: Linear,
}

/// Two texts as one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// Both texts, framed.
    pub ids: &'a [u32],
    /// Where the second begins.
    pub second: usize,
}

#[derive(Debug)]
struct LayerWeights {
    attn_norm: Option<NormWeights>,
    attention: AttentionWeights,
    mlp_norm: NormWeights,
    mlp: MlpWeights,
}

impl Encoder {
    pub(crate) fn new(
        description: EncoderDescription,
        pooling: Pooling,
        tensors: &TensorMap,
        kernels: Arc<dyn Kernels>,
        (max_model_len, quantize): (usize, Option<Quantize>),
    ) -> Result<Self> {
        let EncoderDescription { spec, names } = description;
        let ropes = tables(&spec.ropes);
        let weights = Weights::new(tensors, &names, quantize);
        let builder = Builder {
            weights,
            kernels: kernels.as_ref(),
            hidden: spec.hidden_size,
            ropes: &ropes,
            shard: Shard::ALONE,
        };
        let weights = build(&builder, &spec)?;
        Ok(Self { spec, pooling, kernels, max_model_len, ropes, weights })
    }

    /// What is computed.
    pub fn spec(&self) -> &EncoderSpec {
        &self.spec
    }

    /// How rows become one vector.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Longest sequence that is served.
    pub fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    /// Hidden states f32 `[tokens, hidden]` of whole sequences, one after the other.
    ///
    /// # Errors
    /// An empty or too long sequence, a token that the vocabulary lacks, or the device's error.
    pub fn forward(&self, sequences: &[&[u32]]) -> Result<Tensor> {
        self.run(sequences, None)
    }

    /// `types` has a 0 or 1 for each token of a pair.
    fn run(&self, sequences: &[&[u32]], types: Option<&Tensor>) -> Result<Tensor> {
        let batch = self.batch(sequences)?;
        let plan = self.kernels.plan(&batch, &self.ropes)?;
        let step = Step { kernels: self.kernels.as_ref(), plan: &plan };
        let mut x = step.norm(&self.embed(&batch, types)?, &self.weights.embed_norm)?;
        for (spec, layer) in self.spec.layers.iter().zip(&self.weights.layers) {
            x = self.layer(&step, &x, spec, layer)?;
        }
        match &self.weights.final_norm {
            Some(norm) => step.norm(&x, norm),
            None => Ok(x),
        }
    }

    /// One vector per sequence.
    ///
    /// # Errors
    /// As `forward`.
    pub fn embeddings(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        if sequences.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.forward(sequences)?.to_vec2::<f32>()?;
        let mut rest = rows.as_slice();
        let mut vectors = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let (own, after) = rest.split_at(sequence.len());
            vectors.push(pool(own, self.pooling));
            rest = after;
        }
        Ok(vectors)
    }

    /// Whether this is a cross-encoder, which makes scores and no vectors.
    pub fn makes_scores(&self) -> bool {
        self.weights.scorer.is_some()
    }

    /// How well the second text of each pair answers the first.
    ///
    /// # Errors
    /// As `forward`, and without a head that scores.
    pub fn scores(&self, pairs: &[Pair]) -> Result<Vec<f32>> {
        let (Some(spec), Some(weights)) = (self.spec.scorer, &self.weights.scorer) else {
            return Err(ModelError::request("pairs", pairs.len(), "this model has no head that scores"));
        };
        if pairs.is_empty() {
            return Ok(Vec::new());
        }
        let sequences: Vec<&[u32]> = pairs.iter().map(|pair| pair.ids).collect();
        let device = self.kernels.device();
        let types = pairs.iter().flat_map(|pair| (0..pair.ids.len()).map(|at| u32::from(at >= pair.second)));
        let types = types.collect::<Vec<u32>>();
        let count = types.len();
        let types = weights
            .types
            .as_ref()
            .map(|table| -> Result<Tensor> { Ok(table.index_select(&Tensor::from_vec(types, count, device)?, 0)?) });
        let states = self.run(&sequences, types.transpose()?.as_ref())?;
        let first = sequences.iter().scan(0, |start, ids| {
            let own = *start;
            *start += ids.len() as u32;
            Some(own)
        });
        let first = Tensor::from_vec(first.collect::<Vec<u32>>(), sequences.len(), device)?;
        let rows = self.kernels.linear(&states.index_select(&first, 0)?, &weights.dense)?.tanh()?;
        let scores = self.kernels.linear(&rows, &weights.out)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(match spec.activation {
            ScoreActivation::Identity => scores,
            ScoreActivation::Sigmoid => scores.into_iter().map(|x| (1. + (-x).exp()).recip()).collect(),
        })
    }

    fn batch(&self, sequences: &[&[u32]]) -> Result<ForwardBatch> {
        let mut batch = ForwardBatch { query_start: vec![0], ..ForwardBatch::default() };
        for sequence in sequences {
            if sequence.is_empty() || sequence.len() > self.max_model_len {
                let limit = format!("a sequence has 1 to {} tokens", self.max_model_len);
                return Err(ModelError::request("sequence", format!("{} tokens", sequence.len()), limit));
            }
            batch.token_ids.extend_from_slice(sequence);
            batch.positions.extend(0..sequence.len() as u32);
            batch.query_start.push(batch.token_ids.len() as u32);
            batch.context_lens.push(sequence.len() as u32);
        }
        match batch.token_ids.iter().find(|&&id| id as usize >= self.spec.vocab_size) {
            Some(id) => {
                let limit = format!("the vocabulary has {} tokens", self.spec.vocab_size);
                Err(ModelError::request("token_ids", id, limit))
            }
            None => Ok(batch),
        }
    }

    fn embed(&self, batch: &ForwardBatch, types: Option<&Tensor>) -> Result<Tensor> {
        let mut x = self.kernels.embed(&self.weights.embed, &batch.token_ids)?;
        if let Some(rows) = types {
            x = (x + rows)?;
        } else if let Some(row) = &self.weights.token_type {
            x = x.broadcast_add(row)?;
        }
        if let (Some(table), Positions::Learned { first, .. }) = (&self.weights.positions, self.spec.positions) {
            let rows: Vec<u32> = batch.positions.iter().map(|position| position + first as u32).collect();
            x = (x + self.kernels.embed(table, &rows)?)?;
        }
        Ok(x)
    }

    fn layer(&self, step: &Step, x: &Tensor, spec: &EncoderLayer, w: &LayerWeights) -> Result<Tensor> {
        let attend = |x: &Tensor| -> Result<Tensor> {
            let AttentionWeights { qkv, out, qkv_spec, attention, .. } = &w.attention;
            let (qkv, all) = (step.linear(x, qkv)?, 0..x.dim(0)?);
            step.linear(&self.kernels.full_attention(&qkv, qkv_spec, attention, step.plan, all)?, out)
        };
        let normed = |x: &Tensor| match &w.attn_norm {
            Some(norm) => step.norm(x, norm),
            None => Ok(x.clone()),
        };
        match spec.order {
            NormOrder::Pre => {
                let x = (x + attend(&normed(x)?)?)?;
                Ok((&x + step.mlp(&step.norm(&x, &w.mlp_norm)?, &spec.mlp, &w.mlp)?)?)
            }
            NormOrder::Post => {
                let x = normed(&(x + attend(x)?)?)?;
                step.norm(&(&x + step.mlp(&x, &spec.mlp, &w.mlp)?)?, &w.mlp_norm)
            }
        }
    }
}

/// Fills every slot of an encoder; tensors that fill none are an error.
fn build(builder: &Builder, spec: &EncoderSpec) -> Result<EncoderWeights> {
    let (at, hidden) = (At::default(), spec.hidden_size);
    let layer = |(index, layer): (usize, &EncoderLayer)| -> Result<LayerWeights> {
        let at = At { layer: index, part: 0 };
        let (attn_slot, mlp_slot) = match layer.order {
            NormOrder::Pre => (Slot::PreAttn, Slot::PreMlp),
            NormOrder::Post => (Slot::PostAttn, Slot::PostMlp),
        };
        Ok(LayerWeights {
            attn_norm: layer.attn_norm.map(|norm| builder.norm(norm, attn_slot, at, hidden)).transpose()?,
            attention: builder.attention(&layer.attention, at)?,
            mlp_norm: builder.norm(layer.mlp_norm, mlp_slot, at, hidden)?,
            mlp: builder.mlp(&layer.mlp, at)?,
        })
    };
    let weights = EncoderWeights {
        embed: builder.pack(&[(Slot::Embed, spec.vocab_size)], at, hidden, Bias::Absent)?,
        positions: match spec.positions {
            Positions::Rotary => None,
            Positions::Learned { rows, .. } => {
                Some(builder.pack(&[(Slot::Positions, rows)], at, hidden, Bias::Absent)?)
            }
        },
        token_type: match spec.token_type {
            Bias::Absent => None,
            Bias::Present => {
                let row = builder.weights.matrix(Slot::TokenType, at, 1, hidden)?.to_f32()?;
                Some(Tensor::from_vec(row, hidden, builder.device())?)
            }
        },
        embed_norm: builder.norm(spec.embed_norm, Slot::EmbedNorm, at, hidden)?,
        layers: spec.layers.iter().enumerate().map(layer).collect::<Result<_>>()?,
        final_norm: spec.final_norm.map(|norm| builder.norm(norm, Slot::FinalNorm, at, hidden)).transpose()?,
        scorer: spec.scorer.map(|scorer| score_head(builder, scorer)).transpose()?,
    };
    builder.weights.finish()?;
    Ok(weights)
}

fn score_head(builder: &Builder, scorer: Scorer) -> Result<ScorerWeights> {
    let (at, hidden) = (At::default(), builder.hidden);
    let types = match scorer.second_type {
        Bias::Absent => None,
        Bias::Present => {
            let mut rows = builder.weights.matrix(Slot::TokenType, at, 1, hidden)?.to_f32()?;
            rows.extend(builder.weights.matrix(Slot::SecondType, at, 1, hidden)?.to_f32()?);
            Some(Tensor::from_vec(rows, (2, hidden), builder.device())?)
        }
    };
    Ok(ScorerWeights {
        types,
        dense: builder.pack(&[(Slot::ScoreDense, hidden)], at, hidden, Bias::Present)?,
        out: builder.pack(&[(Slot::ScoreOut, 1)], at, hidden, Bias::Present)?,
    })
}
