//! SentencePiece unigram models of GGUF vocabularies (`t5`): text is normalised by the model's own table, then cut into the
//! most likely tokens. Knows no special tokens.

use fastchat_models::GgufVocab;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::Precompiled;
use tokenizers::{Model, NormalizedString, Normalizer};

use super::TextError;
use super::bpe::SPACE;

/// GGUF's number for tokens of the model's users, which win over all others.
const USER_DEFINED: i32 = 4;

/// A unigram model and how text is laid out for it.
#[derive(Debug)]
pub(crate) struct Unigrams {
    model: Unigram,
    table: Option<Precompiled>,
    /// Runs of spaces become one, those at the ends none.
    merges_spaces: bool,
    space_before: bool,
}

impl Unigrams {
    /// Reads scores and table.
    pub(crate) fn new(vocab: &GgufVocab) -> Result<Self, TextError> {
        let tokens = &vocab.tokens;
        if vocab.scores.len() != tokens.len() {
            let message = format!("has {} entries, tokenizer.ggml.tokens has {}", vocab.scores.len(), tokens.len());
            return Err(TextError::vocabulary("tokenizer.ggml.scores", message));
        }
        let score = |id: usize| match vocab.token_types.get(id) {
            Some(&USER_DEFINED) => 0.0,
            _ => f64::from(vocab.scores[id]),
        };
        let scored = tokens.iter().enumerate().map(|(id, token)| (token.clone(), score(id))).collect();
        let unknown = vocab.unk.map(|id| id as usize);
        let model = Unigram::from(scored, unknown, false)
            .map_err(|e| TextError::vocabulary("tokenizer.ggml.tokens", e.to_string()))?;
        let table = Some(&vocab.precompiled_charsmap).filter(|bytes| !bytes.is_empty());
        let table = table
            .map(|bytes| Precompiled::from(bytes))
            .transpose()
            .map_err(|e| TextError::vocabulary("tokenizer.ggml.precompiled_charsmap", e.to_string()))?;
        let merges_spaces = vocab.remove_extra_whitespaces;
        Ok(Self { model, table, merges_spaces, space_before: vocab.add_space_prefix })
    }

    /// Appends the tokens of `text`.
    pub(crate) fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<(), TextError> {
        let failed = |e: tokenizers::Error| TextError::Encode(e.to_string());
        let mut normalized = NormalizedString::from(text);
        if let Some(table) = &self.table {
            table.normalize(&mut normalized).map_err(failed)?;
        }
        let spelled = self.spell(normalized.get());
        if !spelled.is_empty() {
            out.extend(self.model.tokenize(&spelled).map_err(failed)?.iter().map(|token| token.id));
        }
        Ok(())
    }

    fn spell(&self, text: &str) -> String {
        if self.merges_spaces {
            // Every word has its space, the first one too.
            let words = text.split(' ').filter(|word| !word.is_empty());
            return words.flat_map(|word| [SPACE, word]).collect();
        }
        let prefix = if self.space_before && !text.trim_start_matches(' ').is_empty() { SPACE } else { "" };
        let spaces = text.len() - text.trim_start_matches(' ').len();
        // The prefix stands before the first word, behind the spaces that the text begins with: the same characters.
        format!("{}{prefix}{}", SPACE.repeat(spaces), text[spaces..].replace(' ', SPACE))
    }
}

#[cfg(test)]
mod tests {
    use fastchat_models::GgufVocab;

    use super::Unigrams;

    fn vocab() -> GgufVocab {
        let tokens = ["<unk>", "\u{2581}", "a", "b", "ab", "\u{2581}ab", "abab", "c"];
        GgufVocab {
            model: "t5".into(),
            tokens: tokens.map(str::to_owned).to_vec(),
            scores: vec![0., -2., -3., -3., -4., -4.5, -9.5, -3.],
            token_types: vec![2, 1, 1, 1, 1, 1, 1, 4],
            unk: Some(0),
            add_space_prefix: true,
            ..GgufVocab::default()
        }
    }

    fn ids(vocab: &GgufVocab, text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        Unigrams::new(vocab).unwrap().encode(text, &mut out).unwrap();
        out
    }

    #[test]
    fn the_likeliest_tokens_are_taken() {
        // -4.5 - 4 is more than -2 - 9.5.
        assert_eq!(ids(&vocab(), "abab"), [5, 4]);
        assert_eq!(ids(&vocab(), "ba"), [1, 3, 2]);
        // A user's token costs nothing; what no token has is unknown.
        assert_eq!(ids(&vocab(), "cc"), [1, 7, 7]);
        assert_eq!(ids(&vocab(), "aé"), [1, 2, 0]);
        assert_eq!(ids(&vocab(), ""), Vec::<u32>::new());
    }

    #[test]
    fn spaces_are_kept_or_merged() {
        assert_eq!(ids(&vocab(), " ab  a "), [1, 5, 1, 1, 2, 1]);
        let merging = GgufVocab { remove_extra_whitespaces: true, ..vocab() };
        assert_eq!(ids(&merging, " ab  a "), [5, 1, 2]);
    }

    #[test]
    fn tables_that_do_not_fit_are_errors() {
        let short = GgufVocab { scores: vec![0.], ..vocab() };
        assert!(Unigrams::new(&short).unwrap_err().to_string().contains("tokenizer.ggml.scores"));
        let broken = GgufVocab { precompiled_charsmap: vec![1, 2, 3], ..vocab() };
        assert!(Unigrams::new(&broken).unwrap_err().to_string().contains("precompiled_charsmap"));
    }
}
