//! The text side of a folder as GGUF metadata: tokenizer.json becomes tables, beside special tokens, chat template and
//! sampling defaults. Knows the two file formats; encodes nothing.

use std::path::Path;

use serde_json::{Map, Value};

use super::writer::{Entries, Entry};
use crate::ModelError;
use crate::checkpoint::{TextSide, TokenizerSource};
use crate::safetensors::read_json;

/// GGUF's numbers for kinds of tokens.
pub(super) const NORMAL: i32 = 1;
pub(super) const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Word patterns of tokenizer.json, without the spaces at their end, and the name GGUF has for them.
const PATTERNS: &[(&[&str], &str)] = &[
    (
        &[r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"],
        "llama-bpe",
    ),
    (&[r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"], "qwen2"),
    (
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+",
        ],
        "qwen35",
    ),
    (
        &[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
        ],
        "tekken",
    ),
    (
        &[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
        ],
        "gpt-4o",
    ),
    (
        &[
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"##,
        ],
        "deepseek-v3",
    ),
    (&[DIGITS, GPT2], "smollm"),
    (&[GPT2], "gpt-2"),
];
/// What the byte-level step splits by of its own accord.
const GPT2: &str = "gpt-2";
/// One digit at a time.
const DIGITS: &str = "digits";

/// All entries of a text side, for a model with `rows` rows of words; none but `tokenizer.ggml.model` without a tokenizer.
pub fn entries(folder: &Path, text: &TextSide, rows: usize) -> Result<Entries, ModelError> {
    let mut out = Entries::new();
    let mut set = |key: &str, entry: Entry| out.push((format!("tokenizer.{key}"), entry));
    // The tokens that the tokenizer puts in front and at the end, whatever the configuration calls the first and the last.
    let (mut begin, mut end, mut own_end) = (None, None, false);
    match &text.tokenizer {
        None => set("ggml.model", "none".into()),
        Some(TokenizerSource::Json(file, _)) => {
            let tables = Tables::read(file, rows)?;
            (begin, end) = (tables.begin, tables.end);
            if tables.model == "bert" {
                own_end = true;
                // The format spells it so.
                for (key, id) in [("ggml.cls_token_id", begin), ("ggml.seperator_token_id", end)] {
                    if let Some(id) = id {
                        set(key, Entry::Whole(id));
                    }
                }
            }
            for (key, entry) in tables.entries() {
                set(&format!("ggml.{key}"), entry);
            }
        }
        Some(TokenizerSource::Gguf(_)) => {
            return Err(ModelError::unsupported(folder, "tokenizer", "GGUF tables", "tokenizer.json is"));
        }
    }
    if let Some(id) = begin.or(text.bos_token_id) {
        set("ggml.bos_token_id", Entry::Whole(id));
    }
    let ends = ["eos_token_id", "eot_token_id", "eom_token_id"];
    // Readers put the first of them at the end of a text, unless that has a key of its own.
    let mut ids = text.eos_token_ids.clone();
    if let Some(end) = end {
        match ids.iter().position(|&id| id == end) {
            Some(place) => ids[..=place].rotate_right(1),
            None if ids.is_empty() => ids.push(end),
            None if own_end => {}
            None => {
                let appended = format!("token {end} at the end of a text");
                let expected = format!("one of eos_token_id, {ids:?}, is");
                return Err(ModelError::unsupported(folder, "tokenizer.json post_processor", appended, expected));
            }
        }
    }
    if ids.len() > ends.len() {
        let count = format!("{} tokens", ids.len());
        return Err(ModelError::unsupported(folder, "eos_token_id", count, "GGUF has keys for 3 that end a text"));
    }
    for (key, id) in ends.iter().zip(ids) {
        set(&format!("ggml.{key}"), Entry::Whole(id));
    }
    if let Some(template) = &text.chat_template {
        set("chat_template", Entry::Text(template.clone()));
    }
    let g = &text.generation;
    let reals =
        [("temp", g.temperature), ("top_p", g.top_p), ("min_p", g.min_p), ("penalty_repeat", g.repetition_penalty)];
    for (name, value) in reals {
        out.extend(value.map(|value| (format!("general.sampling.{name}"), Entry::Real(value))));
    }
    out.extend(g.top_k.map(|k| ("general.sampling.top_k".to_owned(), Entry::Whole(k))));
    Ok(out)
}

/// A tokenizer.json as GGUF's tables.
#[allow(clippy::struct_excessive_bools)] // the format's own switches
pub(super) struct Tables {
    pub model: &'static str,
    pre: &'static str,
    pub tokens: Vec<String>,
    pub kinds: Vec<i32>,
    merges: Vec<String>,
    pub scores: Vec<f32>,
    pub unknown: Option<u32>,
    begin: Option<u32>,
    end: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    pub space_prefix: bool,
    /// Whether runs of spaces become one.
    pub merges_spaces: bool,
    /// SentencePiece's table of normal forms.
    pub charsmap: Vec<u8>,
}

impl Tables {
    fn entries(self) -> Vec<(&'static str, Entry)> {
        let mut entries = vec![
            ("model", self.model.into()),
            ("pre", self.pre.into()),
            ("tokens", Entry::Texts(self.tokens)),
            ("token_type", Entry::Signed(self.kinds)),
            ("add_bos_token", Entry::Flag(self.add_bos)),
            ("add_eos_token", Entry::Flag(self.add_eos)),
            ("add_space_prefix", Entry::Flag(self.space_prefix)),
        ];
        match self.model {
            "gpt2" => entries.push(("merges", Entry::Texts(self.merges))),
            "bert" => {}
            _ => entries.push(("scores", Entry::Reals(self.scores))),
        }
        if self.model == "t5" {
            entries.push(("remove_extra_whitespaces", Entry::Flag(self.merges_spaces)));
        }
        if !self.charsmap.is_empty() {
            entries.push(("precompiled_charsmap", Entry::Bytes(self.charsmap)));
        }
        entries.extend(self.unknown.map(|id| ("unknown_token_id", Entry::Whole(id))));
        entries
    }

    fn read(file: &Path, rows: usize) -> Result<Self, ModelError> {
        let json = read_json(file)?;
        let model = json.get("model").and_then(Value::as_object);
        let unsupported = |field: &str, value: &Value, expected: &str| {
            ModelError::unsupported(file, field, value.to_string(), expected)
        };
        let kind = model.and_then(|model| model.get("type")).and_then(Value::as_str).unwrap_or("BPE");
        let Some(model) = model.filter(|_| ["BPE", "Unigram", "WordPiece"].contains(&kind)) else {
            return Err(unsupported("model.type", &kind.into(), "BPE, Unigram and WordPiece are, for GGUF"));
        };
        let mut tables = Self {
            model: "gpt2",
            pre: "default",
            tokens: (0..rows).map(|id| format!("[PAD{id}]")).collect(),
            kinds: vec![UNUSED; rows],
            merges: merges(file, model)?,
            scores: Vec::new(),
            unknown: None,
            begin: None,
            end: None,
            add_bos: frame(&json, true).is_some(),
            add_eos: frame(&json, false).is_some(),
            space_prefix: false,
            merges_spaces: false,
            charsmap: Vec::new(),
        };
        if kind == "Unigram" {
            tables.unigrams(file, &json, model)?;
        }
        tables.fill(file, &json, model)?;
        let framing = |front| frame(&json, front).and_then(|name| tables.id(name)).map(|id| id as u32);
        (tables.begin, tables.end) = (framing(true), framing(false));
        let unknown = model.get("unk_token").and_then(Value::as_str).and_then(|name| tables.id(name));
        tables.unknown = tables.unknown.or(unknown.map(|id| id as u32));
        if kind == "WordPiece" {
            tables.word_pieces(file, &json, model)?;
        }
        if kind != "BPE" {
            return Ok(tables);
        }
        if model.get("byte_fallback") == Some(&Value::Bool(true)) {
            tables.by_pieces(&json);
        } else {
            let patterns = patterns(json.get("pre_tokenizer").unwrap_or(&Value::Null));
            let known = PATTERNS.iter().find(|(known, _)| patterns.as_ref().is_some_and(|found| found == known));
            tables.pre = known.map(|(_, name)| *name).ok_or_else(|| {
                let pre = json.get("pre_tokenizer").unwrap_or(&Value::Null);
                unsupported("pre_tokenizer", pre, "GGUF has no name for it")
            })?;
        }
        Ok(tables)
    }

    fn id(&self, token: &str) -> Option<usize> {
        self.tokens.iter().position(|known| known == token)
    }

    fn fill(&mut self, file: &Path, json: &Map<String, Value>, model: &Map<String, Value>) -> Result<(), ModelError> {
        let rows = self.tokens.len();
        let mut put = |field: &str, token: &str, id: &Value, kind: i32| match id.as_u64().map(|id| id as usize) {
            Some(id) if id < rows => {
                (self.tokens[id], self.kinds[id]) = (token.to_owned(), kind);
                Ok(())
            }
            _ => Err(ModelError::field(file, field, id, format!("a token below the vocabulary's {rows}"))),
        };
        for (token, id) in model.get("vocab").and_then(Value::as_object).into_iter().flatten() {
            put("model.vocab", token, id, NORMAL)?;
        }
        for added in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
            let kind = if added["special"] == true { CONTROL } else { USER_DEFINED };
            put("added_tokens", added["content"].as_str().unwrap_or_default(), &added["id"], kind)?;
        }
        Ok(())
    }

    /// A vocabulary of pieces with a token per byte: the order of merges becomes scores.
    fn by_pieces(&mut self, json: &Map<String, Value>) {
        (self.model, self.pre) = ("llama", "default");
        let ids: std::collections::HashMap<&str, usize> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
        // Below all merges: what no merge makes is never joined.
        let mut scores = vec![-(self.merges.len() as f32) - 1.0; self.tokens.len()];
        for (rank, merge) in self.merges.iter().enumerate().rev() {
            if let Some((left, right)) = merge.split_once(' ')
                && let Some(&id) = ids.get(format!("{left}{right}").as_str())
            {
                scores[id] = -(rank as f32);
            }
        }
        let bytes = ids.iter().filter(|(token, _)| is_byte(token)).map(|(_, id)| *id).collect::<Vec<_>>();
        for id in bytes {
            self.kinds[id] = BYTE;
        }
        // Readers take the tokens of users as they are spelt.
        for (token, kind) in self.tokens.iter_mut().zip(&self.kinds) {
            if *kind == USER_DEFINED {
                *token = token.replace('▁', " ");
            }
        }
        if let Some(id) = self.unknown {
            self.kinds[id as usize] = UNKNOWN;
        }
        self.scores = scores;
        let prepends = |part: &Value| match part["type"].as_str() {
            Some("Prepend") => part["prepend"] == "▁",
            Some("Metaspace") => part["prepend_scheme"] != "never" && part["add_prefix_space"] != false,
            _ => false,
        };
        self.space_prefix = ["normalizer", "pre_tokenizer"]
            .iter()
            .any(|key| steps(json.get(*key).unwrap_or(&Value::Null)).into_iter().any(prepends));
    }
}

fn is_byte(token: &str) -> bool {
    token.len() == 6 && token.starts_with("<0x") && token.ends_with('>')
}

fn merges(file: &Path, model: &Map<String, Value>) -> Result<Vec<String>, ModelError> {
    let merge = |merge: &Value| match merge {
        Value::String(pair) => Some(pair.clone()),
        Value::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        _ => None,
    };
    let all = model.get("merges").and_then(Value::as_array).into_iter().flatten();
    all.map(|one| merge(one).ok_or_else(|| ModelError::field(file, "model.merges", one, "pairs of tokens"))).collect()
}

/// A step, or the steps of a sequence.
pub(super) fn steps(value: &Value) -> Vec<&Value> {
    let inner = ["pretokenizers", "normalizers", "processors"].iter().find_map(|key| value[*key].as_array());
    inner.map_or_else(|| vec![value], |inside| inside.iter().flat_map(steps).collect())
}

/// The patterns by which text becomes words; `None` for steps that are none of GGUF's.
fn patterns(pre: &Value) -> Option<Vec<String>> {
    let mut found = Vec::new();
    for step in steps(pre) {
        match step["type"].as_str()? {
            "Split" if step["behavior"] == "Isolated" => {
                let regex = step["pattern"]["Regex"].as_str()?;
                let words = regex.strip_suffix(r"|\s+(?!\S)|\s+").unwrap_or(regex);
                // Some files hold the characters themselves.
                found.push(words.replace('\r', r"\r").replace('\n', r"\n"));
            }
            "Digits" if step["individual_digits"] == true => found.push(DIGITS.to_owned()),
            "ByteLevel" if step["use_regex"] != false => found.push(GPT2.to_owned()),
            "ByteLevel" => {}
            _ => return None,
        }
    }
    Some(found)
}

/// The special token that the post-processor puts in front (or at the end).
fn frame(json: &Map<String, Value>, front: bool) -> Option<&str> {
    json.get("post_processor").map(steps)?.into_iter().find_map(|step| {
        if let Some("BertProcessing" | "RobertaProcessing") = step["type"].as_str() {
            return step[if front { "cls" } else { "sep" }][0].as_str();
        }
        let parts = step["single"].as_array()?;
        let part = if front { parts.first() } else { parts.last() };
        part?.get("SpecialToken")?["id"].as_str()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{frame, patterns};

    #[test]
    fn word_patterns_are_read() {
        let pre = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}]});
        assert_eq!(patterns(&pre), Some(vec!["digits".to_owned(), "gpt-2".to_owned()]));
        let split = json!({"type": "Split", "pattern": {"Regex": "a|\\s+(?!\\S)|\\s+"}, "behavior": "Isolated"});
        assert_eq!(patterns(&split), Some(vec!["a".to_owned()]));
        assert_eq!(patterns(&json!({"type": "Whitespace"})), None);
    }

    #[test]
    fn frames_are_found_in_sequences() {
        let single = json!([{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]);
        let json = json!({"post_processor": {"type": "Sequence", "processors": [
            {"type": "ByteLevel"}, {"type": "TemplateProcessing", "single": single}]}});
        let json = json.as_object().unwrap();
        assert_eq!((frame(json, true), frame(json, false)), (Some("<s>"), None));
        let json = json!({"post_processor": {"type": "BertProcessing", "cls": ["[CLS]", 2], "sep": ["[SEP]", 3]}});
        let json = json.as_object().unwrap();
        assert_eq!((frame(json, true), frame(json, false)), (Some("[CLS]"), Some("[SEP]")));
    }
}
