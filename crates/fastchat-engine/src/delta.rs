//! What a request yields: pieces of its choices, why they end, and what the prompt's log-probabilities are.

use std::time::Duration;

use crate::error::EngineError;
use crate::sampler::TokenLogprobs;
use crate::sequence::FinishReason;

/// What ended a choice with `FinishReason::Stop`, unless it was the model's end of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// A stop string.
    Text(String),
    /// A stop token id.
    Token(u32),
}

/// The end of a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// By what.
    pub stop: Option<StopReason>,
}

/// Token counts of a choice so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated for this choice.
    pub completion_tokens: usize,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: usize,
}

/// News of one choice since it was last taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Which choice.
    pub index: u32,
    /// New text; never ends inside a character.
    pub text: String,
    /// New tokens, the one that stopped the choice included.
    pub token_ids: Vec<u32>,
    /// One entry per new token, when asked for.
    pub logprobs: Option<Vec<TokenLogprobs>>,
    /// Set in the last delta of the choice.
    pub finish: Option<Finish>,
    /// Counts so far.
    pub usage: Usage,
    /// Why the choice ended with `Error` or `Abort`.
    pub error: Option<EngineError>,
}

impl Delta {
    /// Appends later news of the same choice.
    pub(crate) fn merge(&mut self, later: Self) {
        self.text.push_str(&later.text);
        self.token_ids.extend(later.token_ids);
        match (&mut self.logprobs, later.logprobs) {
            (Some(all), Some(more)) => all.extend(more),
            (none, more) => *none = none.take().or(more),
        }
        self.finish = later.finish;
        self.usage = later.usage;
        self.error = later.error;
    }
}

/// Log-probabilities of prompt tokens 1.. given those before them; row i belongs to token i + 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptLogprobs {
    /// One entry per row, unless the whole matrix was asked for.
    pub tokens: Vec<TokenLogprobs>,
    /// `[rows, vocab]`, when asked for.
    pub matrix: Option<Vec<f32>>,
    /// Prompt tokens less one.
    pub rows: usize,
}

/// How long a request waited for what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From submission to its first step.
    pub queue: Option<Duration>,
    /// From submission to its first token.
    pub first_token: Option<Duration>,
    /// From submission to the end of its last choice.
    pub total: Option<Duration>,
}
