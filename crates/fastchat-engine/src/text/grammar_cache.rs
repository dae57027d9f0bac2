//! The constraints compiled last, so that requests that share a schema compile it once. Bounded by bytes.

use std::collections::VecDeque;

use super::Matcher;

/// Memory of all grammars kept.
const MAX_BYTES: usize = 64 << 20;

struct Entry {
    key: String,
    matcher: Matcher,
    bytes: usize,
}

/// Least recently used first.
#[derive(Default)]
pub(crate) struct GrammarCache {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl GrammarCache {
    pub(crate) fn get(&mut self, key: &str) -> Option<Matcher> {
        let at = self.entries.iter().position(|entry| entry.key == key)?;
        let entry = self.entries.remove(at)?;
        let copy = entry.matcher.fresh_copy();
        self.entries.push_back(entry);
        Some(copy)
    }

    /// Keeps a grammar of about `bytes`, at the price of those used least recently; one that is too large is not kept.
    pub(crate) fn insert(&mut self, key: String, matcher: Matcher, bytes: usize) {
        if bytes > MAX_BYTES || self.entries.iter().any(|entry| entry.key == key) {
            return;
        }
        while self.bytes + bytes > MAX_BYTES
            && let Some(oldest) = self.entries.pop_front()
        {
            self.bytes -= oldest.bytes;
        }
        self.bytes += bytes;
        self.entries.push_back(Entry { key, matcher, bytes });
    }
}

impl std::fmt::Debug for GrammarCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarCache").field("entries", &self.entries.len()).field("bytes", &self.bytes).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::grammar_tests::END;
    use super::super::test_vocabulary::byte_level;
    use super::super::{GrammarCompiler, GrammarSpec};
    use super::*;

    #[test]
    fn the_least_recently_used_make_room() {
        let tokenizer = byte_level();
        let compiler = GrammarCompiler::new(&tokenizer, &[END]).unwrap();
        let matcher = compiler.compile(&GrammarSpec::Regex("a".into())).unwrap();
        let mut cache = GrammarCache::default();
        for key in ["a", "b", "c"] {
            cache.insert(key.into(), matcher.fresh_copy(), MAX_BYTES / 3);
        }
        assert!(cache.get("a").is_some());
        cache.insert("d".into(), matcher.fresh_copy(), MAX_BYTES / 3);
        assert!(cache.get("b").is_none() && cache.get("a").is_some() && cache.get("d").is_some());
        cache.insert("huge".into(), matcher.fresh_copy(), MAX_BYTES + 1);
        assert!(cache.get("huge").is_none() && cache.get("c").is_some());
        cache.insert("large".into(), matcher.fresh_copy(), MAX_BYTES);
        assert!(cache.get("large").is_some() && cache.get("a").is_none() && cache.bytes <= MAX_BYTES);
    }
}
