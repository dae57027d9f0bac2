//! A bound on how long a model may think: watches one output's bytes for the markers and, when the budget is spent, says
//! which tokens close the thoughts. Knows no sampling.

use std::collections::VecDeque;

use super::{ReasoningMarkers, TextError, Tokenizer};

/// How long a model may think, and how it writes that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThinkingBudget {
    /// Tokens of thoughts, markers not counted.
    pub tokens: u32,
    /// Around the thoughts.
    pub markers: ReasoningMarkers,
    /// The prompt already began them.
    pub opened: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing but blanks and a part of the opening marker so far.
    Start,
    Thinking,
    Over,
}

/// One output against its budget.
#[derive(Clone, Debug)]
pub(crate) struct Thinking {
    budget: ThinkingBudget,
    place: Place,
    spent: u32,
    /// The last bytes, as many as a marker may need.
    tail: Vec<u8>,
    /// What closes the thoughts; taken from the front once the budget is spent.
    closing: VecDeque<u32>,
}

impl Thinking {
    /// At the beginning of an output.
    pub fn new(budget: ThinkingBudget, tokenizer: &Tokenizer) -> Result<Self, TextError> {
        let close = budget.markers.close;
        let marker =
            tokenizer.token_to_id(close).map_or_else(|| tokenizer.encode(close, false, true), |id| Ok(vec![id]))?;
        let place = if budget.opened { Place::Thinking } else { Place::Start };
        Ok(Self { budget, place, spent: 0, tail: Vec::new(), closing: marker.into() })
    }

    /// The token that has to come next, once the budget is spent.
    pub fn forced(&self) -> Option<u32> {
        let spent = self.place == Place::Thinking && self.spent >= self.budget.tokens;
        self.closing.front().copied().filter(|_| spent)
    }

    /// Books a token of the output.
    pub fn push(&mut self, token: u32, bytes: &[u8]) {
        if self.place == Place::Over {
            return;
        }
        if self.forced() == Some(token) {
            self.closing.pop_front();
            if self.closing.is_empty() {
                self.place = Place::Over;
                return;
            }
        } else if self.place == Place::Thinking {
            self.spent += 1;
        }
        let (open, close) = (self.budget.markers.open.as_bytes(), self.budget.markers.close.as_bytes());
        self.tail.extend_from_slice(bytes);
        if self.place == Place::Start {
            let text = self.tail.trim_ascii_start();
            if let Some(rest) = text.strip_prefix(open) {
                self.tail = rest.to_vec();
                self.place = Place::Thinking;
            } else if !open.starts_with(text) {
                self.place = Place::Over;
            }
        }
        if self.place == Place::Thinking {
            if self.tail.windows(close.len()).any(|window| window == close) {
                self.place = Place::Over;
            }
            let surplus = self.tail.len().saturating_sub(close.len());
            self.tail.drain(..surplus);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::REASONING_MARKERS;
    use super::super::test_vocabulary::byte_level;
    use super::*;

    fn play(tokens: u32, opened: bool, text: &str) -> (String, bool) {
        let tokenizer = byte_level();
        let budget = ThinkingBudget { tokens, markers: REASONING_MARKERS[0], opened };
        let mut thinking = Thinking::new(budget, &tokenizer).unwrap();
        let (mut out, mut forced) = (Vec::new(), false);
        let mut own = text.bytes();
        loop {
            let closing = thinking.forced();
            forced |= closing.is_some();
            let Some(token) = closing.or_else(|| own.next().map(u32::from)) else { break };
            // The test's vocabulary begins with the bytes.
            let bytes = tokenizer.token_bytes(token).unwrap().to_vec();
            thinking.push(token, &bytes);
            out.extend(bytes);
        }
        (String::from_utf8(out).unwrap(), forced)
    }

    #[test]
    fn thoughts_end_when_their_budget_is_spent() {
        assert_eq!(play(3, true, "abcdef"), ("abc</think>def".into(), true));
        assert_eq!(play(0, true, "abc"), ("</think>abc".into(), true));
        assert_eq!(play(2, false, "\n<think>abcd"), ("\n<think>ab</think>cd".into(), true));
    }

    #[test]
    fn who_ends_in_time_or_does_not_think_is_left_alone() {
        for text in ["ab</think>cdefghijklmnop<think>more", "</think>x"] {
            assert_eq!(play(20, true, text), (text.into(), false));
        }
        for text in ["An answer of some length, <think> included", "  <thin air", ""] {
            assert_eq!(play(1, false, text), (text.into(), false));
        }
    }
}
