//! Drafts without a draft model: proposes what followed the last few tokens where they stood in the text before, and
//! learns for each sequence whether that pays (prompt lookup decoding). Pure integers. A draft never changes what is
//! generated: a drafted token is kept only if it is the one that sampling chooses at its position anyway.

/// Tokens that must recur before what followed them is proposed.
const NEEDLE: usize = 3;
/// Most tokens of a draft; less than a block.
pub const MAX_DRAFT: usize = 7;
/// Length of a sequence's first draft.
const FIRST_DRAFT: usize = 2;
/// How many of the last tokens are searched.
const WINDOW: usize = 8_192;
/// Longest pause, in steps, after drafts that failed.
const MAX_PAUSE: usize = 256;

/// One sequence's drafts and how they fared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drafter {
    /// Length of the next draft.
    length: usize,
    /// Steps to let pass before it.
    pause: usize,
    /// Drafts in a row of which nothing was kept.
    failures: u32,
    /// Length of the text and of the draft when the last one was proposed.
    outstanding: Option<(usize, usize)>,
}

impl Default for Drafter {
    fn default() -> Self {
        Self { length: FIRST_DRAFT, pause: 0, failures: 0, outstanding: None }
    }
}

impl Drafter {
    /// Tokens that may follow `tokens`, at most `room`; called once per step. Often none.
    pub fn propose<'a>(&mut self, tokens: &'a [u32], room: usize) -> &'a [u32] {
        if let Some((len, drafted)) = self.outstanding.take() {
            self.learn(drafted, tokens.len() - len - 1);
        }
        let room = room.min(self.length);
        if room == 0 || self.pause > 0 {
            self.pause = self.pause.saturating_sub(1);
            return &[];
        }
        let draft = lookup(&tokens[tokens.len().saturating_sub(WINDOW)..], room);
        if !draft.is_empty() {
            self.outstanding = Some((tokens.len(), draft.len()));
        }
        draft
    }

    fn learn(&mut self, drafted: usize, kept: usize) {
        if kept == 0 {
            self.failures += 1;
            self.length = (self.length / 2).max(1);
            self.pause = (1 << self.failures.min(16)).min(MAX_PAUSE);
        } else {
            self.failures = 0;
            if kept == drafted {
                self.length = (self.length + 2).min(MAX_DRAFT);
            }
        }
    }
}

/// What followed the latest earlier occurrence of the last tokens.
fn lookup(tokens: &[u32], room: usize) -> &[u32] {
    let Some(body) = tokens.len().checked_sub(NEEDLE) else { return &[] };
    let needle = &tokens[body..];
    let found = tokens[..tokens.len() - 1].windows(NEEDLE).rposition(|window| window == needle);
    found.map_or(&[], |at| &tokens[at + NEEDLE..(at + NEEDLE + room).min(tokens.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_before_is_proposed_again() {
        assert_eq!(lookup(&[1, 2, 3, 4, 5, 1, 2, 3], 2), [4, 5]);
        assert_eq!(lookup(&[1, 2, 3, 9, 1, 2, 3, 4, 1, 2, 3], 1), [4], "the latest occurrence counts");
        assert_eq!(lookup(&[7, 7, 7, 7], 5), [7], "a draft ends where the text does");
        assert!(lookup(&[1, 2, 3, 4, 5, 6], 5).is_empty());
        assert!(lookup(&[1, 2], 5).is_empty());
    }

    #[test]
    fn drafts_grow_with_success_and_pause_after_failure() {
        let mut text: Vec<u32> = (0..50).chain(0..3).collect();
        let mut drafter = Drafter::default();
        assert_eq!(drafter.propose(&text, MAX_DRAFT), [3, 4]);
        text.extend([3, 4, 5]);
        assert_eq!(drafter.propose(&text, MAX_DRAFT), [6, 7, 8, 9]);
        assert_eq!(drafter.propose(&[text.clone(), vec![6, 7, 8]].concat(), 3), [9, 10, 11], "room is respected");
        let mut failed = drafter.clone();
        let mut waited = 0;
        text.extend([6, 7, 8, 99, 0, 1, 2]);
        failed.outstanding = Some((text.len() - 1, 3));
        while failed.propose(&text, MAX_DRAFT).is_empty() {
            waited += 1;
        }
        assert_eq!(waited, 2);
    }
}
