//! UTF-8 out of tokens as they come. Must hold for any ids: pieces joined are what decoding all ids at once gives, at most
//! three bytes are held, ids outside the vocabulary are a typed error and change nothing.

use fastchat_engine::text::{Detokenizer, TextError, Tokenizer};

use crate::vocabulary;

/// The first byte says whether control tokens are shown; each other byte is a token, 255 with the byte behind it.
pub fn check(input: &[u8]) {
    let Some((&options, rest)) = input.split_first() else { return };
    let tokenizer = vocabulary::tokenizer();
    let mut bytes = rest.iter();
    let mut ids = Vec::new();
    while let Some(&byte) = bytes.next() {
        let more = if byte == 255 { bytes.next().copied().unwrap_or(0) } else { 0 };
        ids.push(u32::from(byte) + u32::from(more));
    }
    compare(&tokenizer, &ids, options & 1 == 1);
}

fn compare(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) {
    let mut detokenizer = Detokenizer::new(tokenizer, skip_special);
    let (mut text, mut known) = (String::new(), Vec::new());
    for &id in ids {
        let before = (text.len(), detokenizer.held());
        match detokenizer.push(tokenizer, id, &mut text) {
            Ok(()) => known.push(id),
            Err(error) => {
                assert_eq!(error, TextError::TokenId { id, size: tokenizer.vocab_size() });
                assert_eq!((text.len(), detokenizer.held()), before);
            }
        }
        assert!(detokenizer.held() < 4, "holds {} bytes", detokenizer.held());
    }
    detokenizer.finish(&mut text);
    assert_eq!(Ok(text), tokenizer.decode(&known, skip_special));
}
