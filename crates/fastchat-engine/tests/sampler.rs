//! The sampler against a naive one that sorts everything in f64.
#![allow(clippy::unwrap_used, clippy::float_cmp)] // a test may fail loudly; equal here means the same bits

use std::sync::Arc;

use candle_core::{Device, Tensor};
use fastchat_engine::SamplingParams;
use fastchat_engine::rng::{choice_seed, uniform};
use fastchat_engine::sampler::{ChoiceSampler, NothingToSample, Sampler, log_softmax_into, logprobs};
use fastchat_kernels::{DefaultKernels, Kernels};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// The history of a choice and the row it samples from.
#[derive(Clone, Debug)]
struct Case {
    row: Vec<f32>,
    params: SamplingParams,
    prompt: Vec<u32>,
    output: Vec<u32>,
    stops: Vec<u32>,
    allowed: Option<Vec<u32>>,
}

impl Case {
    fn choice(&self, seed: u64) -> ChoiceSampler {
        let mut choice =
            ChoiceSampler::new(Arc::new(self.params.clone()), seed, &self.prompt, self.stops.clone().into());
        self.output.iter().for_each(|&token| choice.record(token));
        choice
    }

    /// Logits after masks, bias and penalties, by the book.
    fn changed(&self) -> Vec<f64> {
        let p = &self.params;
        let bits = |id: usize| self.allowed.as_ref().is_none_or(|words| words[id / 32] >> (id % 32) & 1 == 1);
        let change = |(id, &logit): (usize, &f32)| {
            let token = id as u32;
            let barred = self.output.len() < p.min_tokens as usize && self.stops.contains(&token);
            if barred || !bits(id) {
                return f64::NEG_INFINITY;
            }
            let mut logit = f64::from(logit);
            logit += p.logit_bias.iter().filter(|b| b.0 == token).map(|b| f64::from(b.1)).sum::<f64>();
            let count = self.output.iter().filter(|&&t| t == token).count();
            if count > 0 || self.prompt.contains(&token) {
                let penalty = f64::from(p.repetition_penalty);
                logit = if logit > 0.0 { logit / penalty } else { logit * penalty };
            }
            logit -= f64::from(p.frequency_penalty) * count as f64;
            if count > 0 {
                logit -= f64::from(p.presence_penalty);
            }
            logit
        };
        self.row.iter().enumerate().map(change).collect()
    }

