//! BERT's word pieces from a GGUF vocabulary, where `▁` marks the beginning of a word and its absence a continuation.

use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{Model, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use super::TextError;
use super::bpe::SPACE;

/// Marks a continuation in the model's own spelling.
const CONTINUES: &str = "##";

/// An uncased word-piece model.
#[derive(Debug)]
pub(crate) struct WordPieces {
    model: WordPiece,
    normalizer: BertNormalizer,
}

impl WordPieces {
    pub(crate) fn new(tokens: &[String], unknown: Option<u32>) -> Result<Self, TextError> {
        let unknown = unknown.and_then(|id| tokens.get(id as usize)).map_or("[UNK]", String::as_str);
        if !tokens.iter().any(|token| token == unknown) {
            return Err(TextError::vocabulary("tokenizer.ggml.unknown_token_id", format!("no token is '{unknown}'")));
        }
        let spelled = |token: &String| match token.strip_prefix(SPACE) {
            Some(word) => word.to_owned(),
            None if token.starts_with('[') && token.ends_with(']') && token.len() > 2 => token.clone(),
            None => format!("{CONTINUES}{token}"),
        };
        let vocab: tokenizers::models::bpe::Vocab =
            tokens.iter().enumerate().map(|(id, token)| (spelled(token), id as u32)).collect();
        let model =
            WordPiece::builder().vocab(vocab).unk_token(unknown.to_owned()).max_input_chars_per_word(100).build();
        let model = model.map_err(|e| TextError::vocabulary("tokenizer.ggml.tokens", e.to_string()))?;
        Ok(Self { model, normalizer: BertNormalizer::new(true, true, Some(true), true) })
    }

    /// Appends the tokens of `text`.
    pub(crate) fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<(), TextError> {
        let failed = |e: tokenizers::Error| TextError::Encode(e.to_string());
        let mut words = PreTokenizedString::from(text);
        words.normalize(|text| self.normalizer.normalize(text)).map_err(failed)?;
        BertPreTokenizer.pre_tokenize(&mut words).map_err(failed)?;
        for (word, ..) in words.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            out.extend(self.model.tokenize(word).map_err(failed)?.iter().map(|token| token.id));
        }
        Ok(())
    }
}
