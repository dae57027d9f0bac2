//! Byte-pair models of GGUF vocabularies: words by pattern, tokens by merges. Knows no special tokens.

use tokenizers::models::bpe::BPE;
use tokenizers::{Model, NormalizedString};

use super::TextError;
use super::byte_level::ByteAlphabet;
use super::split::Splitter;
use super::split_patterns::{Spelling, WordRules};

/// Space as vocabularies without a byte alphabet write it.
pub(crate) const SPACE: &str = "\u{2581}";

/// A byte-pair model and how text is laid out for it.
#[derive(Debug)]
pub(crate) struct BytePairs {
    model: BPE,
    splitter: Splitter,
    alphabet: Option<ByteAlphabet>,
    /// Spaces only part words.
    drops_spaces: bool,
    composes: bool,
}

impl BytePairs {
    /// `merges` are pairs as the file writes them, best first: two tokens with a space between.
    pub(crate) fn new(tokens: &[String], merges: &[String], rules: WordRules) -> Result<Self, TextError> {
        let field = "tokenizer.ggml.merges";
        if merges.is_empty() {
            return Err(TextError::vocabulary(field, "is missing or empty; a gpt2 vocabulary needs it"));
        }
        let vocab: tokenizers::models::bpe::Vocab =
            tokens.iter().enumerate().map(|(id, token)| (token.clone(), id as u32)).collect();
        let mut pairs = Vec::with_capacity(merges.len());
        let mut joined = String::new();
        for (index, merge) in merges.iter().enumerate() {
            // The space that separates may follow a space: it is never the first character.
            let gap = merge.char_indices().skip(1).find(|&(_, letter)| letter == ' ').map(|(at, _)| at);
            let Some((left, right)) = gap.map(|at| (&merge[..at], &merge[at + 1..])) else {
                return Err(TextError::vocabulary(field, format!("entry {index} '{merge}' is not two tokens")));
            };
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            // A merge into something that is no token can never be used.
            if vocab.contains_key(left) && vocab.contains_key(right) && vocab.contains_key(&joined) {
                pairs.push((left.to_owned(), right.to_owned()));
            }
        }
        let model = BPE::builder()
            .vocab_and_merges(vocab, pairs)
            .ignore_merges(rules.whole_words)
            .byte_fallback(rules.spelling != Spelling::Bytes)
            .build()
            .map_err(|e| TextError::vocabulary(field, e.to_string()))?;
        let alphabet = (rules.spelling == Spelling::Bytes).then(ByteAlphabet::new);
        let drops_spaces = rules.spelling == Spelling::Words;
        Ok(Self { model, splitter: Splitter::new(rules.patterns)?, alphabet, drops_spaces, composes: rules.composes })
    }

    /// Appends the tokens of `text`.
    pub(crate) fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<(), TextError> {
        let mut composed = None;
        if self.composes && !text.is_ascii() {
            let mut normalized = NormalizedString::from(text);
            normalized.nfc();
            composed = Some(normalized.get().to_owned());
        }
        let text = composed.as_deref().unwrap_or(text);
        let mut spelled = String::new();
        let mut each = |word: &str| {
            spelled.clear();
            match &self.alphabet {
                Some(alphabet) => alphabet.spell(word.as_bytes(), &mut spelled),
                None => spelled.push_str(word),
            }
            let tokens = self.model.tokenize(&spelled).map_err(|e| TextError::Encode(e.to_string()))?;
            out.extend(tokens.iter().map(|token| token.id));
            Ok(())
        };
        match &self.alphabet {
            Some(_) => self.splitter.for_each(text, &mut each),
            None if self.drops_spaces => text.split_whitespace().try_for_each(each),
            None => self.splitter.for_each(&text.replace(' ', SPACE), &mut each),
        }
    }

    /// Exact bytes of an ordinary token.
    pub(crate) fn bytes(&self, token: &str) -> Vec<u8> {
        match &self.alphabet {
            Some(alphabet) => alphabet.read(token),
            None => token.replace(SPACE, " ").into_bytes(),
        }
    }
}
