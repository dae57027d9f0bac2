//! Text to token ids and back, for any tokenizer a checkpoint brings. Immutable and shared by all requests.

use std::sync::OnceLock;

use aho_corasick::{AhoCorasick, MatchKind};
use fastchat_models::{GgufVocab, TokenizerSource};

use super::TextError;
use super::gguf_tokenizer::{self, GgufTokenizer};
use super::json_tokenizer::{self, JsonTokenizer};
use super::token_table::TokenTable;

/// A checkpoint's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    encoder: Encoder,
    table: TokenTable,
    /// Built for the first text that is fenced.
    control_names: OnceLock<Option<AhoCorasick>>,
}

#[derive(Debug)]
enum Encoder {
    Json(Box<JsonTokenizer>),
    Gguf(Box<GgufTokenizer>),
}

impl Tokenizer {
    /// Builds the tokenizer a checkpoint names.
    pub fn new(source: &TokenizerSource) -> Result<Self, TextError> {
        match source {
            TokenizerSource::Gguf(vocab) => Self::from_gguf(vocab),
            TokenizerSource::Json(file, config) => {
                let (encoder, table) = json_tokenizer::build(file, config.as_deref())?;
                Ok(Self { encoder: Encoder::Json(Box::new(encoder)), table, control_names: OnceLock::new() })
            }
        }
    }

    /// Builds the tokenizer of a GGUF file.
    pub fn from_gguf(vocab: &GgufVocab) -> Result<Self, TextError> {
        let (encoder, table) = gguf_tokenizer::build(vocab)?;
        Ok(Self { encoder: Encoder::Gguf(Box::new(encoder)), table, control_names: OnceLock::new() })
    }

    /// Token ids of `text`. `add_special` frames it as the model was trained (begin and end tokens); `parse_special`
    /// lets the text name control tokens, which only a chat template's output should.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>, TextError> {
        match &self.encoder {
            Encoder::Json(tokenizer) => tokenizer.encode(text, add_special, parse_special),
            Encoder::Gguf(tokenizer) => tokenizer.encode(&self.table.names, text, add_special, parse_special),
        }
    }

    /// Two texts framed as one, and where the second begins: the first token of a type of its own, or, where types are
    /// alike, the end. `most` cuts the second text. None without a frame for pairs.
    pub fn encode_pair(&self, a: &str, b: &str, most: Option<usize>) -> Result<Option<(Vec<u32>, usize)>, TextError> {
        match &self.encoder {
            Encoder::Json(tokenizer) => tokenizer.encode_pair(a, b, most),
            Encoder::Gguf(_) => Ok(None),
        }
    }

    /// Text of `ids`; bytes that are no UTF-8 become U+FFFD. `skip_special` leaves control tokens out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            let token = self.token_bytes(id)?;
            if !(skip_special && self.is_special(id)) {
                bytes.extend_from_slice(token);
            }
        }
        let shown = if self.strips_first_space() { bytes.strip_prefix(b" ").unwrap_or(&bytes) } else { &bytes };
        Ok(String::from_utf8_lossy(shown).into_owned())
    }

    /// Exact bytes that token `id` stands for; not necessarily whole characters.
    pub fn token_bytes(&self, id: u32) -> Result<&[u8], TextError> {
        self.table.bytes(id).ok_or(TextError::TokenId { id, size: self.vocab_size() })
    }

    /// Id of the token spelled `token` in the vocabulary file.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.table.names.id(token)
    }

    /// Spelling of token `id` in the vocabulary file.
    pub fn id_to_token(&self, id: u32) -> Option<&str> {
        self.table.names.get(id)
    }

    /// Whether `id` is a control token, which ordinary text cannot contain.
    pub fn is_special(&self, id: u32) -> bool {
        self.table.special.get(id as usize).copied().unwrap_or(false)
    }

    /// The text with every name of a control token between two marks.
    pub fn fence(&self, text: &str, mark: &str) -> String {
        let names = self.control_names.get_or_init(|| {
            let control = self
                .table
                .names
                .iter()
                .zip(&self.table.special)
                .filter(|(name, special)| **special && !name.is_empty());
            let names = control.map(|(name, _)| name.as_bytes());
            // A vocabulary too large to be searched was refused when the tokenizer was built.
            AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(names).ok()
        });
        let mut fenced = String::with_capacity(text.len());
        let mut done = 0;
        for found in names.iter().flat_map(|names| names.find_iter(text)) {
            fenced.push_str(&text[done..found.start()]);
            fenced.extend([mark, &text[found.range()], mark]);
            done = found.end();
        }
        fenced.push_str(&text[done..]);
        fenced
    }

    /// Number of token ids; a model's output may have more rows than this.
    pub fn vocab_size(&self) -> usize {
        self.table.names.len()
    }

    /// Whether the first space of a decoded text is the tokenizer's own and not the text's.
    pub(crate) fn strips_first_space(&self) -> bool {
        self.table.strips_first_space
    }
}
