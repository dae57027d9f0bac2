//! A tower's layer in pieces, so that a large picture holds up nobody for long: rows go through matrices by themselves,
//! through attention head by head and of a large head some rows at a time; no way of cutting changes a bit of a result.

use std::ops::Range;
use std::time::Instant;

use candle_core::Tensor;
use fastchat_kernels::{AttentionSpec, QkvSpec};

use super::spec::VisionLayer;
use super::weights::LayerWeights;
use crate::ModelError;
use crate::layers::AttentionWeights;
use crate::spec::Mlp;
use crate::step::Step;

type Result<T> = std::result::Result<T, ModelError>;

/// Multiplications of a piece: some 50 ms of two threads with AVX-512.
pub(crate) const PIECE: usize = 1 << 32;
/// Of a part of a piece, after which the clock is looked at: some 6 ms.
const PART: usize = 1 << 29;
/// Rows below which matrices are read for too little.
const LEAST_ROWS: usize = 64;
/// What a multiplication of attention, in f32, costs beside one of a packed matrix.
const ATTENTION: usize = 2;

/// How much to do at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub multiplications: usize,
    /// When to have stopped, if that is sooner.
    pub until: Option<Instant>,
}

/// A layer on its way.
#[derive(Debug, Default)]
pub(crate) struct LayerRun {
    stage: Stage,
    /// Rows of the stage that are done, in attention those of one head after the other.
    done: usize,
    parts: Vec<Tensor>,
    /// Rows of a head of which some are missing.
    head: Vec<Tensor>,
}

#[derive(Debug, Default)]
enum Stage {
    /// To q, k and v, by rows.
    #[default]
    Inputs,
    /// Mixing them, by heads.
    Heads(Tensor),
    /// The output projection of what was mixed, and the MLP, by rows.
    Rest(Tensor),
}

impl LayerRun {
    /// Whether nothing is done yet.
    pub fn is_new(&self) -> bool {
        self.done == 0 && matches!(self.stage, Stage::Inputs)
    }

    /// About what `budget` allows of the layer over `x`, a part at least; its output once all is done.
    pub fn advance(
        &mut self,
        step: &Step,
        x: &Tensor,
        (spec, w): (&VisionLayer, &LayerWeights),
        budget: Budget,
    ) -> Result<Option<Tensor>> {
        let (rows, heads) = (x.dim(0)?, w.attention.qkv_spec.num_kv_heads);
        let mut left = budget.multiplications;
        loop {
            let (all, cost) = match self.stage {
                Stage::Inputs => (rows, input_cost(spec)),
                Stage::Heads(_) => (heads * rows, head_cost(step, spec).div_ceil(rows)),
                Stage::Rest(_) => (rows, rest_cost(spec)),
            };
            let began = budget.until.map(|_| Instant::now());
            let part = if budget.until.is_some() { left.min(PART) } else { left };
            let mut count = (part / cost).max(LEAST_ROWS).min(all - self.done);
            let range = self.done..self.done + count;
            match &self.stage {
                Stage::Inputs => {
                    let normed = step.norm(&cut(x, 0, &range)?, &w.attn_norm)?;
                    self.parts.push(step.linear(&normed, &w.attention.qkv)?);
                }
                Stage::Heads(qkv) => {
                    let (of_head, start) = (range.start % rows, range.start / rows);
                    if of_head == 0 && count >= rows {
                        count -= count % rows;
                        self.parts.push(mixed(step, qkv, &w.attention, (start..start + count / rows, 0..rows))?);
                    } else {
                        count = count.min(rows - of_head);
                        let asked = of_head..of_head + count;
                        self.head.push(mixed(step, qkv, &w.attention, (start..start + 1, asked))?);
                        if of_head + count == rows {
                            self.parts.push(joined(&std::mem::take(&mut self.head), 0)?);
                        }
                    }
                }
                Stage::Rest(mixed) => {
                    self.parts.push(rest(step, &cut(x, 0, &range)?, &cut(mixed, 0, &range)?, (spec, w))?);
                }
            }
            self.done += count;
            if self.done == all {
                self.done = 0;
                let parts = std::mem::take(&mut self.parts);
                self.stage = match self.stage {
                    Stage::Inputs => Stage::Heads(joined(&parts, 0)?),
                    Stage::Heads(_) => Stage::Rest(joined(&parts, 1)?),
                    Stage::Rest(_) => return joined(&parts, 0).map(Some),
                };
            }
            left = left.saturating_sub(count.saturating_mul(cost));
            // Another part would take about as long.
            let over =
                |(until, began): (Instant, Instant)| began.elapsed() > until.saturating_duration_since(Instant::now());
            if left == 0 || budget.until.zip(began).is_some_and(over) {
                return Ok(None);
            }
        }
    }
}

