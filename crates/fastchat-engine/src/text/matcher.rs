//! Where one text stands in its grammar: which tokens may follow, and whether it is complete.

use std::sync::Arc;

use llguidance::CancellationHandle;
use llguidance::toktrie::{SimpleVob, TokenizerEnv};

use super::TextError;
use super::grammar_tokens::GrammarTokens;

/// One sequence's position in a compiled grammar.
pub struct Matcher {
    inner: llguidance::Matcher,
    /// Of a vocabulary that cannot spell every byte alone.
    incomplete: Option<Arc<GrammarTokens>>,
}

/// The tokens that may follow, one bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    bits: SimpleVob,
}

impl TokenMask {
    /// Whether `id` may follow; ids beyond the tokenizer's vocabulary may not.
    pub fn allows(&self, id: u32) -> bool {
        (id as usize) < self.bits.len() && self.bits.is_allowed(id)
    }

    /// Bit `id % 32` of word `id / 32` is set for an allowed token.
    pub fn words(&self) -> &[u32] {
        self.bits.as_slice()
    }

    /// Number of token ids the mask speaks about.
    pub fn len(&self) -> usize {
        self.bits.len()
    }

    /// Whether no token may follow.
    pub fn is_empty(&self) -> bool {
        self.bits.num_set() == 0
    }

    /// The allowed ids, in order.
    pub fn ids(&self) -> Vec<u32> {
        let mut ids = Vec::with_capacity(self.bits.num_set());
        self.bits.iter_set_entries(|id| ids.push(id as u32));
        ids
    }
}

impl Matcher {
    pub(crate) fn new(inner: llguidance::Matcher, incomplete: Option<Arc<GrammarTokens>>) -> Self {
        Self { inner: inner.into_cancellable(), incomplete }
    }

    /// A matcher in the same state that shares nothing with this one.
    pub(crate) fn fresh_copy(&self) -> Self {
        Self { inner: self.inner.deep_clone(), incomplete: self.incomplete.clone() }
    }

    /// A copy for another choice of the same request.
    #[must_use]
    pub fn fork(&self) -> Self {
        self.fresh_copy()
    }

    /// Ends what the matcher is doing, and itself.
    pub(crate) fn cancellation(&self) -> Option<CancellationHandle> {
        self.inner.cancellation_handle()
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.inner.is_cancelled()
    }

    /// Tokens that may follow: end tokens only where the text is complete, nothing else once it is finished.
    ///
    /// # Errors
    /// Where no token may follow and the text is not complete, or the grammar has become too costly to follow.
    pub fn mask(&mut self) -> Result<TokenMask, TextError> {
        let bits = match self.patched() {
            Some(bits) => bits,
            None => self.inner.compute_mask_or_eos().map_err(|e| failed(&e.to_string()))?,
        };
        let mask = TokenMask { bits };
        if mask.is_empty() { Err(failed("no token of this model can go on with it")) } else { Ok(mask) }
    }

    /// The mask where a text is forced that has bytes which no token spells alone: tokens that leave a rest which can be
    /// spelled, and those that reach past the forced text as far as the grammar goes along.
    fn patched(&mut self) -> Option<SimpleVob> {
        let tokens = self.incomplete.clone()?;
        if self.is_finished() {
            return None;
        }
        let forced = self.inner.compute_ff_bytes();
        let mut bits = tokens.tok_trie().alloc_token_set();
        for id in tokens.beginnings(&forced)? {
            if self.inner.validate_tokens(&[id]).is_ok_and(|valid| valid == 1) {
                bits.allow_token(id);
            }
        }
        Some(bits)
    }

    /// Advances by a token of the mask.
    pub fn accept(&mut self, token: u32) -> Result<(), TextError> {
        if self.is_finished() {
            return Err(TextError::NotAllowed(token));
        }
        match self.inner.try_consume_tokens(&[token]) {
            Ok(1) => Ok(()),
            Ok(_) => Err(TextError::NotAllowed(token)),
            Err(e) => Err(failed(&e.to_string())),
        }
    }

    /// The next token where the grammar leaves no choice of it.
    pub fn forced(&mut self) -> Option<u32> {
        if self.is_finished() {
            return None;
        }
        if let Some(tokens) = self.incomplete.clone()
            && tokens.beginnings(&self.inner.compute_ff_bytes()).is_some()
        {
            return None;
        }
        self.inner.compute_ff_tokens().first().copied()
    }

    /// Whether nothing but the end can follow, or has followed.
    pub fn is_finished(&self) -> bool {
        self.inner.is_stopped()
    }

    /// Whether the text so far is complete.
    pub fn can_stop(&mut self) -> Result<bool, TextError> {
        if self.is_finished() {
            return Ok(true);
        }
        self.inner.is_accepting().map_err(|e| failed(&e.to_string()))
    }
}

fn failed(message: &str) -> TextError {
    TextError::Constraint(message.lines().next().unwrap_or_default().to_owned())
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matcher").field("finished", &self.is_finished()).finish_non_exhaustive()
    }
}
