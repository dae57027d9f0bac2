//! One choice's grammar while its text grows: where it stands, and the mask for its next token. Knows no logits.

use std::sync::Arc;
use std::time::Duration;

use crate::mask_watch::MaskWatch;
use crate::text::{Matcher, TextError, TokenMask};

/// Masks that are computed aside after one that was slow: where one is, the next ones often are.
const WARY: u32 = 32;

/// How long masks may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskLimits {
    /// A request whose mask takes longer has failed.
    pub timeout: Duration,
    /// A request with a mask that took longer sits out of steps while its next ones are computed.
    pub aside: Duration,
}

impl Default for MaskLimits {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(1), aside: Duration::from_millis(1) }
    }
}

/// What an engine's constraints share.
#[derive(Clone, Debug)]
pub(crate) struct MaskRules {
    pub watch: Arc<MaskWatch>,
    pub aside: Duration,
}

/// A matcher and the mask of its next token, once computed.
#[derive(Debug)]
pub(crate) struct Constraint {
    matcher: Matcher,
    mask: Option<Result<TokenMask, TextError>>,
    rules: MaskRules,
    wary: u32,
}

impl Constraint {
    /// Computes the first mask too: it is the slowest, and shows a grammar that allows nothing.
    pub fn new(matcher: Matcher, rules: MaskRules) -> Result<Self, TextError> {
        let mut constraint = Self { matcher, mask: None, rules, wary: 0 };
        constraint.mask()?;
        Ok(constraint)
    }

    /// The same, for another choice of the request.
    pub fn fork(&self) -> Self {
        Self { matcher: self.matcher.fork(), mask: self.mask.clone(), rules: self.rules.clone(), wary: self.wary }
    }

    /// Whether its next mask is not there and may be slow.
    pub fn is_slow(&self) -> bool {
        self.mask.is_none() && self.wary > 0
    }

    /// Computes the mask unless it is there. Depends on nothing but accepted tokens, so it may run beside the model.
    pub fn prepare(&mut self) {
        // An error is told when the mask is asked for.
        let _ = self.mask();
    }

    /// Bit `id % 32` of word `id / 32` allows a token.
    pub fn mask(&mut self) -> Result<&[u32], TextError> {
        let mask = self.mask.take().unwrap_or_else(|| self.within_limit(Matcher::mask));
        self.mask.insert(mask).as_ref().map(TokenMask::words).map_err(Clone::clone)
    }

    /// The next token where there is no choice of it.
    pub fn forced(&mut self) -> Option<u32> {
        self.within_limit(|matcher| Ok(matcher.forced())).ok().flatten()
    }

    /// Advances by a token of the mask that does not end the text. Returns whether nothing but the end can follow.
    pub fn accept(&mut self, token: u32) -> Result<bool, TextError> {
        self.mask = None;
        self.within_limit(|matcher| matcher.accept(token))?;
        Ok(self.matcher.is_finished())
    }

    fn within_limit<T>(&mut self, work: impl FnOnce(&mut Matcher) -> Result<T, TextError>) -> Result<T, TextError> {
        let watch = &self.rules.watch;
        let (done, took) = watch.during(self.matcher.cancellation(), || work(&mut self.matcher));
        self.wary = if took > self.rules.aside { WARY } else { self.wary.saturating_sub(1) };
        let limit = watch.limit();
        if took > limit || self.matcher.is_cancelled() {
            let message = format!("finding what may come next took longer than the limit of {limit:?}");
            return Err(TextError::Constraint(message));
        }
        done
    }
}
