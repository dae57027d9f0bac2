//! One choice's grammar while its text grows: where it stands, and the mask for its next token. Knows no logits.

use crate::text::{Matcher, TextError, TokenMask};

/// A matcher and the mask of its next token, once computed.
#[derive(Debug)]
pub(crate) struct Constraint {
    matcher: Matcher,
    mask: Option<Result<TokenMask, TextError>>,
}

impl Constraint {
    /// Computes the first mask too: it is the slowest, and shows a grammar that allows nothing.
    pub fn new(matcher: Matcher) -> Result<Self, TextError> {
        let mut constraint = Self { matcher, mask: None };
        constraint.mask()?;
        Ok(constraint)
    }

    /// The same, for another choice of the request.
    pub fn fork(&self) -> Self {
        Self { matcher: self.matcher.fork(), mask: self.mask.clone() }
    }

    /// Computes the mask unless it is there. Depends on nothing but accepted tokens, so it may run beside the model.
    pub fn prepare(&mut self) {
        self.mask.get_or_insert_with(|| self.matcher.mask());
    }

    /// Bit `id % 32` of word `id / 32` allows a token.
    pub fn mask(&mut self) -> Result<&[u32], TextError> {
        let mask = self.mask.get_or_insert_with(|| self.matcher.mask());
        mask.as_ref().map(TokenMask::words).map_err(Clone::clone)
    }

    /// The next token where there is no choice of it.
    pub fn forced(&mut self) -> Option<u32> {
        self.matcher.forced()
    }

    /// Advances by a token of the mask that does not end the text. Returns whether nothing but the end can follow.
    pub fn accept(&mut self, token: u32) -> Result<bool, TextError> {
        self.mask = None;
        self.matcher.accept(token)?;
        Ok(self.matcher.is_finished())
    }
}
