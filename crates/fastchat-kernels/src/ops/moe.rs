//! Mixtures of experts: the choice of experts and the grouped computation, over the other operations of a backend.

use candle_core::{DType, Result, Tensor, bail};

use super::{Activation, Kernels};
use crate::Linear;

/// How router logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterScore {
    /// Softmax over all experts, then top k.
    Softmax,
    /// Top k of the logits, then softmax over those (gpt-oss).
    SoftmaxTopK,
    /// Sigmoid per expert (DeepSeek-V3).
    Sigmoid,
}

/// How tokens choose experts.
#[derive(Clone, Debug)]
pub struct MoeSpec {
    /// Experts in all.
    pub num_experts: usize,
    /// Experts per token. Of equal scores the lower expert wins.
    pub top_k: usize,
    /// Scores.
    pub score: RouterScore,
    /// Divide the chosen scores by their sum.
    pub renormalize: bool,
    /// Factor on the chosen scores.
    pub scaling: f32,
    /// (groups, groups kept): experts outside the best groups are not chosen. A group is as good as the sum of its two
    /// best biased scores (arXiv 2412.19437), or with `RouterScore::Softmax` as its best one (arXiv 2405.04434).
    pub groups: Option<(usize, usize)>,
    /// Expert activation.
    pub act: Activation,
}

/// Weights of a mixture.
#[derive(Clone, Debug)]
pub struct MoeWeights {
    /// Router `[experts, hidden]`, with bias where the model has one.
    pub router: Linear,
    /// f32 `[experts]` added to the scores for the choice only (DeepSeek-V3).
    pub score_bias: Option<Tensor>,
    /// Per expert: gate and up stacked `[2 * inter, hidden]`.
    pub gate_up: Vec<Linear>,
    /// Per expert `[hidden, inter]`.
    pub down: Vec<Linear>,
}

/// Experts are visited in ascending order and add to their tokens in that order, whoever else is in the batch.
pub(crate) fn moe(kernels: &dyn Kernels, x: &Tensor, spec: &MoeSpec, weights: &MoeWeights) -> Result<Tensor> {
    let (tokens, hidden) = x.dims2()?;
    check(spec, weights)?;
    let logits = kernels.linear(x, &weights.router)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    let bias = weights.score_bias.as_ref().map(Tensor::to_vec1::<f32>).transpose()?;
    // Per expert: the tokens that chose it and with what weight.
    let mut chosen = vec![(Vec::new(), Vec::new()); spec.num_experts];
    for (token, logits) in logits.iter().enumerate() {
        for (expert, weight) in route(logits, bias.as_deref(), spec) {
            chosen[expert].0.push(token as u32);
            chosen[expert].1.push(weight);
        }
    }
    let mut out = Tensor::zeros((tokens, hidden), x.dtype(), x.device())?;
    for (expert, (rows, factors)) in chosen.into_iter().enumerate().filter(|(_, (rows, _))| !rows.is_empty()) {
        let factors = Tensor::from_vec(factors, (rows.len(), 1), x.device())?.to_dtype(x.dtype())?;
        let count = rows.len();
        let rows = Tensor::from_vec(rows, count, x.device())?;
        let inner = kernels.linear(&x.index_select(&rows, 0)?, &weights.gate_up[expert])?;
        let inner = kernels.gated_act(&inner, spec.act)?;
        let y = kernels.linear(&inner, &weights.down[expert])?.broadcast_mul(&factors)?;
        out = out.index_add(&rows, &y, 0)?;
    }
    Ok(out)
}

/// Refuses weights and routing that do not fit together.
pub(crate) fn check(spec: &MoeSpec, weights: &MoeWeights) -> Result<()> {
    let MoeSpec { num_experts, top_k, .. } = *spec;
    if weights.gate_up.len() != num_experts || weights.down.len() != num_experts {
        bail!("{num_experts} experts, {} gate_up and {} down", weights.gate_up.len(), weights.down.len());
    }
    if top_k == 0 || top_k > num_experts {
        bail!("top_k {top_k} of {num_experts} experts");
    }
    if let Some((groups, kept)) = spec.groups {
        let fits = groups > 0 && num_experts.is_multiple_of(groups) && kept <= groups;
        if !fits || kept * (num_experts / groups) < top_k {
            bail!("{kept} of {groups} groups of {num_experts} experts do not hold top_k {top_k}");
        }
    }
    Ok(())
}

