//! Tokens chosen on the device: one upload of what the rows ask for, one small read of what was chosen. The rules are the
//! engine's sampler's.

use std::ptr::{null, null_mut};

use candle_core::{DType, Result, Tensor, bail};

use super::CudaKernels;
use super::launchers::{RowArgs, SamplingArgs};
use super::plan::{Arrays, chosen};
use crate::ops::sample::{MOST_TOKENS, check};
use crate::{Plan, SampleRow, SampledToken};

/// Tokens of a piece of a row in the two-stage argmax; `PIECE` of sample.cu.
const PIECE: usize = 8192;
/// The rows' lists one after the other.
#[derive(Default)]
pub(super) struct Lists {
    rows: Vec<RowArgs>,
    counts: Vec<u32>,
    bias_tokens: Vec<u32>,
    bias_values: Vec<f32>,
    barred: Vec<u32>,
    masks: Vec<u32>,
    mask_words: usize,
}

impl Lists {
    pub(super) fn of(rows: &[SampleRow]) -> Self {
        let mask_words = rows.iter().filter_map(|row| row.mask.as_ref()).map(Vec::len).max().unwrap_or(0);
        let mut lists = Self { mask_words, ..Self::default() };
        let mut masks = 0;
        for row in rows {
            let starts = (lists.counts.len() / 2, lists.bias_tokens.len(), lists.barred.len());
            lists.counts.extend(row.counts.iter().flat_map(|&(token, count)| [token, count]));
            lists.bias_tokens.extend(row.bias.iter().map(|&(token, _)| token));
            lists.bias_values.extend(row.bias.iter().map(|&(_, bias)| bias));
            lists.barred.extend(&row.barred);
            let mask = row.mask.as_ref().map_or(-1, |mask| {
                lists.masks.extend(mask);
                lists.masks.resize((masks as usize + 1) * mask_words, 0);
                masks += 1;
                masks - 1
            });
            lists.rows.push(RowArgs {
                seed: row.seed,
                position: row.position,
                temperature: row.temperature,
                top_p: row.top_p,
                min_p: row.min_p,
                top_k: i32::try_from(row.top_k).unwrap_or(i32::MAX),
                repetition: row.repetition_penalty,
                frequency: row.frequency_penalty,
                presence: row.presence_penalty,
                counts: starts.0 as i32,
                counts_end: (lists.counts.len() / 2) as i32,
                biases: starts.1 as i32,
                biases_end: lists.bias_tokens.len() as i32,
                barred: starts.2 as i32,
                barred_end: lists.barred.len() as i32,
                mask,
                logprobs: row.logprobs.map_or(-1, |k| k as i32),
                unused: 0,
            });
        }
        lists
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: rows are plain numbers without padding.
        unsafe { std::slice::from_raw_parts(self.rows.as_ptr().cast::<u8>(), size_of_val(&self.rows[..])) }
    }

    /// The rows, for who has no lists.
    pub(super) fn into_words(self) -> Vec<u32> {
        self.bytes().chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]])).collect()
    }
}

impl CudaKernels {
    /// `Kernels::sample`.
    pub(super) fn choose(&self, logits: &Tensor, rows: &[SampleRow]) -> Result<Vec<SampledToken>> {
        let (count, vocab) = check(logits, rows)?;
        if count == 0 {
            return Ok(vec![]);
        }
        let logits = logits.contiguous()?;
        let (changes, reports) = (rows.iter().any(SampleRow::changes), rows.iter().any(|row| row.logprobs.is_some()));
        if !changes && !reports && rows.iter().all(SampleRow::is_greedy) {
            let tokens = self.runtime.empty(&[count], DType::U32)?;
            self.argmax(&logits, self.elements(&tokens, DType::U32)?)?;
            let tokens = tokens.to_vec1::<u32>()?;
            let token = |token| SampledToken { token: (token != u32::MAX).then_some(token), logprobs: None };
            return Ok(tokens.into_iter().map(token).collect());
        }
        let lists = Lists::of(rows);
        let room = rows.iter().filter_map(|row| row.logprobs).max().unwrap_or(0).min(vocab as u32) as usize;
        let changed = if changes { logits.copy()? } else { logits.clone() };
        let tokens = self.runtime.empty(&[count], DType::U32)?;
        let logprobs = Tensor::zeros((count, 2 + room), DType::F32, self.runtime.device())?;
        let top_tokens = Tensor::zeros((count, room.max(1)), DType::U32, self.runtime.device())?;
        let device = self.runtime.device();
        let uploads = (
            Tensor::new(lists.bytes(), device)?,
            Tensor::new(&lists.counts[..], device)?,
            Tensor::new(&lists.bias_tokens[..], device)?,
            Tensor::new(&lists.bias_values[..], device)?,
            Tensor::new(&lists.barred[..], device)?,
            Tensor::new(&lists.masks[..], device)?,
        );
        let args = |logits: &Tensor| -> Result<SamplingArgs> {
            Ok(SamplingArgs {
                logits: self.floats(logits)?,
                rows: self.elements(&uploads.0, DType::U8)?,
                counts: self.elements(&uploads.1, DType::U32)?,
                bias_tokens: self.elements(&uploads.2, DType::U32)?,
                bias_values: self.floats(&uploads.3)?,
                barred: self.elements(&uploads.4, DType::U32)?,
                masks: if lists.masks.is_empty() { null() } else { self.elements(&uploads.5, DType::U32)? },
                tokens: self.elements(&tokens, DType::U32)?,
                logprobs: self.floats(&logprobs)?,
                top_tokens: self.elements(&top_tokens, DType::U32)?,
                num_rows: i32::try_from(count)?,
                vocab: i32::try_from(vocab)?,
                mask_words: i32::try_from(lists.mask_words)?,
                room: room as i32,
            })
        };
        if changes {
            let args = args(&changed)?;
            // SAFETY: every list of a row lies in its upload, and names tokens of the vocabulary.
            self.launch("change_logits", |launchers, stream| unsafe {
                (launchers.change_logits)(&raw const args, stream)
            })?;
        }
        let of_changed = args(&changed)?;
        // SAFETY: as above.
        self.launch("choose", |launchers, stream| unsafe { (launchers.choose)(&raw const of_changed, stream) })?;
        if reports {
            let args = args(&logits)?;
            // SAFETY: as above; every row has room for what it reports.
            self.launch("report_logprobs", |launchers, stream| unsafe {
                (launchers.report_logprobs)(&raw const args, stream)
            })?;
        }
        let (tokens, logprobs) = (tokens.to_vec1::<u32>()?, logprobs.to_vec2::<f32>()?);
        let top_tokens = if room > 0 { top_tokens.to_vec2::<u32>()? } else { vec![vec![]; count] };
        let result = |(i, row): (usize, &SampleRow)| {
            let token = (tokens[i] != u32::MAX).then_some(tokens[i]);
            let report = |wanted: u32| {
                let top = top_tokens[i].iter().copied().zip(logprobs[i][2..].iter().copied());
                let top = top.take(wanted as usize).filter(|&(token, _)| token != u32::MAX).collect();
                (logprobs[i][0], logprobs[i][1] as u32, top)
            };
            SampledToken { token, logprobs: token.and(row.logprobs).map(report) }
        };
        Ok(rows.iter().enumerate().map(result).collect())
    }

