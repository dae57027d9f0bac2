//! The vocabulary as the grammar compiler sees it: a trie of all tokens, and how the model itself would cut a text that
//! leaves no choice. Only such a cut is ever forced upon it.

use std::sync::Arc;

use llguidance::toktrie::{TokTrie, TokenizerEnv};

use super::Tokenizer;

/// A trie and the tokenizer it was made of.
pub(crate) struct GrammarTokens {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl GrammarTokens {
    pub fn new(trie: TokTrie, tokenizer: Arc<Tokenizer>) -> Self {
        Self { trie, tokenizer }
    }
}

impl TokenizerEnv for GrammarTokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            let ids = self.tokenizer.encode(text, false, false).unwrap_or_default();
            let spelled: Vec<u8> = ids.iter().flat_map(|&id| self.trie.token(id)).copied().collect();
            if spelled == text.as_bytes() { ids } else { self.trie.greedy_tokenize(text.as_bytes()) }
        })
    }

    /// A tokenizer that puts a space of its own before a text would cut the middle of one differently.
    fn tokenize_is_canonical(&self) -> bool {
        !self.tokenizer.strips_first_space()
    }
}
