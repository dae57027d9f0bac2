//! Tokens chosen from rows of logits: mask, barred tokens, bias, penalties; then the most likely, or temperature, top k,
//! min p, top p and a draw. Shares of a row are summed as integers, so that sums have no order on any device.

use candle_core::{DType, Result, Tensor, bail};

use crate::random::uniform;

/// Shares are in units of 2^-45; the largest error of a sum is then 2^-26.
const UNIT: f32 = 35_184_372_088_832.;
/// Tokens of weight 1 whose shares a 64-bit sum holds.
pub(crate) const MOST_TOKENS: usize = (1 << 19) - 1;

/// What one row of logits is asked for.
#[derive(Clone, Debug)]
pub struct SampleRow {
    /// Key of the random number.
    pub seed: u64,
    /// Counter of the random number: the token's place in its sequence.
    pub position: u64,
    /// Below 1e-5: the most likely token.
    pub temperature: f32,
    /// 1: off.
    pub top_p: f32,
    /// 0: off.
    pub min_p: f32,
    /// 0: off.
    pub top_k: u32,
    /// 1: off.
    pub repetition_penalty: f32,
    /// 0: off.
    pub frequency_penalty: f32,
    /// 0: off.
    pub presence_penalty: f32,
    /// Tokens seen, each once, and how often they were generated.
    pub counts: Vec<(u32, u32)>,
    /// Tokens, each once, and what is added to their logits.
    pub bias: Vec<(u32, f32)>,
    /// Tokens that must not come.
    pub barred: Vec<u32>,
    /// A bit per token; tokens past its end are barred.
    pub mask: Option<Vec<u32>>,
    /// How many of the most likely tokens to report, beside the chosen one; `None`: no log-probabilities at all.
    pub logprobs: Option<u32>,
}

/// What was chosen for one row.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// `None`: every logit is masked or not a number.
    pub token: Option<u32>,
    /// Under the row before any change: log-probability and rank of the token, and the most likely ones.
    pub logprobs: Option<(f32, u32, MostLikely)>,
}

/// Tokens and their log-probabilities, most likely first.
pub type MostLikely = Vec<(u32, f32)>;

impl SampleRow {
    /// The most likely token and nothing else.
    pub fn greedy() -> Self {
        Self {
            seed: 0,
            position: 0,
            temperature: 0.,
            top_p: 1.,
            min_p: 0.,
            top_k: 0,
            repetition_penalty: 1.,
            frequency_penalty: 0.,
            presence_penalty: 0.,
            counts: vec![],
            bias: vec![],
            barred: vec![],
            mask: None,
            logprobs: None,
        }
    }

    /// Whether nothing but its logits and its parameters say the token, and only the token is wanted.
    pub fn is_plain(&self) -> bool {
        !self.changes() && self.logprobs.is_none()
    }

    pub(crate) fn changes(&self) -> bool {
        !self.counts.is_empty() || !self.bias.is_empty() || !self.barred.is_empty() || self.mask.is_some()
    }

    /// Below this a row is greedy: 1 / temperature would overflow on ordinary logits.
    pub fn is_greedy(&self) -> bool {
        self.temperature < 1e-5
    }

    fn tokens(&self) -> impl Iterator<Item = u32> {
        let counted = self.counts.iter().map(|&(token, _)| token);
        counted.chain(self.bias.iter().map(|&(token, _)| token)).chain(self.barred.iter().copied())
    }
}

/// Rows and tokens of `logits`.
///
/// # Errors
/// Rows that do not fit the logits.
pub(crate) fn check(logits: &Tensor, rows: &[SampleRow]) -> Result<(usize, usize)> {
    let (count, vocab) = logits.dims2()?;
    if count != rows.len() || vocab == 0 || vocab > MOST_TOKENS {
        bail!("{} samples of logits {:?}: one per row, of 1 to {MOST_TOKENS} tokens", rows.len(), logits.dims());
    }
    if let Some(token) = rows.iter().flat_map(SampleRow::tokens).find(|&token| token as usize >= vocab) {
        bail!("token {token} of a vocabulary of {vocab}");
    }
    Ok((count, vocab))
}

pub(super) fn sample(logits: &Tensor, rows: &[SampleRow]) -> Result<Vec<SampledToken>> {
    check(logits, rows)?;
    let values = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    Ok(values.iter().zip(rows).map(|(logits, row)| sample_row(logits, row)).collect())
}

