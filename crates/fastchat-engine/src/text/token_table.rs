//! Spelling and bytes of every token of a vocabulary, packed. Knows no algorithm that makes tokens of text.

use super::spellings::Spellings;

/// Spelling and exact bytes of every token.
#[derive(Debug)]
pub(crate) struct TokenTable {
    pub names: Spellings,
    /// Bytes of all tokens, one behind the other; token `id` is `bytes[ends[id - 1]..ends[id]]`.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    pub special: Vec<bool>,
    pub strips_first_space: bool,
}

impl TokenTable {
    pub(crate) fn new(strips_first_space: bool) -> Self {
        let (names, bytes, ends, special) = (Spellings::default(), Vec::new(), Vec::new(), Vec::new());
        Self { names, bytes, ends, special, strips_first_space }
    }

    pub(crate) fn push(&mut self, name: &str, bytes: &[u8], special: bool) {
        self.names.push(name);
        self.spell(bytes, special);
    }

    /// Of a token whose name is there already.
    pub(crate) fn spell(&mut self, bytes: &[u8], special: bool) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len() as u32);
        self.special.push(special);
    }

    /// Exact bytes of token `id`, if there is one.
    pub(crate) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let end = *self.ends.get(id as usize)? as usize;
        let start = if id == 0 { 0 } else { self.ends[id as usize - 1] as usize };
        Some(&self.bytes[start..end])
    }
}
