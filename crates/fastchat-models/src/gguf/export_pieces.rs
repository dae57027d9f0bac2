//! Tokenizers of tokenizer.json that are no merges: unigram models (SentencePiece, `t5` in GGUF) and word pieces (`bert`).
//! What GGUF's readers take for granted of them is demanded here, field by field.

use std::path::Path;

use serde_json::{Map, Value};

use super::export_text::{NORMAL, Tables, UNKNOWN, steps};
use crate::ModelError;

/// Marks the beginning of a word in GGUF's tables.
const SPACE: char = '▁';

/// Refuses a step of a tokenizer.
fn refuse(file: &Path, field: &str, value: &Value, expected: &str) -> ModelError {
    ModelError::unsupported(file, field, value.to_string(), expected)
}

impl Tables {
    /// Scores by id, the table of normal forms, and how spaces are spelt.
    pub(super) fn unigrams(
        &mut self,
        file: &Path,
        json: &Map<String, Value>,
        model: &Map<String, Value>,
    ) -> Result<(), ModelError> {
        self.model = "t5";
        if model.get("byte_fallback") == Some(&Value::Bool(true)) {
            return Err(refuse(file, "model.byte_fallback", &true.into(), "GGUF's unigram tables have no bytes"));
        }
        let pieces = model.get("vocab").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if pieces.is_empty() || pieces.len() > self.tokens.len() {
            let expected = format!("up to {} tokens", self.tokens.len());
            return Err(ModelError::field(file, "model.vocab", format!("{} tokens", pieces.len()), expected));
        }
        self.scores = vec![0.0; self.tokens.len()];
        for (id, piece) in pieces.iter().enumerate() {
            let (Some(token), Some(score)) = (piece[0].as_str(), piece[1].as_f64()) else {
                return Err(ModelError::field(file, "model.vocab", piece, "pairs of a token and its score"));
            };
            (self.tokens[id], self.kinds[id], self.scores[id]) = (token.to_owned(), NORMAL, score as f32);
        }
        self.unknown = model.get("unk_id").and_then(Value::as_u64).map(|id| id as u32);
        if let Some(kind) = self.unknown.and_then(|id| self.kinds.get_mut(id as usize)) {
            *kind = UNKNOWN;
        }
        for step in steps(json.get("normalizer").unwrap_or(&Value::Null)) {
            match step["type"].as_str() {
                None | Some("Strip") => {}
                Some("Precompiled") => {
                    let table = step["precompiled_charsmap"].as_str().and_then(from_base64);
                    self.charsmap = table.ok_or_else(|| {
                        ModelError::field(file, "normalizer.precompiled_charsmap", "damaged text", "base64")
                    })?;
                }
                Some("Replace") if step["pattern"]["Regex"] == " {2,}" => self.merges_spaces = true,
                Some(_) => {
                    return Err(refuse(file, "normalizer", step, "Precompiled, Strip and Replace of spaces are"));
                }
            }
        }
        for step in steps(json.get("pre_tokenizer").unwrap_or(&Value::Null)) {
            match step["type"].as_str() {
                Some("WhitespaceSplit") => self.merges_spaces = true,
                Some("Metaspace") if step["prepend_scheme"] == "never" || step["add_prefix_space"] == false => {}
                Some("Metaspace") => self.space_prefix = true,
                _ => return Err(refuse(file, "pre_tokenizer", step, "Metaspace is, for unigram models in GGUF")),
            }
        }
        // Otherwise GGUF's readers put a space before a text that has one, and take breaks of lines as they are.
        if !self.merges_spaces || self.charsmap.is_empty() || !self.space_prefix {
            let both = Value::from_iter([json.get("normalizer").cloned(), json.get("pre_tokenizer").cloned()]);
            let expected =
                "in GGUF, unigram models with a table of normal forms and words that begin with one space are";
            return Err(refuse(file, "normalizer, pre_tokenizer", &both, expected));
        }
        Ok(())
    }

    /// Tokens by id, beginnings of words marked instead of continuations.
    pub(super) fn word_pieces(
        &mut self,
        file: &Path,
        json: &Map<String, Value>,
        model: &Map<String, Value>,
    ) -> Result<(), ModelError> {
        self.model = "bert";
        let normalizer = json.get("normalizer").unwrap_or(&Value::Null);
        let plain = normalizer["type"] == "BertNormalizer"
            && ["clean_text", "handle_chinese_chars", "lowercase"].iter().all(|flag| normalizer[*flag] == true)
            && normalizer["strip_accents"] != false;
        if !plain {
            return Err(refuse(file, "normalizer", normalizer, "GGUF's word pieces are those of uncased BERT"));
        }
        let words = json.get("pre_tokenizer").unwrap_or(&Value::Null);
        if words["type"] != "BertPreTokenizer" {
            return Err(refuse(file, "pre_tokenizer", words, "BertPreTokenizer is, for word pieces in GGUF"));
        }
        let continues = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or("##");
        for (token, kind) in self.tokens.iter_mut().zip(&self.kinds) {
            let bracketed = token.len() > 2 && token.starts_with('[') && token.ends_with(']');
            if *kind == NORMAL && !bracketed {
                *token = match token.strip_prefix(continues) {
                    Some(rest) => rest.to_owned(),
                    None => format!("{SPACE}{token}"),
                };
            }
        }
        Ok(())
    }
}

/// The bytes of a text in base64 (RFC 4648), padded or not.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').bytes().map(|byte| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    });
    let digits: Vec<u8> = digits.collect::<Option<_>>()?;
    let bytes = |four: &[u8]| {
        let bits = four.iter().fold(0u32, |bits, digit| bits << 6 | u32::from(*digit)) << (6 * (4 - four.len()));
        bits.to_be_bytes()[1..four.len().max(1)].to_vec()
    };
    Some(digits.chunks(4).flat_map(bytes).collect())
}

#[cfg(test)]
mod tests {
    use super::from_base64;

    #[test]
    fn base64_is_read() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmE=", "fooba")] {
            assert_eq!(from_base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!(from_base64("Zm9v!"), None);
    }
}
