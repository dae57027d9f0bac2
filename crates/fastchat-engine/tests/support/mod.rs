//! Finds models and reference outputs on the machine, and reads a GGUF file's vocabulary.

#![allow(dead_code, clippy::print_stderr, clippy::unwrap_used)] // each test uses its own part and may fail loudly

use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value};
use fastchat_models::GgufVocab;

/// The folder named by `variable`, or `default` relative to the repository; with CI=true it must exist if `required`.
pub fn folder(variable: &str, default: &str, required: bool) -> Option<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = std::env::var_os(variable).map_or_else(|| repository.join(default), PathBuf::from);
    if path.is_dir() {
        return Some(path);
    }
    assert!(!(required && std::env::var("CI").is_ok_and(|ci| ci == "true")), "CI needs {variable}");
    eprintln!("SKIPPED: {variable} is not set and {default} does not exist");
    None
}

fn strings(content: &Content, key: &str) -> Vec<String> {
    let Some(Value::Array(values)) = content.metadata.get(key) else { return Vec::new() };
    values.iter().map(|value| value.to_string().unwrap().clone()).collect()
}

/// Reads what `fastchat_models` would hand over.
pub fn gguf_vocab(path: &Path) -> GgufVocab {
    let content = Content::read(&mut File::open(path).unwrap()).unwrap();
    let get = |key: &str| content.metadata.get(&format!("tokenizer.ggml.{key}"));
    let text = |key: &str| get(key).map_or(String::new(), |value| value.to_string().unwrap().clone());
    let id = |key: &str| get(key).map(|value| value.to_u32().unwrap());
    let model = text("model");
    let flag = |key: &str| get(key).map(|value| value.to_bool().unwrap());
    let array = |key: &str| match get(key) {
        Some(Value::Array(values)) => values.clone(),
        _ => Vec::new(),
    };
    GgufVocab {
        pre: text("pre"),
        tokens: strings(&content, "tokenizer.ggml.tokens"),
        merges: strings(&content, "tokenizer.ggml.merges"),
        scores: array("scores").iter().map(|value| value.to_f32().unwrap()).collect(),
        token_types: array("token_type").iter().map(|value| value.to_i32().unwrap()).collect(),
        bos: id("bos_token_id"),
        eos: id("eos_token_id"),
        unk: id("unknown_token_id"),
        pad: id("padding_token_id"),
        add_bos: flag("add_bos_token").unwrap_or(model == "llama"),
        add_eos: flag("add_eos_token").unwrap_or(false),
        add_space_prefix: flag("add_space_prefix").unwrap_or(model == "llama"),
        remove_extra_whitespaces: flag("remove_extra_whitespaces").unwrap_or(false),
        precompiled_charsmap: array("precompiled_charsmap")
            .iter()
            .map(|value| match value {
                Value::I8(byte) => *byte as u8,
                other => other.to_u8().unwrap(),
            })
            .collect(),
        model,
    }
}
