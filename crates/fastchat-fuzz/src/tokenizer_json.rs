//! A stranger's tokenizer.json. Must hold: a typed error in one line or a tokenizer; that one encodes any text to ids of
//! its vocabulary, or says why not; decoding as a stream is decoding at once.

use fastchat_engine::text::{Detokenizer, Tokenizer};
use fastchat_models::TokenizerSource;

use crate::folder::Folder;
use crate::text::check_message;

const TEXT: &str = "Hello <|im_end|>  w\u{f6}rld, 12345 \u{4f60}\u{597d}\n\u{0}\u{1f642}'ll ";

/// The whole file.
pub fn check(input: &[u8]) {
    let folder = Folder::new("tokenizer");
    let file = folder.write("tokenizer.json", input);
    let tokenizer = match Tokenizer::new(&TokenizerSource::Json(file, None)) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return check_message(&error),
    };
    for parse_special in [false, true] {
        let ids = match tokenizer.encode(TEXT, true, parse_special) {
            Ok(ids) => ids,
            Err(error) => {
                check_message(&error);
                continue;
            }
        };
        // Ids that a file gives its frame need not be of its vocabulary; that is said when they are shown.
        let Ok(whole) = tokenizer.decode(&ids, false) else { continue };
        let mut detokenizer = Detokenizer::new(&tokenizer, false);
        let mut text = String::new();
        for id in ids {
            detokenizer.push(&tokenizer, id, &mut text).expect("an id that was decoded");
        }
        detokenizer.finish(&mut text);
        assert_eq!(text, whole);
    }
}
