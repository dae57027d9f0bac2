//! Chooses one token from one row of logits: bias, masks, penalties, temperature, min_p, top_k, top_p, in vLLM's order,
//! and the log-probabilities of the untouched row. A pure function of the row, the choice's history, seed and position.

use std::sync::Arc;

use fastchat_kernels::SampleRow;
use hashbrown::HashMap;

use crate::params::SamplingParams;
use crate::rng::uniform;
use crate::rows::{self, Entry};

/// Below this, 1 / temperature would overflow on ordinary logits; vLLM's threshold for greedy too.
const LEAST_TEMPERATURE: f32 = 1e-5;

/// Log-probabilities of one token under the raw model distribution (before temperature, penalties, bias and masks).
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub token_id: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// 1 is the most likely token.
    pub rank: u32,
    /// The most likely tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// A row from which nothing can be chosen: all masked, or not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no token can be chosen: every logit is masked or not a number")]
pub struct NothingToSample;

/// What one choice's sampling depends on beside the row.
#[derive(Clone, Debug)]
pub struct ChoiceSampler {
    params: Arc<SamplingParams>,
    seed: u64,
    /// Tokens that `min_tokens` bars.
    stop_ids: Arc<[u32]>,
    /// Tokens seen and how often they were generated; empty unless a penalty needs it.
    counts: Vec<(u32, u32)>,
    index: HashMap<u32, usize>,
    generated: u32,
}

impl ChoiceSampler {
    /// For one choice with its own seed (`rng::choice_seed`). `stop_ids` are all tokens that would end it.
    pub fn new(params: Arc<SamplingParams>, seed: u64, prompt: &[u32], stop_ids: Arc<[u32]>) -> Self {
        let mut sampler = Self { params, seed, stop_ids, counts: Vec::new(), index: HashMap::new(), generated: 0 };
        if sampler.params.has_repetition_penalty() {
            for &token in prompt {
                sampler.count(token);
            }
        }
        sampler
    }

    fn count(&mut self, token: u32) -> &mut u32 {
        let at = *self.index.entry(token).or_insert_with(|| {
            self.counts.push((token, 0));
            self.counts.len() - 1
        });
        &mut self.counts[at].1
    }

    /// Books a token that was chosen.
    pub fn record(&mut self, token: u32) {
        self.generated += 1;
        if self.params.has_penalties() {
            *self.count(token) += 1;
        }
    }

    fn bars_stops(&self) -> bool {
        self.generated < self.params.min_tokens && !self.stop_ids.is_empty()
    }

    /// What a device is asked for, that chooses the token at `position` as `Sampler::sample` does.
    pub fn asks(&self, position: u64, allowed: Option<Vec<u32>>) -> SampleRow {
        let params = &self.params;
        let bars = self.bars_stops() && allowed.as_ref().is_none_or(|allowed| allows_more(allowed, &self.stop_ids));
        let mut barred = if bars { self.stop_ids.to_vec() } else { Vec::new() };
        barred.sort_unstable();
        barred.dedup();
        let mut bias = params.logit_bias.clone();
        bias.sort_by_key(|entry| entry.0);
        bias.dedup_by(|next, first| {
            let same = next.0 == first.0;
            first.1 += if same { next.1 } else { 0.0 };
            same
        });
        SampleRow {
            seed: self.seed,
            position,
            temperature: params.temperature,
            top_p: params.top_p,
            min_p: params.min_p,
            top_k: u32::try_from(params.top_k).unwrap_or(0),
            repetition_penalty: params.repetition_penalty,
            frequency_penalty: params.frequency_penalty,
            presence_penalty: params.presence_penalty,
            counts: self.counts.clone(),
            bias,
            barred,
            mask: allowed,
            logprobs: params.logprobs,
        }
    }

    /// Whether the next token is the most likely one, and nothing else is asked for.
    pub fn is_greedy(&self) -> bool {
        self.params.temperature < LEAST_TEMPERATURE && !self.changes_logits() && self.params.logprobs.is_none()
    }

    fn changes_logits(&self) -> bool {
        !self.counts.is_empty() || !self.params.logit_bias.is_empty() || self.bars_stops()
    }

    /// Everything that changes single logits, in vLLM's order.
    fn change(&self, row: &mut [f32], allowed: Option<&[u32]>) {
        if let Some(allowed) = allowed {
            apply_mask(row, allowed);
        }
        if self.bars_stops() && allowed.is_none_or(|allowed| allows_more(allowed, &self.stop_ids)) {
            self.stop_ids.iter().for_each(|&id| row[id as usize] = f32::NEG_INFINITY);
        }
        self.params.logit_bias.iter().for_each(|&(id, bias)| row[id as usize] += bias);
        let SamplingParams { repetition_penalty, frequency_penalty, presence_penalty, .. } = *self.params;
        for &(id, count) in &self.counts {
            let logit = &mut row[id as usize];
            *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
            if count > 0 {
                *logit -= frequency_penalty * count as f32 + presence_penalty;
            }
        }
    }
}