fn sample_row(logits: &[f32], row: &SampleRow) -> SampledToken {
    let mut changed = logits.to_vec();
    change(&mut changed, row);
    let token = match best(&changed) {
        Some((token, _)) if row.is_greedy() => Some(token),
        Some((_, max)) if max.is_finite() => Some(draw(&changed, row, max)),
        _ => None,
    };
    let logprobs = token.zip(row.logprobs).map(|(token, wanted)| report(logits, token, wanted as usize));
    SampledToken { token, logprobs }
}

/// Everything that changes single logits, in the engine's order.
fn change(logits: &mut [f32], row: &SampleRow) {
    if let Some(mask) = &row.mask {
        for (token, logit) in logits.iter_mut().enumerate() {
            if mask.get(token / 32).is_none_or(|word| word >> (token % 32) & 1 == 0) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    row.barred.iter().for_each(|&token| logits[token as usize] = f32::NEG_INFINITY);
    row.bias.iter().for_each(|&(token, bias)| logits[token as usize] += bias);
    for &(token, count) in &row.counts {
        let logit = &mut logits[token as usize];
        *logit = if *logit > 0. { *logit / row.repetition_penalty } else { *logit * row.repetition_penalty };
        if count > 0 {
            *logit -= row.frequency_penalty * count as f32 + row.presence_penalty;
        }
    }
}

/// The first of the largest above -inf, and its logit.
pub(super) fn best(logits: &[f32]) -> Option<(u32, f32)> {
    let tokens = (0..).zip(logits.iter().copied()).filter(|entry| entry.1 > f32::NEG_INFINITY);
    tokens.reduce(|best, entry| if entry.1 > best.1 { entry } else { best })
}

/// A token's share of the row: e^((x - max) * scale) in units.
fn share(x: f32, max: f32, scale: f32) -> u64 {
    (((x - max) * scale).exp() * UNIT) as u64
}

/// The draw of a row whose largest logit `max` is finite.
fn draw(logits: &[f32], row: &SampleRow, max: f32) -> u32 {
    let scale = 1. / row.temperature;
    let mut tokens: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    tokens.retain(|entry| entry.1 > f32::NEG_INFINITY);
    // A limit as wide as the row is none, and without any the draw goes by index.
    let cut = row.top_k > 0 && (row.top_k as usize) < logits.len();
    if cut || row.min_p > 0. || row.top_p < 1. {
        tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    }
    if cut {
        tokens.truncate(row.top_k as usize);
    }
    if row.min_p > 0. {
        let floor = max + row.min_p.ln() / scale;
        tokens.retain(|entry| entry.1.total_cmp(&floor).is_ge());
    }
    let shares: Vec<u64> = tokens.iter().map(|entry| share(entry.1, max, scale)).collect();
    let mut mass: u64 = shares.iter().sum();
    if row.top_p < 1. {
        // The shortest descending prefix with at least this mass.
        let wanted = (f64::from(row.top_p) * mass as f64).ceil() as u64;
        let mut kept = 0;
        for share in &shares {
            kept += share;
            if kept >= wanted {
                break;
            }
        }
        mass = kept;
    }
    // Rounding must not leave the mass; the most likely token alone has a whole one.
    let mut left = ((uniform(row.seed, row.position) * mass as f64) as u64).min(mass - 1);
    for (&(token, _), &share) in tokens.iter().zip(&shares) {
        if left < share {
            return token;
        }
        left -= share;
    }
    unreachable!("less than the sum of the shares is left; this is a bug")
}

/// Log-probability and rank of a token of an untouched row, and the row's `wanted` most likely tokens.
fn report(logits: &[f32], token: u32, wanted: usize) -> (f32, u32, MostLikely) {
    let mut tokens: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    tokens.retain(|entry| entry.1 > f32::NEG_INFINITY);
    let max = tokens.iter().fold(f32::NEG_INFINITY, |max, entry| max.max(entry.1));
    let total: u64 = tokens.iter().map(|entry| share(entry.1, max, 1.)).sum();
    let normaliser = f64::from(max) + (total as f64 / f64::from(UNIT)).ln();
    let of = |logit: f32| (f64::from(logit) - normaliser) as f32;
    let own = logits[token as usize];
    let rank = 1 + tokens.iter().filter(|entry| entry.1 > own).count() as u32;
    // Stable: the lowest index of equals first.
    tokens.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal));
    (of(own), rank, tokens.into_iter().take(wanted).map(|(token, logit)| (token, of(logit))).collect())
}
