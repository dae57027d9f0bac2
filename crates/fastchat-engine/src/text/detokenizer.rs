//! Token ids to text as they come: whole characters only, and joined they are what decoding all ids at once gives.

use super::{TextError, Tokenizer};

/// Decodes one sequence of tokens; holds at most the bytes of one unfinished character.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    skip_special: bool,
    /// The next byte begins the text, where a tokenizer's own first space is dropped.
    at_start: bool,
    tail: Vec<u8>,
}

impl Detokenizer {
    /// Decodes a text from its beginning, as [`Tokenizer::decode`] does.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        Self { skip_special, at_start: tokenizer.strips_first_space(), tail: Vec::new() }
    }

    /// Decodes the continuation of a text: its first space belongs to it.
    pub fn continuing(skip_special: bool) -> Self {
        Self { skip_special, at_start: false, tail: Vec::new() }
    }

    /// Appends to `out` the characters that token `id` completes.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32, out: &mut String) -> Result<(), TextError> {
        let mut bytes = tokenizer.token_bytes(id)?;
        if (self.skip_special && tokenizer.is_special(id)) || bytes.is_empty() {
            return Ok(());
        }
        if self.at_start {
            self.at_start = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.push_bytes(bytes, out);
        Ok(())
    }

    fn push_bytes(&mut self, bytes: &[u8], out: &mut String) {
        // Nearly every token is whole characters and nothing is held.
        if self.tail.is_empty()
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            out.push_str(text);
            return;
        }
        self.tail.extend_from_slice(bytes);
        let mut done = 0;
        for chunk in self.tail.utf8_chunks() {
            let (valid, invalid) = (chunk.valid(), chunk.invalid());
            out.push_str(valid);
            done += valid.len();
            let unfinished = done + invalid.len() == self.tail.len() && is_unfinished(invalid);
            if !invalid.is_empty() && !unfinished {
                out.push(char::REPLACEMENT_CHARACTER);
                done += invalid.len();
            }
        }
        self.tail.drain(..done);
    }

    /// Number of bytes held back.
    pub fn held(&self) -> usize {
        self.tail.len()
    }

    /// Appends what is held when no more tokens come: an unfinished character as U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&String::from_utf8_lossy(&self.tail));
        self.tail.clear();
    }
}

/// Whether more bytes could make `bytes` a character.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Detokenizer;
    use crate::text::Tokenizer;
    use crate::text::test_vocabulary::{byte_level, sentencepiece};

    fn check(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) {
        let mut detokenizer = Detokenizer::new(tokenizer, skip_special);
        let mut text = String::new();
        for &id in ids {
            detokenizer.push(tokenizer, id, &mut text).unwrap();
            assert!(detokenizer.held() < 4, "holds {} bytes", detokenizer.held());
        }
        detokenizer.finish(&mut text);
        assert_eq!(text, tokenizer.decode(ids, skip_special).unwrap());
    }

    proptest! {
        #[test]
        fn pieces_joined_are_the_whole(ids in prop::collection::vec(0u32..259, 0..40), skip in any::<bool>()) {
            check(&byte_level(), &ids, skip);
            check(&sentencepiece(), &ids, skip);
        }

        #[test]
        fn any_text_survives(text in "\\PC{0,30}") {
            // SentencePiece itself cannot tell this character from a space.
            let text = text.replace('\u{2581}', "_");
            for tokenizer in [byte_level(), sentencepiece()] {
                let ids = tokenizer.encode(&text, false, false).unwrap();
                prop_assert_eq!(&tokenizer.decode(&ids, false).unwrap(), &text);
                check(&tokenizer, &ids, true);
            }
        }
    }

    #[test]
    fn a_tokenizers_own_space_goes_only_at_the_beginning() {
        let tokenizer = sentencepiece();
        let ids = tokenizer.encode("a b", false, false).unwrap();
        let mut text = String::new();
        let mut detokenizer = Detokenizer::continuing(true);
        for id in ids {
            detokenizer.push(&tokenizer, id, &mut text).unwrap();
        }
        assert_eq!(text, " a b");
    }
}