/// Multiplications of a row on its way to q, k and v.
fn input_cost(spec: &VisionLayer) -> usize {
    let a = &spec.attention;
    (a.heads * a.head_dim).saturating_mul((a.heads + 2 * a.kv_heads) * a.head_dim)
}

/// Of a head of keys, and of the heads of queries that read it, over all sequences.
fn head_cost(step: &Step, spec: &VisionLayer) -> usize {
    let starts = &step.plan.batch.query_start;
    let pairs: usize = starts.windows(2).map(|ends| (ends[1] - ends[0]) as usize).map(|len| len * len).sum();
    let group = spec.attention.heads / spec.attention.kv_heads.max(1);
    pairs.saturating_mul(2 * ATTENTION * group * spec.attention.head_dim).max(1)
}

/// Of a row after attention.
fn rest_cost(spec: &VisionLayer) -> usize {
    let hidden = spec.attention.heads * spec.attention.head_dim;
    let inner = match &spec.mlp {
        Mlp::Gated(dense) => 3 * dense.inter,
        Mlp::Plain(dense) => 2 * dense.inter,
        Mlp::Moe(moe) => 3 * moe.expert.inter * moe.top_k,
    };
    hidden.saturating_mul(hidden + inner)
}

/// Rows `asked` of attention by the heads of keys `heads`: `[asked, query heads * head_dim]`.
fn mixed(
    step: &Step,
    qkv: &Tensor,
    w: &AttentionWeights,
    (heads, asked): (Range<usize>, Range<usize>),
) -> Result<Tensor> {
    let (all, attention) = (&w.qkv_spec, &w.attention);
    if heads.len() == all.num_kv_heads {
        return Ok(step.kernels.full_attention(qkv, all, attention, step.plan, asked)?);
    }
    let (width, group) = (all.head_dim, all.num_heads / all.num_kv_heads);
    let of = |before: usize, heads: Range<usize>| {
        cut(qkv, 1, &((before + heads.start) * width..(before + heads.end) * width))
    };
    let q = of(0, heads.start * group..heads.end * group)?;
    let (k, v) = (of(all.num_heads, heads.clone())?, of(all.num_heads + all.num_kv_heads, heads.clone())?);
    let own = Tensor::cat(&[q, k, v], 1)?;
    let num_heads = heads.len() * group;
    let parts = QkvSpec { num_heads, num_kv_heads: heads.len(), ..all.clone() };
    let attention = AttentionSpec { num_heads, ..attention.clone() };
    Ok(step.kernels.full_attention(&own, &parts, &attention, step.plan, asked)?)
}

/// The halves of the layer after attention.
fn rest(step: &Step, x: &Tensor, mixed: &Tensor, (spec, w): (&VisionLayer, &LayerWeights)) -> Result<Tensor> {
    let scaled = |x: Tensor, factor: Option<f32>| match factor {
        Some(factor) => x * f64::from(factor),
        None => Ok(x),
    };
    let mixed = step.linear(mixed, &w.attention.out)?;
    let x = (x + scaled(mixed, w.factors.map(|factors| factors.0))?)?;
    let out = step.mlp(&step.norm(&x, &w.mlp_norm)?, &spec.mlp, &w.mlp)?;
    Ok((&x + scaled(out, w.factors.map(|factors| factors.1))?)?)
}

fn cut(x: &Tensor, dim: usize, range: &Range<usize>) -> Result<Tensor> {
    if range.len() == x.dim(dim)? { Ok(x.clone()) } else { Ok(x.narrow(dim, range.start, range.len())?) }
}

fn joined(parts: &[Tensor], dim: usize) -> Result<Tensor> {
    match parts {
        [whole] => Ok(whole.clone()),
        _ => Ok(Tensor::cat(parts, dim)?.contiguous()?),
    }
}