/// Bit `i` of the mask allows token `i`; tokens past its end are barred.
fn apply_mask(row: &mut [f32], allowed: &[u32]) {
    for (word, logits) in row.chunks_mut(32).enumerate() {
        let bits = allowed.get(word).copied().unwrap_or(0);
        if bits != u32::MAX {
            for (bit, logit) in logits.iter_mut().enumerate() {
                if bits >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Whether a mask allows any token but `ends`: a text that is complete ends, however short.
fn allows_more(allowed: &[u32], ends: &[u32]) -> bool {
    allowed.iter().enumerate().any(|(word, &bits)| {
        let ends = ends.iter().filter(|&&id| id as usize / 32 == word);
        ends.fold(bits, |bits, &id| bits & !(1 << (id % 32))) != 0
    })
}

/// Reusable memory for choosing tokens.
#[derive(Debug, Default)]
pub struct Sampler {
    row: Vec<f32>,
    candidates: Vec<Entry>,
}

impl Sampler {
    /// Chooses the token at `position` of the sequence. `allowed` is a bit per token, from a grammar.
    ///
    /// # Errors
    /// When no logit is left above -inf.
    pub fn sample(
        &mut self,
        logits: &[f32],
        choice: &ChoiceSampler,
        position: u64,
        allowed: Option<&[u32]>,
    ) -> Result<u32, NothingToSample> {
        let row = if allowed.is_some() || choice.changes_logits() {
            self.row.clear();
            self.row.extend_from_slice(logits);
            choice.change(&mut self.row, allowed);
            &self.row
        } else {
            logits
        };
        let params = &choice.params;
        if params.temperature < LEAST_TEMPERATURE {
            return rows::argmax(row).map(|token| token as u32).ok_or(NothingToSample);
        }
        let max = rows::max(row);
        if !max.is_finite() {
            return Err(NothingToSample);
        }
        let distribution = Distribution { row, max, scale: 1.0 / params.temperature };
        let random = uniform(choice.seed, position);
        Ok(distribution.draw(params, random, &mut self.candidates))
    }
}

/// Softmax of `(row - max) * scale`.
struct Distribution<'a> {
    row: &'a [f32],
    max: f32,
    scale: f32,
}

impl Distribution<'_> {
    fn weight(&self, logit: f32) -> f64 {
        f64::from(rows::exp((logit - self.max) * self.scale))
    }

    fn draw(&self, params: &SamplingParams, random: f64, candidates: &mut Vec<Entry>) -> u32 {
        let top_k = if params.top_k > 0 { params.top_k as usize } else { usize::MAX };
        let limits = top_k < self.row.len() || params.top_p < 1.0 || params.min_p > 0.0;
        if !limits {
            let total = rows::sum_exp(self.row, self.max, self.scale);
            return rows::find_cumulative(self.row, self.max, self.scale, random * total) as u32;
        }
        let floor = self.max + params.min_p.ln() / self.scale;
        let total = if top_k < self.row.len() {
            rows::top_k(self.row, top_k, candidates);
            candidates.retain(|entry| entry.0 >= floor);
            self.mass(candidates)
        } else if params.min_p > 0.0 {
            rows::collect_at_least(self.row, floor, candidates);
            let total = self.mass(candidates);
            candidates.sort_unstable_by(rows::descending);
            total
        } else {
            self.nucleus_candidates(f64::from(params.top_p), candidates)
        };
        let mut mass = total;
        if params.top_p < 1.0 {
            let target = f64::from(params.top_p) * total;
            mass = 0.0;
            let kept = candidates.iter().position(|entry| {
                mass += self.weight(entry.0);
                mass >= target
            });
            candidates.truncate(kept.map_or(candidates.len(), |last| last + 1));
        }
        let mut left = random * mass;
        for entry in candidates.iter() {
            left -= self.weight(entry.0);
            if left < 0.0 {
                return entry.1;
            }
        }
        // Rounding left a sliver past the end.
        candidates.last().map_or(0, |entry| entry.1)
    }

    fn mass(&self, candidates: &[Entry]) -> f64 {
        candidates.iter().map(|entry| self.weight(entry.0)).sum()
    }

    /// The most likely tokens, sorted, that surely hold `top_p` of the mass; returns the mass of the whole row. A full
    /// sort is needed only for distributions as flat as the vocabulary is wide.
    fn nucleus_candidates(&self, top_p: f64, candidates: &mut Vec<Entry>) -> f64 {
        let total = rows::sum_exp(self.row, self.max, self.scale);
        // In small steps: passes over the row are cheap, sorting a flat tail is not. Past 88 every weight is 0.
        for reach in (4..=88).step_by(2) {
            rows::collect_at_least(self.row, self.max - reach as f32 / self.scale, candidates);
            if self.mass(candidates) >= top_p * total {
                break;
            }
        }
        candidates.sort_unstable_by(rows::descending);
        total
    }
}

/// Log-probability of `token`, its rank, and the `k` most likely tokens of an untouched row.
pub fn logprobs(logits: &[f32], token: u32, k: usize) -> TokenLogprobs {
    let max = rows::max(logits);
    let normaliser = f64::from(max) + rows::sum_exp(logits, max, 1.0).ln();
    let of = |logit: f32| (f64::from(logit) - normaliser) as f32;
    let own = logits[token as usize];
    let rank = 1 + logits.iter().filter(|&&logit| logit > own).count() as u32;
    let mut top = Vec::new();
    if k > 0 {
        rows::top_k(logits, k, &mut top);
    }
    TokenLogprobs { token_id: token, logprob: of(own), rank, top: top.iter().map(|&(l, id)| (id, of(l))).collect() }
}

/// Appends the log-probabilities of a whole row to `out`.
pub fn log_softmax_into(logits: &[f32], out: &mut Vec<f32>) {
    let max = rows::max(logits);
    let normaliser = f64::from(max) + rows::sum_exp(logits, max, 1.0).ln();
    out.extend(logits.iter().map(|&logit| (f64::from(logit) - normaliser) as f32));
}
