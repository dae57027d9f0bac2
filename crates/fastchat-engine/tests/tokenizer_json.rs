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
