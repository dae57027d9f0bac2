//! tokenizer.json run by its own crate against the same vocabulary as GGUF tables: two implementations of one model.

#![allow(missing_docs, clippy::unwrap_used)] // a test may fail loudly

mod support;

use std::path::Path;

use fastchat_engine::text::Tokenizer;
use fastchat_models::{GgufVocab, TokenizerSource};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;
use support::folder;

/// Folder names of published tokenizers and the name GGUF gives their word pattern.
const KINDS: [(&str, &str); 5] = [
    ("qwen2_5", "qwen2"),
    ("llama3_2", "llama-bpe"),
    ("deepseek_v3", "deepseek-v3"),
    ("gptoss", "gpt-4o"),
    ("mistral_nemo", "tekken"),
];

fn as_gguf(file: &Path, pre: &str) -> GgufVocab {
    let json: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let model = &json["model"];
    let mut named: Vec<(usize, String)> =
        model["vocab"].as_object().unwrap().iter().map(|(t, id)| (id.as_u64().unwrap() as usize, t.clone())).collect();
    let added = json["added_tokens"].as_array().unwrap();
    named.extend(added.iter().map(|t| (t["id"].as_u64().unwrap() as usize, t["content"].as_str().unwrap().to_owned())));
    let size = named.iter().map(|(id, _)| id + 1).max().unwrap();
    let mut tokens: Vec<String> = (0..size).map(|id| format!("[UNUSED{id}]")).collect();
    let mut token_types = vec![1; size];
    for (id, token) in named {
        tokens[id] = token;
    }
    for token in added {
        token_types[token["id"].as_u64().unwrap() as usize] = if token["special"] == true { 3 } else { 4 };
    }
    let merge = |merge: &Value| match merge {
        Value::Array(pair) => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        other => other.as_str().unwrap().to_owned(),
    };
    let merges = model["merges"].as_array().unwrap().iter().map(merge).collect();
    GgufVocab { model: "gpt2".into(), pre: pre.into(), tokens, token_types, merges, ..GgufVocab::default() }
}

fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-zA-Z]{1,8}",
        2 => "[0-9]{1,7}",
        3 => "[ \t\n\r]{1,5}",
        2 => "[-!\"#$%&'()*+,./:;<=>?@\\[\\\\\\]^_`{|}~]{1,4}",
        1 => "'(s|T|re|VE|m|LL|d|x)",
        2 => "\\PC{1,6}",
        1 => "[一-龥ぁ-ゖァ-ヺ가-힣а-яА-Яé\u{301}\u{300}\u{3000}\u{a0}]{1,6}",
        1 => Just("<|im_start|>".to_owned()),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

