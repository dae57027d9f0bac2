//! Gathers the log-probabilities of a prompt over the chunks of its prefill.

use crate::delta::PromptLogprobs;
use crate::error::EngineError;
use crate::sampler::{log_softmax_into, logprobs};

/// Largest matrix a request may ask for.
const MAX_MATRIX_BYTES: usize = 1 << 30;

/// What has been gathered.
#[derive(Debug)]
pub(crate) struct PromptLogprobsBuilder {
    /// Alternatives per token; `None` gathers the whole matrix.
    k: Option<usize>,
    found: PromptLogprobs,
    vocab: usize,
}

impl PromptLogprobsBuilder {
    /// For `SamplingParams::prompt_logprobs` of a prompt of `len` tokens.
    pub fn new(asked: i32, len: usize, vocab: usize) -> Self {
        let k = usize::try_from(asked).ok();
        let matrix = k.is_none().then(Vec::new);
        Self { k, found: PromptLogprobs { tokens: Vec::new(), matrix, rows: len - 1 }, vocab }
    }

    /// # Errors
    /// When the matrix would be too large.
    pub fn check(asked: i32, len: usize, vocab: usize) -> Result<(), EngineError> {
        let bytes = len.saturating_mul(vocab).saturating_mul(4);
        if asked < 0 && bytes > MAX_MATRIX_BYTES {
            let message = format!(
                "prompt_logprobs is -1; {len} tokens times {vocab} logits are {bytes} bytes, at most {MAX_MATRIX_BYTES} fit"
            );
            return Err(EngineError::invalid("prompt_logprobs", message));
        }
        Ok(())
    }

    /// Adds the row of logits at `position`. After a preemption positions come again from 0.
    pub fn add(&mut self, position: usize, prompt: &[u32], row: &[f32]) {
        let Some(&next) = prompt.get(position + 1) else { return };
        match (self.k, &mut self.found.matrix) {
            (None, Some(matrix)) => {
                matrix.truncate(position * self.vocab);
                log_softmax_into(row, matrix);
            }
            (k, _) => {
                self.found.tokens.truncate(position);
                self.found.tokens.push(logprobs(row, next, k.unwrap_or(0)));
            }
        }
    }

    /// All of it.
    pub fn finish(self) -> PromptLogprobs {
        self.found
    }
}
