//! A tokenizer from Hugging Face's tokenizer.json, run stage by stage so that special tokens can be left unparsed.

use std::path::Path;

use serde_json::Value;
use tokenizers::{AddedVocabulary, Encoding, Model, OffsetType, PreTokenizer};

use super::TextError;
use super::byte_level::ByteAlphabet;
use super::sentencepiece::token_bytes;
use super::tokenizer::TokenTable;

/// Largest tokenizer.json read, in bytes; published ones are below 40 MB.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// Encodes with a tokenizer.json.
#[derive(Debug)]
pub(crate) struct JsonTokenizer {
    inner: tokenizers::Tokenizer,
    /// The added tokens, with the special ones not matched in text.
    unparsed: AddedVocabulary,
    /// What tokenizer_config.json puts first where tokenizer.json has no post-processor.
    begin: Option<u32>,
    end: Option<u32>,
}

/// How tokens spell bytes.
enum Spelling {
    ByteLevel(ByteAlphabet),
    SentencePiece {
        strips: bool,
    },
    WordPiece {
        prefix: String,
    },
    /// No decoder: tokens are words, joined by spaces.
    Words,
}

fn read(path: &Path) -> Result<Vec<u8>, TextError> {
    let file = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let failed = |e: std::io::Error| TextError::File { file: file.clone(), message: e.to_string() };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > MAX_FILE_BYTES {
        let message = format!("{size} bytes, the limit is {MAX_FILE_BYTES}");
        return Err(TextError::File { file, message });
    }
    std::fs::read(path).map_err(failed)
}

fn parse(path: &Path) -> Result<Value, TextError> {
    let file = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    serde_json::from_slice(&read(path)?).map_err(|e| TextError::File { file, message: e.to_string() })
}

/// Builds the encoder and the table of tokens.
pub(crate) fn build(file: &Path, config: Option<&Path>) -> Result<(JsonTokenizer, TokenTable), TextError> {
    let bytes = read(file)?;
    let failed = |message: String| TextError::File { file: "tokenizer.json".into(), message };
    let json: Value = serde_json::from_slice(&bytes).map_err(|e| failed(e.to_string()))?;
    let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| failed(e.to_string()))?;
    // Lengths are the engine's business; a file's own truncation would silently drop a prompt's end.
    inner.with_truncation(None).map_err(|e| failed(e.to_string()))?;
    inner.with_padding(None);
    let spelling = spelling(json.get("decoder").unwrap_or(&Value::Null))?;
    let table = token_table(&inner, &spelling);
    let mut unparsed = inner.get_added_vocabulary().clone();
    unparsed.set_encode_special_tokens(true);
    let config = config.filter(|path| path.exists()).map(parse).transpose()?.unwrap_or(Value::Null);
    let frames = inner.get_post_processor().is_none();
    let framing = |switch: &str, token: &str| {
        let wanted = frames && config[switch].as_bool().unwrap_or(false);
        let name = config[token].as_str().or_else(|| config[token]["content"].as_str());
        name.filter(|_| wanted).and_then(|name| inner.token_to_id(name))
    };
    let begin = framing("add_bos_token", "bos_token");
    let end = framing("add_eos_token", "eos_token");
    Ok((JsonTokenizer { inner, unparsed, begin, end }, table))
}

fn spelling(decoder: &Value) -> Result<Spelling, TextError> {
    let kind = decoder["type"].as_str();
    let unknown = || {
        let message = format!("unknown decoder {}", decoder["type"]);
        TextError::vocabulary("decoder.type", message)
    };
    match kind {
        None if decoder.is_null() => Ok(Spelling::Words),
        Some("ByteLevel") => Ok(Spelling::ByteLevel(ByteAlphabet::new())),
        Some("Metaspace") => {
            let never = decoder["prepend_scheme"].as_str() == Some("never")
                || decoder["add_prefix_space"].as_bool() == Some(false);
            Ok(Spelling::SentencePiece { strips: !never })
        }
        Some("WordPiece") => Ok(Spelling::WordPiece { prefix: decoder["prefix"].as_str().unwrap_or("##").to_owned() }),
        Some("ByteFallback" | "Replace") => Ok(Spelling::SentencePiece { strips: false }),
        Some("Sequence") => {
            let parts = decoder["decoders"].as_array().ok_or_else(unknown)?;
            let has = |name: &str| parts.iter().any(|part| part["type"] == name);
            if has("ByteLevel") {
                Ok(Spelling::ByteLevel(ByteAlphabet::new()))
            } else if let Some(space) = parts.iter().find(|part| part["type"] == "Metaspace") {
                spelling(space)
            } else if has("Replace") || has("ByteFallback") {
                Ok(Spelling::SentencePiece { strips: has("Strip") })
            } else {
                Err(unknown())
            }
        }
        _ => Err(unknown()),
    }
}

fn token_table(inner: &tokenizers::Tokenizer, spelling: &Spelling) -> TokenTable {
    let strips = !matches!(spelling, Spelling::ByteLevel(_) | Spelling::SentencePiece { strips: false });
    let mut table = TokenTable::new(strips);
    let added = inner.get_added_vocabulary().get_added_tokens_decoder();
    let size = inner.get_vocab(true).values().max().map_or(0, |&id| id + 1);
    for id in 0..size {
        if let Some(token) = added.get(&id) {
            table.push(token.content.clone(), token.content.as_bytes(), token.special);
            continue;
        }
        // Gaps in the numbering are tokens without bytes.
        let token = inner.id_to_token(id).unwrap_or_default();
        let bytes = match spelling {
            Spelling::ByteLevel(alphabet) => alphabet.read(&token),
            Spelling::SentencePiece { .. } => token_bytes(&token),
            Spelling::WordPiece { prefix } => match token.strip_prefix(prefix.as_str()) {
                Some(rest) => rest.as_bytes().to_vec(),
                None => format!(" {token}").into_bytes(),
            },
            Spelling::Words => format!(" {token}").into_bytes(),
        };
        table.push(token, &bytes, false);
    }
    table
}

impl JsonTokenizer {
    pub(crate) fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>, TextError> {
        let ids = self.pieces(text, add_special, parse_special).map_err(|e| TextError::Encode(e.to_string()))?;
        let begin = self.begin.filter(|_| add_special);
        let end = self.end.filter(|_| add_special);
        Ok(begin.into_iter().chain(ids.get_ids().iter().copied()).chain(end).collect())
    }

    fn pieces(&self, text: &str, add_special: bool, parse_special: bool) -> tokenizers::Result<Encoding> {
        let added = if parse_special { self.inner.get_added_vocabulary() } else { &self.unparsed };
        let mut words = added.extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(cutter) = self.inner.get_pre_tokenizer() {
            cutter.pre_tokenize(&mut words)?;
        }
        words.tokenize(|word| self.inner.get_model().tokenize(word.get()))?;
        let encoding = words.into_encoding(None, 0, OffsetType::None)?;
        self.inner.post_process(encoding, None, add_special)
    }
}
