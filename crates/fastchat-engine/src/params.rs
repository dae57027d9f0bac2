//! `SamplingParams`: how to choose tokens, with vLLM's names and OpenAI's ranges. Checked once, where they enter.

use std::fmt::Display;
use std::sync::Arc;

use crate::error::EngineError;
use crate::text::{GrammarSpec, ThinkingBudget};

/// Most choices of one request; servers may ask for less.
pub const MAX_CHOICES: u32 = 128;
/// Most stop strings and most stop token ids of one request.
pub const MAX_STOPS: usize = 64;
/// Longest stop string in bytes: the detokeniser holds back at most this much text.
pub const MAX_STOP_BYTES: usize = 1024;
/// Most alternatives reported per token.
pub const MAX_LOGPROBS: u32 = 100;

/// How to choose tokens and when to stop.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::struct_excessive_bools, reason = "the flags of the public API")]
pub struct SamplingParams {
    /// Choices to generate.
    pub n: u32,
    /// 0 is greedy.
    pub temperature: f32,
    /// Share of the probability mass that is kept.
    pub top_p: f32,
    /// Most likely tokens that are kept; -1 or 0 keeps all.
    pub top_k: i32,
    /// Least probability, relative to the most likely token.
    pub min_p: f32,
    /// Subtracted from the logits of tokens that were generated.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens once per time they were generated.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or generated.
    pub repetition_penalty: f32,
    /// Makes the request repeatable; `None` draws one.
    pub seed: Option<u64>,
    /// Strings that end the text.
    pub stop: Vec<String>,
    /// Tokens that end the text.
    pub stop_token_ids: Vec<u32>,
    /// Whether the stop string stays in the text.
    pub include_stop_str_in_output: bool,
    /// Goes on past the model's end of text.
    pub ignore_eos: bool,
    /// `None` is the remaining context; more than that is clamped to it.
    pub max_tokens: Option<u32>,
    /// Tokens before any stop token may be chosen.
    pub min_tokens: u32,
    /// Reports each token's log-probability and those of the k most likely.
    pub logprobs: Option<u32>,
    /// The same for the prompt; -1 is the whole matrix.
    pub prompt_logprobs: Option<i32>,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Leaves special tokens out of the text.
    pub skip_special_tokens: bool,
    /// What the text has to be. It ends as soon as it is complete, whatever `min_tokens` and `ignore_eos` say.
    pub structured: Option<Arc<GrammarSpec>>,
    /// How long the model may think.
    pub thinking: Option<ThinkingBudget>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            n: 1,
            temperature: 1.0,
            top_p: 1.0,
            top_k: -1,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            include_stop_str_in_output: false,
            ignore_eos: false,
            max_tokens: None,
            min_tokens: 0,
            logprobs: None,
            prompt_logprobs: None,
            logit_bias: Vec::new(),
            skip_special_tokens: true,
            structured: None,
            thinking: None,
        }
    }
}

