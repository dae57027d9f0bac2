//! Routed experts: tokens are gathered per active expert, so that each expert's weights are read once per step.

use std::sync::OnceLock;

use candle_core::{Result, Tensor};

use super::CpuKernels;
use super::host::slice;
use crate::ops::moe::{check, route};
use crate::{Kernels, MoeSpec, MoeWeights};

/// Active experts per thread from which each is computed by one thread.
const EXPERTS_PER_THREAD: usize = 4;

/// The tokens that chose an expert, ascending, and with what weight.
#[derive(Clone, Default)]
struct Chosen {
    rows: Vec<usize>,
    factors: Vec<f32>,
}

/// Experts are visited in ascending order and add to their tokens in that order, whoever else is in the batch.
pub(super) fn moe(kernels: &CpuKernels, x: &Tensor, spec: &MoeSpec, weights: &MoeWeights) -> Result<Tensor> {
    check(spec, weights)?;
    let (tokens, hidden) = x.dims2()?;
    let x = x.contiguous()?;
    let mut chosen = vec![Chosen::default(); spec.num_experts];
    {
        let logits = kernels.linear(&x, &weights.router)?;
        let (storage, layout) = logits.storage_and_layout();
        let bias = weights.score_bias.as_ref().map(Tensor::to_vec1::<f32>).transpose()?;
        for (token, logits) in slice::<f32>(&storage, layout)?.chunks_exact(spec.num_experts).enumerate() {
            for (expert, factor) in route(logits, bias.as_deref(), spec) {
                chosen[expert].rows.push(token);
                chosen[expert].factors.push(factor);
            }
        }
    }
    let compute = |expert: usize| {
        let rows = &chosen[expert].rows;
        // An expert that all tokens chose needs no copy.
        let input = if rows.len() == tokens { x.clone() } else { gather(&x, rows, hidden)? };
        let inner = kernels.gated_linear(&input, &weights.gate_up[expert], spec.act)?;
        kernels.linear(&inner, &weights.down[expert])
    };
    let active: Vec<usize> = (0..spec.num_experts).filter(|&expert| !chosen[expert].rows.is_empty()).collect();
    // Many small experts: each to one thread, whose operations inside of it nobody waits for. One that has much of the work
    // would keep its thread busy when the others are done.
    let apart: Vec<OnceLock<Result<Tensor>>> = active.iter().map(|_| OnceLock::new()).collect();
    let largest = active.iter().map(|&expert| chosen[expert].rows.len()).max().unwrap_or(0);
    let even = 2 * largest * kernels.threads() <= tokens * spec.top_k;
    if even && active.len() >= EXPERTS_PER_THREAD * kernels.threads() {
        kernels.pool.run(active.len(), &|i| {
            apart[i].get_or_init(|| compute(active[i]));
        });
    }
    let mut out = vec![0.; tokens * hidden];
    for (&expert, apart) in active.iter().zip(apart) {
        let Chosen { rows, factors } = &chosen[expert];
        let y = apart.into_inner().unwrap_or_else(|| compute(expert))?;
        let (storage, layout) = y.storage_and_layout();
        let y = slice::<f32>(&storage, layout)?;
        for ((y, &row), factor) in y.chunks_exact(hidden).zip(rows).zip(factors) {
            for (out, y) in out[row * hidden..][..hidden].iter_mut().zip(y) {
                *out += y * factor;
            }
        }
    }
    Tensor::from_vec(out, (tokens, hidden), x.device())
}

fn gather(x: &Tensor, rows: &[usize], hidden: usize) -> Result<Tensor> {
    let (storage, layout) = x.storage_and_layout();
    let x_slice = slice::<f32>(&storage, layout)?;
    let mut gathered = Vec::with_capacity(rows.len() * hidden);
    for &row in rows {
        gathered.extend_from_slice(&x_slice[row * hidden..][..hidden]);
    }
    Tensor::from_vec(gathered, (rows.len(), hidden), x.device())
}
