//! One choice between the scheduler and its reader: its sampler, its text so far, and when it stops by itself.

use std::sync::Arc;

use crate::constraint::Constraint;
use crate::delta::{Finish, StopReason};
use crate::params::SamplingParams;
use crate::rng::choice_seed;
use crate::sampler::ChoiceSampler;
use crate::sequence::FinishReason;
use crate::text::{Detokenizer, StopMatcher, TextError, Thinking, Tokenizer};

/// Choices of one request have this in common.
#[derive(Clone, Debug)]
pub(crate) struct ChoiceSeed {
    pub params: Arc<SamplingParams>,
    /// The request's seed.
    pub seed: u64,
    pub prompt: Arc<[u32]>,
    /// Tokens that end a text, unless `ignore_eos`.
    pub eos: Arc<[u32]>,
    pub thinking: Option<Thinking>,
}

/// One choice.
#[derive(Debug)]
pub(crate) struct Choice {
    pub request: u64,
    pub index: u32,
    pub sampler: ChoiceSampler,
    pub completion_tokens: usize,
    pub constraint: Option<Constraint>,
    pub thinking: Option<Thinking>,
    params: Arc<SamplingParams>,
    eos: Arc<[u32]>,
    detokenizer: Detokenizer,
    stops: StopMatcher,
}

impl Choice {
    pub fn new(request: u64, index: u32, seed: &ChoiceSeed, constraint: Option<Constraint>) -> Self {
        let ChoiceSeed { params, seed, prompt, eos, thinking } = seed;
        // A constrained text that is complete has nothing to go on with.
        let eos = if params.ignore_eos && constraint.is_none() { Arc::default() } else { eos.clone() };
        let ends: Vec<u32> = eos.iter().chain(&params.stop_token_ids).copied().collect();
        Self {
            request,
            index,
            sampler: ChoiceSampler::new(params.clone(), choice_seed(*seed, index), prompt, ends.into()),
            completion_tokens: 0,
            constraint,
            thinking: thinking.clone(),
            params: params.clone(),
            eos,
            detokenizer: Detokenizer::continuing(params.skip_special_tokens),
            stops: StopMatcher::new(params.stop.clone(), params.include_stop_str_in_output),
        }
    }

    /// How its tokens are chosen.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// The next token where it is no matter of choice. With log-probabilities it is computed all the same, and its mask
    /// leaves nothing else.
    pub fn forced(&mut self) -> Option<u32> {
        if self.params.logprobs.is_some() {
            return None;
        }
        let closing = self.thinking.as_ref().and_then(Thinking::forced);
        closing.or_else(|| self.constraint.as_mut().and_then(Constraint::forced))
    }

    /// The mask that leaves the one token with which the model has to stop thinking.
    pub fn closing(&self) -> Option<Vec<u32>> {
        self.thinking.as_ref().and_then(Thinking::forced).map(only)
    }

    /// The mask of the next token, `closing` or the constraint's, and what chooses among what it allows.
    pub fn allowed<'a>(
        &'a mut self,
        closing: Option<&'a [u32]>,
    ) -> (Result<Option<&'a [u32]>, TextError>, &'a ChoiceSampler) {
        let allowed = match closing {
            Some(only) => Ok(Some(only)),
            None => self.constraint.as_mut().map(Constraint::mask).transpose(),
        };
        (allowed, &self.sampler)
    }

    /// Books the next token; appends to `out` the text that may leave. `last` says that no more tokens fit.
    pub fn push(
        &mut self,
        tokenizer: Option<&Tokenizer>,
        token: u32,
        last: bool,
        out: &mut String,
    ) -> Result<Option<Finish>, TextError> {
        self.sampler.record(token);
        self.completion_tokens += 1;
        let mut by_token = true;
        let mut finish = if self.eos.contains(&token) {
            Some(Finish { reason: FinishReason::Stop, stop: None })
        } else if self.params.stop_token_ids.contains(&token) {
            Some(Finish { reason: FinishReason::Stop, stop: Some(StopReason::Token(token)) })
        } else {
            by_token = false;
            let complete = self.constraint.as_mut().map_or(Ok(false), |constraint| constraint.accept(token))?;
            let reason = if complete { FinishReason::Stop } else { FinishReason::Length };
            (complete || last).then_some(Finish { reason, stop: None })
        };
        let Some(tokenizer) = tokenizer else { return Ok(finish) };
        if let Some(thinking) = &mut self.thinking {
            thinking.push(token, tokenizer.token_bytes(token).unwrap_or_default());
        }
        let mut piece = String::new();
        // Vocabularies are padded: ids past the tokenizer's have no text. Nor has the token that ends one.
        if (token as usize) < tokenizer.vocab_size() && (!by_token || self.params.include_stop_str_in_output) {
            self.detokenizer.push(tokenizer, token, &mut piece)?;
        }
        if finish.is_some() {
            self.detokenizer.finish(&mut piece);
        }
        if self.completion_tokens <= self.params.min_tokens as usize {
            out.push_str(&piece);
        } else if self.stops.push(&piece, out) {
            let stop = self.stops.stopped_by().map(|stop| StopReason::Text(stop.to_owned()));
            return Ok(Some(Finish { reason: FinishReason::Stop, stop }));
        }
        if finish.is_some() {
            self.stops.finish(out);
        }
        Ok(finish.take())
    }
}

/// The mask that leaves one token.
fn only(token: u32) -> Vec<u32> {
    let mut words = vec![0; token as usize / 32 + 1];
    words[token as usize / 32] = 1 << (token % 32);
    words
}
