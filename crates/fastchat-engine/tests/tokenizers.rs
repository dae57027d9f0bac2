//! Tokenizers of published vocabularies against token ids made by other implementations.

#![allow(missing_docs, clippy::unwrap_used)] // a test may fail loudly

mod support;

use std::path::Path;
use std::time::Instant;

use fastchat_engine::text::Tokenizer;
use serde_json::Value;
use support::{folder, gguf_vocab};

/// `.inp` holds texts, `.out` a line of ids for each; both come with llama.cpp's `ggml-vocab-*.gguf`.
fn check_vocabulary(file: &Path) -> usize {
    let side = |extension: &str| std::fs::read_to_string(format!("{}.{extension}", file.display())).unwrap();
    let (inputs, outputs) = (side("inp"), side("out"));
    let tokenizer = Tokenizer::from_gguf(&gguf_vocab(file)).unwrap();
    let mut count = 0;
    for (text, line) in inputs.split("\n__ggml_vocab_test__\n").zip(outputs.lines()) {
        let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
        let ids = tokenizer.encode(text, false, false).unwrap();
        assert_eq!(ids, expected, "{} on {text:?}", file.display());
        count += 1;
    }
    count
}

#[test]
fn published_vocabularies_give_the_reference_ids() {
    let Some(vocabularies) = folder("FASTCHAT_VOCABS", "models/llama-cpp", false) else { return };
    let mut failed = Vec::new();
    for entry in std::fs::read_dir(&vocabularies).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "gguf") || !file.with_extension("gguf.out").exists() {
            continue;
        }
        match std::panic::catch_unwind(|| check_vocabulary(&file)) {
            Ok(count) => assert!(count > 20, "{} has {count} cases only", file.display()),
            Err(_) => failed.push(file),
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn real_models_give_the_reference_ids_and_texts() {
    let Some(models) = folder("FASTCHAT_MODELS", "models", true) else { return };
    let Some(shared) = folder("FASTCHAT_SHARED", "../shared", true) else { return };
    let mut checked = 0;
    for entry in std::fs::read_dir(shared.join("parity/real")).unwrap() {
        let golden = entry.unwrap().path();
        let model = models.join(golden.with_extension("gguf").file_name().unwrap());
        if !model.exists() {
            continue;
        }
        let golden: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
        let tokenizer = Tokenizer::from_gguf(&gguf_vocab(&model)).unwrap();
        let ids = |case: &Value, key: &str| -> Vec<u32> {
            case[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        for case in golden["chat"].as_array().unwrap() {
            let encoded = tokenizer.encode(case["prompt_text"].as_str().unwrap(), false, true).unwrap();
            assert_eq!(encoded, ids(case, "prompt_ids"), "{}", model.display());
        }
        for case in golden["raw"].as_array().unwrap() {
            let encoded = tokenizer.encode(case["prompt"].as_str().unwrap(), true, true).unwrap();
            assert_eq!(encoded, ids(case, "prompt_ids"), "{}", model.display());
        }
        for case in golden["chat"].as_array().unwrap().iter().chain(golden["raw"].as_array().unwrap()) {
            let text = tokenizer.decode(&ids(case, "greedy_ids"), true).unwrap();
            assert_eq!(text, case["greedy_text"].as_str().unwrap(), "{}", model.display());
            checked += 1;
        }
    }
    assert!(checked > 0, "no golden has its model");
}

/// Prints MB/s; fails only where time grows faster than the text.
#[test]
fn time_grows_with_the_text_only() {
    let Some(models) = folder("FASTCHAT_MODELS", "models", true) else { return };
    for entry in std::fs::read_dir(models).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let tokenizer = Tokenizer::from_gguf(&gguf_vocab(&file)).unwrap();
        let prose = "The compiler's second pass folds constants; 1234 of them, in func_name(x) {\n    return x;\n}\n";
        for unit in [prose, "a", " ", "\n", "=", "é", "7", "\u{1f600}", "<|im_start|>"] {
            let text = |bytes: usize| unit.repeat(bytes / unit.len());
            let seconds = |text: &str| {
                let start = Instant::now();
                let ids = tokenizer.encode(text, true, true).unwrap();
                let seconds = start.elapsed().as_secs_f64();
                assert!(!ids.is_empty());
                seconds
            };
            seconds(&text(1 << 16));
            let small = seconds(&text(1 << 17));
            // Eight times the text; a quadratic encoder needs 64 times the time. A busy machine may spoil one try.
            let limit = 30.0 * small.max(0.005);
            let tries = (0..4).map(|_| seconds(&text(1 << 20)));
            let large = tries
                .scan(false, |met, large| {
                    (!*met).then(|| {
                        *met = large < limit;
                        large
                    })
                })
                .fold(f64::MAX, f64::min);
            #[allow(clippy::print_stderr)]
            {
                eprintln!("{:?} {unit:.12?}: {:.1} MB/s", file.file_name().unwrap(), 1.0 / large);
            }
            assert!(large < limit, "{unit:?}: {small} s for 128 KB, {large} s for 1 MB");
        }
    }
}