    /// `Kernels::choose_next`.
    pub(super) fn choose_in_place(&self, logits: &Tensor, plan: &Plan, greedy: bool) -> Result<()> {
        let (rows, vocab) = logits.dims2()?;
        if rows != plan.batch.num_sequences() || vocab > MOST_TOKENS {
            let sequences = plan.batch.num_sequences();
            bail!("logits {:?} of {sequences} sequences: a row each, of {MOST_TOKENS} tokens at most", logits.dims());
        }
        let tokens = chosen(self, plan)?;
        if greedy {
            return self.argmax(logits, tokens);
        }
        let args = SamplingArgs {
            logits: self.floats(logits)?,
            rows: Arrays::of(self, plan)?.asked,
            counts: null(),
            bias_tokens: null(),
            bias_values: null(),
            barred: null(),
            masks: null(),
            tokens,
            logprobs: null_mut(),
            top_tokens: null_mut(),
            num_rows: i32::try_from(rows)?,
            vocab: i32::try_from(vocab)?,
            mask_words: 0,
            room: 0,
        };
        // SAFETY: a row of logits, of what is asked for and of tokens for every sequence; `choose` reads no list.
        self.launch("choose", |launchers, stream| unsafe { (launchers.choose)(&raw const args, stream) })
    }

    /// The first of the largest of each row into `to`, i32 `[rows]`: -1 where nothing is above -inf.
    fn argmax(&self, logits: &Tensor, to: *mut i32) -> Result<()> {
        let (rows, vocab) = logits.dims2()?;
        let pieces = rows * vocab.div_ceil(PIECE);
        let (values, indices) = (self.empty(&[pieces])?, self.runtime.empty(&[pieces], DType::U32)?);
        let (from, values) = (self.floats(logits)?, self.floats(&values)?);
        let indices = self.elements(&indices, DType::U32)?;
        let (rows, vocab) = (i32::try_from(rows)?, i32::try_from(vocab)?);
        self.launch("argmax", |launchers, stream| {
            // SAFETY: a value and an index for every piece, a token for every row.
            unsafe { (launchers.argmax)(from, rows, vocab, values, indices, to, stream) }
        })
    }

    /// The random numbers of (seed, position) pairs as kernels draw them.
    ///
    /// # Errors
    /// The device's error.
    pub fn uniforms(&self, keys: &[(u64, u64)]) -> Result<Vec<f64>> {
        let device = self.runtime.device();
        let column = |of: fn(&(u64, u64)) -> u64| -> Result<Tensor> {
            Tensor::new(keys.iter().map(|key| of(key) as i64).collect::<Vec<_>>(), device)
        };
        let (seeds, positions) = (column(|key| key.0)?, column(|key| key.1)?);
        let out = Tensor::zeros(keys.len(), DType::F64, device)?;
        let (s, p) = (self.elements(&seeds, DType::I64)?, self.elements(&positions, DType::I64)?);
        let (to, count) = (self.elements(&out, DType::F64)?, i32::try_from(keys.len())?);
        // SAFETY: all have `count` elements.
        self.launch("uniforms", |launchers, stream| unsafe { (launchers.uniforms)(s, p, to, count, stream) })?;
        out.to_vec1()
    }
}
