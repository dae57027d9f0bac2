//! The vocabulary as the grammar compiler sees it: a trie of all tokens, and how the model itself would cut a text that
//! leaves no choice. Only such a cut is ever forced upon it.

use std::sync::Arc;

use llguidance::toktrie::{TokTrie, TokenizerEnv};

use super::Tokenizer;

/// A trie and the tokenizer it was made of.
pub(crate) struct GrammarTokens {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
    /// The bytes that no token spells alone. Where a forced text has one, llguidance's cut of it leaves that byte out.
    lacking: Vec<u8>,
}

impl GrammarTokens {
    pub fn new(trie: TokTrie, tokenizer: Arc<Tokenizer>) -> Self {
        // What llguidance marks control tokens with is no text.
        let bytes = 0..TokTrie::SPECIAL_TOKEN_MARKER;
        let lacking = bytes.filter(|&byte| trie.token_id_at_bytes(&[byte]).is_none()).collect();
        Self { trie, tokenizer, lacking }
    }

    /// Whether a text may have bytes that need tokens of several.
    pub fn is_incomplete(&self) -> bool {
        !self.lacking.is_empty()
    }

    /// The tokens that a text may begin with that has to begin with `forced`, as far as that can be told from the
    /// tokens' bytes; `None` where the model's own cut can be trusted.
    pub fn beginnings(&self, forced: &[u8]) -> Option<Vec<u32>> {
        let text = forced.split(|&byte| byte == TokTrie::SPECIAL_TOKEN_MARKER).next().unwrap_or_default();
        if !text.iter().any(|byte| self.lacking.contains(byte)) {
            return None;
        }
        // Whether the text from a place on can be spelled; its last token may reach past what is forced.
        let mut spelled = vec![false; text.len() + 1];
        spelled[text.len()] = true;
        let whole = text.len() == forced.len();
        for at in (0..text.len()).rev() {
            spelled[at] = self.steps(&text[at..]).any(|(_, length)| spelled[at + length])
                || (whole && self.trie.has_extensions(&text[at..]));
        }
        let inside = self.steps(text).filter(|&(_, length)| spelled[length]).map(|(token, _)| token);
        let past = if whole { self.extensions(text) } else { Vec::new() };
        Some(inside.chain(past).collect())
    }

    /// The tokens that begin with a text and are longer.
    fn extensions(&self, text: &[u8]) -> Vec<u32> {
        let mut found = Vec::new();
        let node = self.trie.child_at_bytes(self.trie.root(), text);
        let mut open: Vec<_> = node.into_iter().flat_map(|node| self.trie.node_children(node)).collect();
        while let Some(node) = open.pop() {
            found.extend(node.token_id());
            open.extend(self.trie.node_children(node));
        }
        found
    }

    /// The tokens that a text begins with, and their lengths.
    fn steps<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (u32, usize)> + 'a {
        self.trie.all_prefixes(text).into_iter().map(|token| (token, self.trie.token_len(token)))
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