impl SamplingParams {
    /// Checks the ranges that need no model.
    ///
    /// # Errors
    /// `InvalidRequest` that names the first field out of range.
    pub fn check(&self) -> Result<(), EngineError> {
        within("n", self.n, 1, MAX_CHOICES)?;
        within("temperature", self.temperature, 0.0, 2.0)?;
        if self.top_p.is_nan() || self.top_p <= 0.0 || self.top_p > 1.0 {
            return out_of_range("top_p", &self.top_p, "above 0 and at most 1");
        }
        within("top_k", self.top_k, -1, i32::MAX)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return out_of_range("repetition_penalty", &self.repetition_penalty, "finite and above 0");
        }
        within("stop", self.stop.len(), 0, MAX_STOPS)?;
        if let Some(bad) = self.stop.iter().find(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
            return out_of_range("stop", &format!("a string of {} bytes", bad.len()), "1 to 1024 bytes each");
        }
        within("stop_token_ids", self.stop_token_ids.len(), 0, MAX_STOPS)?;
        if let Some(max_tokens) = self.max_tokens {
            within("max_tokens", max_tokens, 1, u32::MAX)?;
            within("min_tokens", self.min_tokens, 0, max_tokens)?;
        }
        within("logprobs", self.logprobs.unwrap_or(0), 0, MAX_LOGPROBS)?;
        within("prompt_logprobs", self.prompt_logprobs.unwrap_or(0), -1, MAX_LOGPROBS as i32)?;
        self.logit_bias.iter().try_for_each(|&(_, bias)| within("logit_bias", bias, -100.0, 100.0))
    }

    /// Checks everything against a model of `vocab` tokens.
    ///
    /// # Errors
    /// `InvalidRequest` that names the first field out of range.
    pub fn validate(&self, vocab: usize) -> Result<(), EngineError> {
        self.check()?;
        let unknown = |id: u32| id as usize >= vocab;
        if let Some(id) = self.stop_token_ids.iter().copied().find(|&id| unknown(id)) {
            return out_of_range("stop_token_ids", &id, &format!("below {vocab}, the size of the vocabulary"));
        }
        if let Some(id) = self.logit_bias.iter().map(|&(id, _)| id).find(|&id| unknown(id)) {
            return out_of_range("logit_bias", &id, &format!("below {vocab}, the size of the vocabulary"));
        }
        Ok(())
    }

    /// Whether the choice of a token depends on those chosen before it, beside the logits.
    pub fn has_history(&self) -> bool {
        self.has_penalties() || self.min_tokens > 0 || self.thinking.is_some()
    }

    /// Whether any of the three penalties has an effect.
    pub fn has_penalties(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 || self.has_repetition_penalty()
    }

    /// Whether the repetition penalty has an effect.
    #[allow(clippy::float_cmp, reason = "1 exactly is the value that means off")]
    pub fn has_repetition_penalty(&self) -> bool {
        self.repetition_penalty != 1.0
    }
}

/// `value` in `low..=high`; a NaN is in no range.
fn within<T: PartialOrd + Copy + Display>(param: &str, value: T, low: T, high: T) -> Result<(), EngineError> {
    if value >= low && value <= high { Ok(()) } else { out_of_range(param, &value, &format!("{low} to {high}")) }
}

fn out_of_range(param: &str, value: &dyn Display, limit: &str) -> Result<(), EngineError> {
    Err(EngineError::invalid(param, format!("{param} is {value}; it must be {limit}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(params: &SamplingParams) -> String {
        match params.validate(100) {
            Err(EngineError::InvalidRequest { param, message }) => {
                assert!(message.contains(&param) && !message.contains('\n'), "{message}");
                param
            }
            other => panic!("{params:?}: {other:?}"),
        }
    }

    #[test]
    fn names_the_field_out_of_range() {
        let base = SamplingParams::default;
        assert_eq!(base().validate(100), Ok(()));
        assert_eq!(refused(&SamplingParams { n: 0, ..base() }), "n");
        assert_eq!(refused(&SamplingParams { temperature: f32::NAN, ..base() }), "temperature");
        assert_eq!(refused(&SamplingParams { temperature: 2.1, ..base() }), "temperature");
        assert_eq!(refused(&SamplingParams { top_p: 0.0, ..base() }), "top_p");
        assert_eq!(refused(&SamplingParams { top_k: -2, ..base() }), "top_k");
        assert_eq!(refused(&SamplingParams { min_p: 1.5, ..base() }), "min_p");
        assert_eq!(refused(&SamplingParams { presence_penalty: -3.0, ..base() }), "presence_penalty");
        assert_eq!(refused(&SamplingParams { frequency_penalty: 3.0, ..base() }), "frequency_penalty");
        assert_eq!(refused(&SamplingParams { repetition_penalty: 0.0, ..base() }), "repetition_penalty");
        assert_eq!(refused(&SamplingParams { stop: vec![String::new()], ..base() }), "stop");
        assert_eq!(refused(&SamplingParams { stop_token_ids: vec![100], ..base() }), "stop_token_ids");
        assert_eq!(refused(&SamplingParams { max_tokens: Some(0), ..base() }), "max_tokens");
        assert_eq!(refused(&SamplingParams { max_tokens: Some(3), min_tokens: 4, ..base() }), "min_tokens");
        assert_eq!(refused(&SamplingParams { logprobs: Some(101), ..base() }), "logprobs");
        assert_eq!(refused(&SamplingParams { prompt_logprobs: Some(-2), ..base() }), "prompt_logprobs");
        assert_eq!(refused(&SamplingParams { logit_bias: vec![(7, 101.0)], ..base() }), "logit_bias");
        assert_eq!(refused(&SamplingParams { logit_bias: vec![(100, 1.0)], ..base() }), "logit_bias");
    }
}