/// The experts of one token and their weights.
pub(crate) fn route(logits: &[f32], bias: Option<&[f32]>, spec: &MoeSpec) -> Vec<(usize, f32)> {
    let scores = match spec.score {
        RouterScore::Softmax => softmax(logits),
        RouterScore::SoftmaxTopK => logits.to_vec(),
        RouterScore::Sigmoid => logits.iter().map(|&x| 1. / (1. + (-x).exp())).collect(),
    };
    let biased = |expert: usize| scores[expert] + bias.map_or(0., |bias| bias[expert]);
    let mut candidates: Vec<usize> = (0..scores.len()).collect();
    if let Some((groups, kept)) = spec.groups {
        let size = scores.len() / groups;
        let best = if spec.score == RouterScore::Softmax { 1 } else { 2 };
        let goodness = |group: usize| -> f32 {
            let mut members: Vec<f32> = (group * size..(group + 1) * size).map(biased).collect();
            members.sort_by(|a, b| b.total_cmp(a));
            members.iter().take(best).sum()
        };
        let goodness: Vec<f32> = (0..groups).map(goodness).collect();
        let mut order: Vec<usize> = (0..groups).collect();
        order.sort_by(|&a, &b| goodness[b].total_cmp(&goodness[a]));
        candidates.retain(|expert| order[..kept].contains(&(expert / size)));
    }
    // Both sorts are stable: of equals the lower index comes first.
    candidates.sort_by(|&a, &b| biased(b).total_cmp(&biased(a)));
    candidates.truncate(spec.top_k);
    let mut factors: Vec<f32> = candidates.iter().map(|&expert| scores[expert]).collect();
    if spec.score == RouterScore::SoftmaxTopK {
        factors = softmax(&factors);
    }
    if spec.renormalize {
        // DeepSeek-V3's guard against a sum of zero.
        let sum = factors.iter().sum::<f32>() + 1e-20;
        for factor in &mut factors {
            *factor /= sum;
        }
    }
    candidates.into_iter().zip(factors.into_iter().map(|factor| factor * spec.scaling)).collect()
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f32> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f32 = exp.iter().sum();
    exp.into_iter().map(|x| x / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::{Activation, MoeSpec, RouterScore, route};

    fn spec(score: RouterScore) -> MoeSpec {
        MoeSpec {
            num_experts: 4,
            top_k: 2,
            score,
            renormalize: false,
            scaling: 1.,
            groups: None,
            act: Activation::Silu,
        }
    }

    fn assert_route(logits: &[f32], bias: Option<&[f32]>, spec: &MoeSpec, expected: &[(usize, f32)]) {
        let routed = route(logits, bias, spec);
        assert_eq!(routed.len(), expected.len());
        for (a, e) in routed.iter().zip(expected) {
            assert!(a.0 == e.0 && (a.1 - e.1).abs() < 1e-6, "{routed:?} is not {expected:?}");
        }
    }

    #[test]
    fn softmax_before_and_after_the_choice() {
        // exp of the logits: 1, 2, 3, 4.
        let logits = [0., 2f32.ln(), 3f32.ln(), 4f32.ln()];
        assert_route(&logits, None, &spec(RouterScore::Softmax), &[(3, 0.4), (2, 0.3)]);
        assert_route(&logits, None, &spec(RouterScore::SoftmaxTopK), &[(3, 4. / 7.), (2, 3. / 7.)]);
        let spec = MoeSpec { renormalize: true, scaling: 7., ..spec(RouterScore::Softmax) };
        assert_route(&logits, None, &spec, &[(3, 4.), (2, 3.)]);
    }

    #[test]
    fn of_equals_the_lower_expert_wins() {
        assert_route(&[0.; 4], None, &spec(RouterScore::Softmax), &[(0, 0.25), (1, 0.25)]);
    }

    #[test]
    fn bias_moves_the_choice_but_not_the_weight() {
        // Sigmoids 0.2, 0.4, 0.6, 0.8.
        let logits = [0.25f32.ln(), (2f32 / 3.).ln(), 1.5f32.ln(), 4f32.ln()];
        let bias = [1., 0., 0., 0.];
        assert_route(&logits, Some(&bias), &spec(RouterScore::Sigmoid), &[(0, 0.2), (3, 0.8)]);
    }

    #[test]
    fn groups_are_ranked_by_their_two_best_or_their_best() {
        // Groups {0, 1} and {2, 3}: the first has the better sum, the second the best single expert.
        let logits = [1.5f32.ln(), 1.5f32.ln(), 0.25f32.ln(), 4f32.ln()];
        let sigmoid = MoeSpec { groups: Some((2, 1)), ..spec(RouterScore::Sigmoid) };
        assert_route(&logits, None, &sigmoid, &[(0, 0.6), (1, 0.6)]);
        let softmax = MoeSpec { groups: Some((2, 1)), ..spec(RouterScore::Softmax) };
        assert_route(&logits, None, &softmax, &[(3, 4. / 7.25), (2, 0.25 / 7.25)]);
    }
}
