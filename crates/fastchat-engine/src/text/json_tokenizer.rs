//! A tokenizer from Hugging Face's tokenizer.json, run stage by stage so that special tokens can be left unparsed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::Value;
use tokenizers::{AddedVocabulary, Encoding, Model, OffsetType, PreTokenizer};

use super::TextError;
use super::byte_level::ByteAlphabet;
use super::sentencepiece::token_bytes;
use super::token_table::TokenTable;

/// Largest tokenizer.json read, in bytes; published ones are below 40 MB.
const MAX_FILE_BYTES: u64 = 512 << 20;
/// Ids may be this many times as many as the tokens of the file, and this many more: the table has a row for each, and one
/// number in a small file must not make it fill the memory.
const MAX_GAPS: usize = 4;
const MAX_UNUSED: usize = 1 << 16;

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
    check_frame(json.get("post_processor").unwrap_or(&Value::Null))?;
    let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| failed(e.to_string()))?;
    // Lengths are the engine's business; a file's own truncation would silently drop a prompt's end.
    inner.with_truncation(None).map_err(|e| failed(e.to_string()))?;
    inner.with_padding(None);
    let spelling = spelling(json.get("decoder").unwrap_or(&Value::Null))?;
    let table = token_table(&inner, &spelling)?;
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

/// Refuses templates that name a special token without saying its ids: the library would panic when it is used.
fn check_frame(processor: &Value) -> Result<(), TextError> {
    for part in processor["processors"].as_array().into_iter().flatten() {
        check_frame(part)?;
    }
    for kind in ["single", "pair"] {
        for piece in processor[kind].as_array().into_iter().flatten() {
            let Some(id) = piece["SpecialToken"]["id"].as_str() else { continue };
            if processor["special_tokens"].get(id).is_none() {
                let message = format!("names the special token '{id}', which special_tokens does not have");
                return Err(TextError::vocabulary(&format!("post_processor.{kind}"), message));
            }
        }
    }
    Ok(())
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

fn token_table(inner: &tokenizers::Tokenizer, spelling: &Spelling) -> Result<TokenTable, TextError> {
    let strips = !matches!(spelling, Spelling::ByteLevel(_) | Spelling::SentencePiece { strips: false });
    let mut table = TokenTable::new(strips);
    let added = inner.get_added_vocabulary().get_added_tokens_decoder();
    let vocab = inner.get_vocab(true);
    let most = vocab.len().saturating_mul(MAX_GAPS).saturating_add(MAX_UNUSED);
    let size = vocab.values().max().map_or(0, |&id| id as usize + 1);
    if size > most {
        let message = format!("has token id {}; with {} tokens the limit is {}", size - 1, vocab.len(), most - 1);
        return Err(TextError::vocabulary("model.vocab", message));
    }
    for id in 0..size as u32 {
        if let Some(token) = added.get(&id) {
            let bytes = match spelling {
                // The decoder turns the sign for spaces in every token.
                Spelling::SentencePiece { .. } => token_bytes(&token.content),
                _ => token.content.clone().into_bytes(),
            };
            table.push(&token.content, &bytes, token.special);
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
        table.push(&token, &bytes, false);
    }
    Ok(table)
}

/// The encoding, or why there is none. The library panics on some files that it has loaded; that costs the text only.
fn guarded(encode: impl FnOnce() -> tokenizers::Result<Encoding>) -> Result<Encoding, TextError> {
    match catch_unwind(AssertUnwindSafe(encode)) {
        Ok(encoded) => encoded.map_err(|error| TextError::Encode(error.to_string())),
        Err(_) => Err(TextError::Encode("tokenizer.json has rules that fail on this text".to_owned())),
    }
}

impl JsonTokenizer {
    pub(crate) fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>, TextError> {
        let ids = guarded(|| self.pieces(text, add_special, parse_special))?;
        let begin = self.begin.filter(|_| add_special);
        let end = self.end.filter(|_| add_special);
        Ok(begin.into_iter().chain(ids.get_ids().iter().copied()).chain(end).collect())
    }

    /// Texts of clients: control tokens are not read out of them.
    pub(crate) fn encode_pair(
        &self,
        a: &str,
        b: &str,
        most: Option<usize>,
    ) -> Result<Option<(Vec<u32>, usize)>, TextError> {
        if self.inner.get_post_processor().is_none() {
            return Ok(None);
        }
        let framed = || -> tokenizers::Result<Encoding> {
            let first = self.unframed(a, false)?;
            let mut second = self.unframed(b, false)?;
            if let Some(most) = most {
                second.truncate(most, 0, tokenizers::TruncationDirection::Right);
            }
            self.inner.post_process(first, Some(second), true)
        };
        let pair = guarded(framed)?;
        let second = pair.get_type_ids().iter().position(|&kind| kind == 1).unwrap_or(pair.len());
        Ok(Some((pair.get_ids().to_vec(), second)))
    }

    fn pieces(&self, text: &str, add_special: bool, parse_special: bool) -> tokenizers::Result<Encoding> {
        self.inner.post_process(self.unframed(text, parse_special)?, None, add_special)
    }

    fn unframed(&self, text: &str, parse_special: bool) -> tokenizers::Result<Encoding> {
        let added = if parse_special { self.inner.get_added_vocabulary() } else { &self.unparsed };
        let mut words = added.extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(cutter) = self.inner.get_pre_tokenizer() {
            cutter.pre_tokenize(&mut words)?;
        }
        words.tokenize(|word| self.inner.get_model().tokenize(word.get()))?;
        words.into_encoding(None, 0, OffsetType::None)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use fastchat_models::TokenizerSource;
    use serde_json::{Value, json};

    use crate::text::{TextError, Tokenizer};

    /// Loads a tokenizer.json made of `fields` over a sensible frame.
    fn load(name: &str, fields: Value, config: Option<Value>) -> Result<Tokenizer, TextError> {
        let mut file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null});
        let Value::Object(fields) = fields else { panic!("fields are an object") };
        fields.into_iter().for_each(|(key, value)| file[key] = value);
        let folder: PathBuf = std::env::temp_dir().join(format!("fastchat-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("tokenizer.json");
        std::fs::write(&path, file.to_string()).unwrap();
        let config = config.map(|config| {
            let path = folder.join("tokenizer_config.json");
            std::fs::write(&path, config.to_string()).unwrap();
            path
        });
        let tokenizer = Tokenizer::new(&TokenizerSource::Json(path, config));
        std::fs::remove_dir_all(folder).unwrap();
        tokenizer
    }

    fn special(id: u32, content: &str) -> Value {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    }

    #[test]
    fn an_id_far_beyond_the_tokens_is_refused() {
        for id in [1 << 17, u32::MAX] {
            let model = json!({"type": "WordLevel", "vocab": {"a": 0, "b": id}, "unk_token": "a"});
            let error = load("far", json!({"model": model}), None).unwrap_err().to_string();
            assert!(error.contains("model.vocab") && error.contains(&id.to_string()), "{error}");
        }
        let model = json!({"type": "WordLevel", "vocab": {"a": 0, "b": 1000}, "unk_token": "a"});
        assert_eq!(load("near", json!({"model": model}), None).unwrap().vocab_size(), 1001);
    }

    #[test]
    fn words_without_a_decoder_are_joined_by_spaces() {
        let model = json!({"type": "WordLevel", "vocab": {"a": 0, "b": 1, "[U]": 2, "<s>": 3}, "unk_token": "[U]"});
        let fields = json!({"model": model, "pre_tokenizer": {"type": "Whitespace"}, "added_tokens": [special(3, "<s>")],
            "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}});
        let config = json!({"add_bos_token": true, "bos_token": {"content": "<s>"}});
        let tokenizer = load("words", fields, Some(config)).unwrap();
        assert_eq!(tokenizer.encode("a b c a", true, true).unwrap(), [3, 0, 1, 2, 0]);
        assert_eq!(tokenizer.decode(&[3, 0, 1], true).unwrap(), "a b");
        assert_eq!(tokenizer.encode("<s>a", false, true).unwrap(), [3, 0]);
        assert!(!tokenizer.encode("<s>a", false, false).unwrap().contains(&3));
        assert_eq!(tokenizer.token_bytes(9), Err(TextError::TokenId { id: 9, size: 4 }));
    }

    #[test]
    fn sentencepiece_models_fall_back_to_bytes() {
        let vocab = json!({"<s>": 0, "\u{2581}": 1, "a": 2, "\u{2581}a": 3, "<0xC3>": 4, "<0xA9>": 5, "<unk>": 6});
        let model = json!({"type": "BPE", "vocab": vocab, "merges": ["\u{2581} a"], "byte_fallback": true, "unk_token": "<unk>"});
        let normalizer = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]});
        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let post = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}});
        let fields = json!({"model": model, "normalizer": normalizer, "decoder": decoder, "post_processor": post,
            "added_tokens": [special(0, "<s>")]});
        let tokenizer = load("pieces", fields, None).unwrap();
        let ids = tokenizer.encode("a aé", true, true).unwrap();
        assert_eq!(ids, [0, 3, 3, 4, 5]);
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a aé");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "<s> a aé");
        assert_eq!(tokenizer.token_bytes(4).unwrap(), [0xC3]);
    }

    #[test]
    fn word_pieces_join_their_continuations() {
        let model = json!({"type": "WordPiece", "vocab": {"un": 0, "##do": 1, "it": 2, "[UNK]": 3}, "unk_token": "[UNK]",
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100});
        let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        let fields = json!({"model": model, "pre_tokenizer": {"type": "BertPreTokenizer"}, "decoder": decoder});
        let tokenizer = load("wordpiece", fields, None).unwrap();
        let ids = tokenizer.encode("undo it", false, true).unwrap();
        assert_eq!((ids.as_slice(), tokenizer.decode(&ids, true).unwrap().as_str()), (&[0, 1, 2][..], "undo it"));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let model = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"});
        let fields = json!({"model": model, "decoder": {"type": "CTC", "pad_token": "a", "word_delimiter_token": "|", "cleanup": true}});
        let error = load("ctc", fields, None).unwrap_err().to_string();
        assert!(error.contains("decoder.type") && error.contains("CTC"), "{error}");
        let error = load("none", json!({"model": {"type": "Nothing"}}), None).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
        let missing = TokenizerSource::Json("no/such/tokenizer.json".into(), None);
        assert!(Tokenizer::new(&missing).unwrap_err().to_string().contains("tokenizer.json"));
    }
}