#[test]
fn both_sources_of_a_vocabulary_give_the_same_ids() {
    let Some(folder) = folder("FASTCHAT_TOKENIZERS", "models/tokenizers", false) else { return };
    for (name, pre) in KINDS {
        let file = folder.join(name).join("tokenizer.json");
        if !file.exists() {
            continue;
        }
        let gguf = Tokenizer::from_gguf(&as_gguf(&file, pre)).unwrap();
        let json = Tokenizer::new(&TokenizerSource::Json(file.clone(), None)).unwrap();
        assert_eq!(json.vocab_size(), gguf.vocab_size());
        for id in 0..json.vocab_size() as u32 {
            let unused = gguf.id_to_token(id).unwrap().starts_with("[UNUSED");
            assert!(unused || json.token_bytes(id) == gguf.token_bytes(id), "{name}: token {id}");
        }
        let mut runner = TestRunner::new(Config { cases: 1500, failure_persistence: None, ..Config::default() });
        runner
            .run(&(texts(), any::<bool>()), |(text, special)| {
                let ids = json.encode(&text, false, special).unwrap();
                prop_assert_eq!(&gguf.encode(&text, false, special).unwrap(), &ids, "{}", name);
                let decoded = json.decode(&ids, false).unwrap();
                prop_assert_eq!(&gguf.decode(&ids, false).unwrap(), &decoded);
                prop_assert!(decoded == text || pre == "qwen2", "{} {}", decoded, text);
                Ok(())
            })
            .unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

/// Ids and texts that the `tokenizers` package makes (`data/make_tokenizers.py`), for every published file.
#[test]
fn published_files_give_the_reference_ids_and_texts() {
    let Some(folder) = folder("FASTCHAT_TOKENIZERS", "models/tokenizers", false) else { return };
    let golden: Value = serde_json::from_str(include_str!("data/tokenizers.json")).unwrap();
    let texts: Vec<&str> = golden["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let mut checked = 0;
    for (name, golden) in golden["files"].as_object().unwrap() {
        let file = folder.join(name).join("tokenizer.json");
        if !file.exists() {
            continue;
        }
        // The configuration beside it must change nothing where the file has its own post-processor.
        let config = Some(folder.join(name).join("tokenizer_config.json")).filter(|path| path.exists());
        let tokenizer = Tokenizer::new(&TokenizerSource::Json(file, config)).unwrap();
        let rows = golden["rows"].as_array().unwrap();
        assert_eq!(rows.len(), texts.len());
        for (text, row) in texts.iter().zip(rows) {
            let ids = |at: usize| -> Vec<u32> {
                row[at].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
            };
            assert_eq!(tokenizer.encode(text, true, true).unwrap(), ids(0), "{name} on {text:?}, framed");
            assert_eq!(tokenizer.encode(text, false, true).unwrap(), ids(1), "{name} on {text:?}");
            assert_eq!(tokenizer.decode(&ids(0), true).unwrap(), row[2].as_str().unwrap(), "{name} on {text:?}");
        }
        checked += 1;
    }
    assert!(checked > 0, "{} holds none of the files", folder.display());
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// A model with that tokenizer.json, written as GGUF: the tokenizer of its tables.
fn written(name: &str, json: &Value, rows: usize) -> Option<(Tokenizer, Tokenizer)> {
    let shared = folder("FASTCHAT_SHARED", "../shared", true)?;
    let from = shared.join("parity/text/llama3");
    let to = std::env::temp_dir().join(format!("fastchat-tables-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&to).unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    config["vocab_size"] = rows.into();
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    std::fs::write(to.join("tokenizer.json"), json.to_string()).unwrap();
    let device = candle_core::Device::Cpu;
    let mut tensors = candle_core::safetensors::load(from.join("model.safetensors"), &device).unwrap();
    for (_, tensor) in tensors.iter_mut().filter(|(name, _)| name.contains("embed_tokens") || name.contains("lm_head"))
    {
        *tensor = candle_core::Tensor::zeros((rows, 64), candle_core::DType::F32, &device).unwrap();
    }
    candle_core::safetensors::save(&tensors, to.join("model.safetensors")).unwrap();
    let file = to.join("model.gguf");
    fastchat_models::convert(&to, &file, None).unwrap_or_else(|error| panic!("{name}: {error}"));
    let kernels = std::sync::Arc::new(fastchat_kernels::DefaultKernels(device));
    let tables = fastchat_models::load(&file, kernels, &fastchat_models::LoadOptions::default()).unwrap().tokenizer;
    let tokenizers = (
        Tokenizer::new(&TokenizerSource::Json(to.join("tokenizer.json"), None)).unwrap(),
        Tokenizer::new(&tables.unwrap()).unwrap(),
    );
    std::fs::remove_dir_all(&to).unwrap();
    Some(tokenizers)
}

fn same_ids(name: &str, json: &Value, rows: usize) {
    let Some((one, other)) = written(name, json, rows) else { return };
    let mut runner = TestRunner::new(Config { cases: 500, failure_persistence: None, ..Config::default() });
    let ran = runner.run(&(texts(), any::<bool>()), |(text, framed)| {
        prop_assert_eq!(other.encode(&text, framed, false).unwrap(), one.encode(&text, framed, false).unwrap());
        Ok(())
    });
    ran.unwrap_or_else(|error| panic!("{name}: {error}"));
}

#[test]
fn word_pieces_survive_as_tables() {
    let Some(models) = folder("FASTCHAT_MODELS", "models", false) else { return };
    let Ok(text) = std::fs::read(models.join("all-minilm-l6-v2/tokenizer.json")) else { return };
    same_ids("pieces", &serde_json::from_slice(&text).unwrap(), 30_522);
}

#[test]
fn unigrams_survive_as_tables() {
    let Some(folder) = folder("FASTCHAT_VOCABS", "models/llama-cpp", false) else { return };
    let file = folder.join("ggml-vocab-nomic-bert-moe.gguf");
    if !file.exists() {
        return;
    }
    let vocab = support::gguf_vocab(&file);
    assert!(vocab.model == "t5" && vocab.remove_extra_whitespaces);
    let pieces: Vec<Value> = vocab.tokens.iter().zip(&vocab.scores).map(|(t, s)| serde_json::json!([t, s])).collect();
    let mut table = String::new();
    for three in vocab.precompiled_charsmap.chunks(3) {
        let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        let digit = |i: usize| ALPHABET[(bits >> (18 - 6 * i) & 63) as usize] as char;
        table.extend((0..4).map(|i| if i > three.len() { '=' } else { digit(i) }));
    }
    let metaspace =
        serde_json::json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true});
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": table},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": null, "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": vocab.unk, "vocab": pieces, "byte_fallback": false},
    });
    same_ids("unigrams", &json, vocab.tokens.len());
}

/// Damaged files: an error or a tokenizer that works, never a panic.
#[test]
fn damaged_files_are_errors() {
    let vocab: serde_json::Map<String, Value> = ["<s>", "\u{2581}", "a", "b", "\u{2581}a", "ab", "<0xC3>", "<unk>"]
        .iter()
        .enumerate()
        .map(|(id, token)| ((*token).to_owned(), Value::from(id)))
        .collect();
    let whole = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": false, "byte_fallback": true,
            "vocab": vocab, "merges": [["\u{2581}", "a"], ["a", "b"]]},
    })
    .to_string();
    let folder = std::env::temp_dir().join(format!("fastchat-damaged-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("tokenizer.json");
    let tries = |damaged: &[u8]| {
        std::fs::write(&file, damaged).unwrap();
        let outcome = std::panic::catch_unwind(|| match Tokenizer::new(&TokenizerSource::Json(file.clone(), None)) {
            Ok(tokenizer) => {
                // What loads must answer; a refusal of the text is an answer.
                if let Ok(ids) = tokenizer.encode("a ab <s>\u{e9}", true, true) {
                    let _ = tokenizer.decode(&ids, false);
                }
                for id in 0..tokenizer.vocab_size() as u32 {
                    tokenizer.token_bytes(id).unwrap();
                }
                true
            }
            Err(error) => {
                assert!(!error.to_string().contains('\n'), "{error}");
                false
            }
        });
        outcome.unwrap_or_else(|_| panic!("a panic on {}", String::from_utf8_lossy(damaged)))
    };
    assert!(tries(whole.as_bytes()));
    let (mut loaded, mut refused) = (0, 0);
    let mut count = |works: bool| if works { loaded += 1 } else { refused += 1 };
    for end in 0..whole.len() {
        count(tries(&whole.as_bytes()[..end]));
    }
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % below
    };
    let pieces = ["null", "-1", "1e99", "\"\"", "[]", "{}", "\"a\"", "18446744073709551616", "\"\\ud800\"", "0"];
    for _ in 0..3000 {
        let mut damaged = whole.clone().into_bytes();
        match random(3) {
            0 => damaged[random(whole.len())] = random(256) as u8,
            1 => {
                let (from, len) = (random(whole.len()), random(24));
                damaged.drain(from..(from + len).min(whole.len()));
            }
            _ => {
                // A value that stands between a colon and a comma becomes another.
                let colons: Vec<usize> = whole.match_indices(':').map(|(at, _)| at).collect();
                let from = colons[random(colons.len())] + 1;
                let to = whole[from..].find([',', '}']).map_or(whole.len(), |at| from + at);
                damaged.splice(from..to, pieces[random(pieces.len())].bytes());
            }
        }
        count(tries(&damaged));
    }
    std::fs::remove_dir_all(folder).unwrap();
    assert!(refused > 1500 && loaded > 100, "{loaded} load, {refused} are refused");
}