    /// Tokens that may be chosen with their probabilities; tokens whose membership hangs on rounding are in `maybe`.
    fn distribution(&self) -> Vec<(u32, f64)> {
        let p = &self.params;
        let mut all: Vec<(u32, f64)> = (0..).zip(self.changed()).filter(|e| e.1 > f64::NEG_INFINITY).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if p.temperature == 0.0 {
            all.truncate(1);
        } else {
            let max = all[0].1;
            for e in &mut all {
                e.1 = ((e.1 - max) / f64::from(p.temperature)).exp();
            }
            all.retain(|e| e.1 >= f64::from(p.min_p));
            if p.top_k > 0 {
                all.truncate(p.top_k as usize);
            }
            let total: f64 = all.iter().map(|e| e.1).sum();
            let mut sum = 0.0;
            let last = all.iter().position(|e| {
                sum += e.1;
                sum >= f64::from(p.top_p) * total
            });
            all.truncate(last.map_or(all.len(), |last| last + 1));
        }
        let total: f64 = if p.temperature == 0.0 { all[0].1 } else { all.iter().map(|e| e.1).sum() };
        for e in &mut all {
            e.1 /= total;
        }
        all
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let floats = (
        prop_oneof![Just(0.0_f32), Just(1.0), 0.3..2.0_f32],
        prop_oneof![Just(1.0_f32), 0.05..1.0_f32],
        prop_oneof![Just(0.0_f32), 0.0..0.5_f32],
        prop_oneof![Just(1.0_f32), 0.5..2.0_f32],
        -2.0..2.0_f32,
        prop_oneof![Just(0.0_f32), -2.0..2.0_f32],
    );
    let rows = prop::collection::vec(-8.0..8.0_f32, 2..300);
    (rows, floats, -1..20_i32, 0..4_u32, any::<[u16; 12]>(), any::<bool>()).prop_map(
        |(row, (temperature, top_p, min_p, repetition, presence, frequency), top_k, min_tokens, picks, masked)| {
            let pick = |i: usize| u32::from(picks[i]) % row.len() as u32;
            let mut words = vec![0_u32; row.len().div_ceil(32)];
            (0..row.len()).filter(|id| id % 3 != 1).for_each(|id| words[id / 32] |= 1 << (id % 32));
            let stops = vec![pick(0)];
            // Something must always be left to choose.
            let allowed = (masked && row.len() > 4).then_some(words);
            let params = SamplingParams {
                temperature,
                top_p,
                min_p,
                repetition_penalty: repetition,
                presence_penalty: presence,
                frequency_penalty: frequency,
                top_k,
                min_tokens,
                logit_bias: vec![(pick(1), 5.0), (pick(2), -100.0)],
                ..SamplingParams::default()
            };
            let prompt = (3..7).map(pick).collect();
            let output = (7..10).map(pick).collect();
            Case { row, params, prompt, output, stops, allowed }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn draws_what_the_naive_sampler_draws(case in cases(), seed: u64, position in 0..100_000_u64) {
        let token = Sampler::default()
            .sample(&case.row, &case.choice(seed), position, case.allowed.as_deref())
            .unwrap();
        let naive = case.distribution();
        let greedy = case.params.temperature == 0.0;
        if greedy {
            let changed = case.changed();
            prop_assert!((changed[token as usize] - changed[naive[0].0 as usize]).abs() < 1e-5);
            return Ok(());
        }
        // With no limits the draw runs over the vocabulary in order, otherwise from the most likely down.
        let p = &case.params;
        let limits = (p.top_k > 0 && (p.top_k as usize) < case.row.len()) || p.top_p < 1.0 || p.min_p > 0.0;
        let mut order = naive;
        if !limits {
            order.sort_by_key(|e| e.0);
        }
        let random = uniform(seed, position);
        let mut sum = 0.0;
        let near: Vec<u32> = order
            .iter()
            .filter(|e| {
                let before = sum;
                sum += e.1;
                before - 2e-5 <= random && random <= sum + 2e-5
            })
            .map(|e| e.0)
            .collect();
        // A nucleus or min_p border may fall the other way in f32; then the masses differ by at most that token's.
        let border = order.last().map_or(0.0, |e| e.1);
        if !near.contains(&token) {
            let kept = order.iter().any(|e| e.0 == token);
            prop_assert!(borderline(&case), "drew {token}, naive {near:?}, kept {kept}, border {border}");
        }
    }

    #[test]
    fn logprobs_are_those_of_the_raw_row(row in prop::collection::vec(-30.0..30.0_f32, 2..300), k in 0..30_usize, pick: u16) {
        let token = u32::from(pick) % row.len() as u32;
        let found = logprobs(&row, token, k);
        let normaliser = row.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
        let mut all: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        prop_assert!((f64::from(found.logprob) - (f64::from(row[token as usize]) - normaliser)).abs() < 1e-4);
        prop_assert_eq!(found.rank as usize, 1 + row.iter().filter(|&&l| l > row[token as usize]).count());
        let ids: Vec<_> = found.top.iter().map(|t| t.0).collect();
        prop_assert_eq!(ids, all.iter().take(k).map(|e| e.0).collect::<Vec<_>>());
        let mut matrix = Vec::new();
        log_softmax_into(&row, &mut matrix);
        prop_assert_eq!(matrix[token as usize], found.logprob);
        for (id, logprob) in found.top {
            prop_assert_eq!(logprob, matrix[id as usize]);
        }
    }
}

/// Whether a limit of the case falls so close to a token that f32 and f64 may disagree.
fn borderline(case: &Case) -> bool {
    let p = &case.params;
    let changed = case.changed();
    let max = changed.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut weights: Vec<f64> = changed.iter().map(|l| ((l - max) / f64::from(p.temperature)).exp()).collect();
    weights.sort_by(|a, b| b.total_cmp(a));
    let min_p = f64::from(p.min_p);
    let near_min_p = weights.iter().any(|w| min_p > 0.0 && (w / min_p - 1.0).abs() < 1e-5);
    weights.retain(|&w| w >= min_p && w > 0.0);
    let k = if p.top_k > 0 { p.top_k as usize } else { weights.len() };
    let near_top_k = weights.len() > k && (weights[k] / weights[k - 1] - 1.0).abs() < 1e-5;
    weights.truncate(k);
    let total: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let near_top_p = weights.iter().any(|w| {
        sum += w;
        (sum / total - f64::from(p.top_p)).abs() < 1e-5
    });
    near_min_p || near_top_k || (p.top_p < 1.0 && near_top_p)
}

#[test]
fn frequencies_follow_the_distribution() {
    let row = [1.0, 0.0, 2.0, -1.0];
    let total: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
    let choice = ChoiceSampler::new(Arc::new(SamplingParams::default()), 11, &[], Arc::new([]));
    let mut sampler = Sampler::default();
    let mut counts = [0; 4];
    (0..20_000).for_each(|position| counts[sampler.sample(&row, &choice, position, None).unwrap() as usize] += 1);
    for (count, logit) in counts.iter().zip(row) {
        let expected = f64::from(logit).exp() / total;
        assert!((f64::from(*count) / 20_000.0 - expected).abs() < 0.015, "{counts:?}");
    }
}

#[test]
fn an_empty_choice_is_an_error() {
    let mut sampler = Sampler::default();
    for temperature in [0.0, 1.0] {
        let params = Arc::new(SamplingParams { temperature, ..SamplingParams::default() });
        let choice = ChoiceSampler::new(params, 0, &[], Arc::new([]));
        assert_eq!(sampler.sample(&[1.0; 40], &choice, 0, Some(&[0, 0])), Err(NothingToSample));
        assert_eq!(sampler.sample(&[f32::NAN; 40], &choice, 0, None), Err(NothingToSample));
    }
}

#[test]
fn top_k_of_one_is_greedy_and_choice_zero_is_the_request() {
    let row: Vec<f32> = (0..1000).map(|i| ((i * 37) % 991) as f32 / 50.0).collect();
    let params = Arc::new(SamplingParams { top_k: 1, ..SamplingParams::default() });
    let choice = ChoiceSampler::new(params, choice_seed(5, 0), &[], Arc::new([]));
    let greedy = row.iter().position(|&l| l == 990.0 / 50.0).unwrap() as u32;
    assert_eq!(Sampler::default().sample(&row, &choice, 3, None), Ok(greedy));
}

/// Sums of f64 and of integers part ways in one draw of some hundred million: the cases are always the same, so that
/// none of them is one.
#[test]
fn a_device_chooses_what_the_host_chooses() {
    let mut runner = TestRunner::deterministic();
    for number in 0..3000_u64 {
        let case = cases().new_tree(&mut runner).unwrap().current();
        let choice = case.choice(number);
        let token = Sampler::default().sample(&case.row, &choice, 7 * number, case.allowed.as_deref()).ok();
        let logits = Tensor::from_slice(&case.row, (1, case.row.len()), &Device::Cpu).unwrap();
        let asked = choice.asks(7 * number, case.allowed.clone());
        let chosen = DefaultKernels(Device::Cpu).sample(&logits, &[asked]).unwrap();
        assert_eq!(chosen[0].token, token, "{case:?}");
    }
}
