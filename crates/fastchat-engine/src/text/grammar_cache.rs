//! The constraints compiled last, so that requests that share a schema compile it once.

use std::collections::VecDeque;

use super::Matcher;

/// Most grammars kept; each may hold some megabytes of lexer states.
const MAX_ENTRIES: usize = 32;

/// Least recently used first.
#[derive(Default)]
pub(crate) struct GrammarCache {
    entries: VecDeque<(String, Matcher)>,
}

impl GrammarCache {
    pub(crate) fn get(&mut self, key: &str) -> Option<Matcher> {
        let at = self.entries.iter().position(|(known, _)| known == key)?;
        let entry = self.entries.remove(at)?;
        let copy = entry.1.fresh_copy();
        self.entries.push_back(entry);
        Some(copy)
    }

    pub(crate) fn insert(&mut self, key: String, matcher: Matcher) {
        if self.entries.iter().any(|(known, _)| *known == key) {
            return;
        }
        if self.entries.len() == MAX_ENTRIES {
            self.entries.pop_front();
        }
        self.entries.push_back((key, matcher));
    }
}

impl std::fmt::Debug for GrammarCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarCache").field("entries", &self.entries.len()).finish()
    }
}
