//! Layers that look at the patches of pictures: queries from the text, keys and values from a tower, both halves of the
//! layer times a learnt factor. A sequence without pictures passes them unchanged.

use std::ops::Range;

use candle_core::{D, Tensor};
use fastchat_kernels::Kernels;

use crate::ModelError;
use crate::layers::{CrossWeights, Layer};
use crate::spec::{Cross, LayerSpec};
use crate::step::Step;
use crate::vision::{CrossSequence, Media};

type Result<T> = std::result::Result<T, ModelError>;

/// One such layer in a step.
pub(crate) struct CrossLayer<'a> {
    pub spec: &'a LayerSpec,
    pub mixer: &'a Cross,
    pub layer: &'a Layer,
    pub weights: &'a CrossWeights,
    /// Among the layers of its kind.
    pub number: usize,
}

/// `[rows, heads * dim]`, each head normed.
fn normed_heads(kernels: &dyn Kernels, x: &Tensor, dim: usize, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let heads = x.reshape((rows * width / dim, dim))?;
    Ok(kernels.rms_norm(&heads, weight, eps)?.reshape((rows, width))?)
}

/// Keys `[kv_heads, dim, patches]` and values `[kv_heads, patches, dim]` of a tower's rows.
pub(crate) fn keys_and_values(
    kernels: &dyn Kernels,
    rows: &Tensor,
    spec: &Cross,
    weights: &CrossWeights,
) -> Result<(Tensor, Tensor)> {
    let (patches, dim, heads) = (rows.dim(0)?, spec.head_dim, spec.kv_heads);
    let both = kernels.linear(rows, &weights.kv)?;
    let half = |at: usize| Ok::<_, ModelError>(both.narrow(1, at * heads * dim, heads * dim)?.contiguous()?);
    let keys = normed_heads(kernels, &half(0)?, dim, &weights.k_norm.weight, spec.eps)?;
    let keys = keys.reshape((patches, heads, dim))?.permute((1, 2, 0))?.contiguous()?;
    let values = half(1)?.reshape((patches, heads, dim))?.transpose(0, 1)?.contiguous()?;
    Ok((keys, values))
}

impl CrossLayer<'_> {
    /// The stream after the layer.
    pub fn run(&self, step: &Step, stream: Tensor, media: &Media) -> Result<Tensor> {
        if media.looking.is_empty() {
            return Ok(stream);
        }
        let mut parts = Vec::new();
        let mut next = 0;
        for looking in &media.looking {
            let Range { start, end } = looking.rows.clone();
            if start > next {
                parts.push(stream.narrow(0, next, start - next)?);
            }
            parts.push(self.sequence(step, stream.narrow(0, start, end - start)?.contiguous()?, looking)?);
            next = end;
        }
        let rows = stream.dim(0)?;
        if next < rows {
            parts.push(stream.narrow(0, next, rows - next)?);
        }
        Ok(Tensor::cat(&parts, 0)?.contiguous()?)
    }

    fn sequence(&self, step: &Step, x: Tensor, looking: &CrossSequence) -> Result<Tensor> {
        let CrossWeights { q, q_norm, out, factors, .. } = self.weights;
        let norm = |x: &Tensor, norm| match norm {
            Some(norm) => step.norm(x, norm),
            None => Ok(x.clone()),
        };
        let input = step.linear(&norm(&x, self.layer.pre_attn.as_ref())?, q)?;
        let queries = normed_heads(step.kernels, &input, self.mixer.head_dim, &q_norm.weight, self.mixer.eps)?;
        let seen = self.attend(&queries, looking)?;
        let x = (x + (step.linear(&seen, out)? * f64::from(factors.0))?)?;
        let mixed = step.mlp(&norm(&x, self.layer.pre_mlp.as_ref())?, &self.spec.mlp, &self.layer.mlp)?;
        // A row that sees no picture takes nothing from the second half, as in the reference.
        let takes: Vec<f32> = looking.seen.iter().map(|seen| if seen.is_empty() { 0.0 } else { factors.1 }).collect();
        let takes = Tensor::from_vec(takes, (looking.seen.len(), 1), x.device())?;
        Ok((x + mixed.broadcast_mul(&takes)?)?)
    }

    /// `[rows, heads * dim]`.
    fn attend(&self, queries: &Tensor, looking: &CrossSequence) -> Result<Tensor> {
        let Cross { heads, kv_heads, head_dim: dim, scale, .. } = *self.mixer;
        let (rows, group) = (queries.dim(0)?, heads / kv_heads);
        let of = |i: usize| {
            looking.images[i].looked_at.get(self.number).ok_or_else(|| {
                ModelError::request(
                    "media",
                    format!("picture {i}"),
                    "it was made for a decoder that does not look at it",
                )
            })
        };
        let all = (0..looking.images.len()).map(of).collect::<Result<Vec<_>>>()?;
        let joined = |pick: fn(&(Tensor, Tensor)) -> &Tensor, dim: usize| -> Result<Tensor> {
            match all.as_slice() {
                [one] => Ok(pick(one).clone()),
                several => Ok(Tensor::cat(&several.iter().map(|pair| pick(pair)).collect::<Vec<_>>(), dim)?),
            }
        };
        let (keys, values) = (joined(|pair| &pair.0, 2)?, joined(|pair| &pair.1, 1)?);
        let patches = keys.dim(2)?;
        let q = queries.reshape((rows, kv_heads, group, dim))?.permute((1, 2, 0, 3))?;
        let q = q.contiguous()?.reshape((kv_heads, group * rows, dim))?;
        let scores = (q.matmul(&keys)? * f64::from(scale))?.reshape((heads, rows, patches))?;
        let scores = scores.broadcast_add(&Tensor::from_vec(mask(looking), (1, rows, patches), q.device())?)?;
        let exp = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let weights = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?.reshape((kv_heads, group * rows, patches))?;
        let out = weights.matmul(&values)?.reshape((heads, rows, dim))?.transpose(0, 1)?;
        Ok(out.contiguous()?.reshape((rows, heads * dim))?)
    }
}

/// `[rows, patches]`: 0 for what a row sees. One that sees no picture looks at all patches alike, as in the reference.
fn mask(looking: &CrossSequence) -> Vec<f32> {
    let mut mask = Vec::new();
    for seen in &looking.seen {
        for (i, image) in looking.images.iter().enumerate() {
            let patches = image.looked_at.first().map_or(0, |(_, values)| values.dims()[1]);
            let visible = if seen.is_empty() {
                patches
            } else if seen.contains(&i) {
                image.visible
            } else {
                0
            };
            mask.extend((0..patches).map(|patch| if patch < visible { 0.0 } else { f32::NEG_INFINITY }));
        }
    }
    mask
}
