//! Masks over a real vocabulary: what they cost, and that a model's own tokens pass them.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly; times are for the reader

mod support;

use std::time::Instant;

use fastchat_engine::text::{GrammarCompiler, GrammarSpec, Tokenizer};
use serde_json::json;
use support::{folder, gguf_vocab};

#[test]
fn a_models_own_tokens_pass_its_schema() {
    let Some(models) = folder("FASTCHAT_MODELS", "models", true) else { return };
    for entry in std::fs::read_dir(models).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let vocab = gguf_vocab(&file);
        let tokenizer = Tokenizer::from_gguf(&vocab).unwrap();
        let end = vocab.eos.unwrap();
        let start = Instant::now();
        let compiler = GrammarCompiler::new(&tokenizer, &[end]).unwrap();
        let built = start.elapsed();
        let schema = json!({"type": "object", "required": ["name", "tags", "size"], "additionalProperties": false,
            "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {"enum": ["new", "old"]}},
                           "size": {"type": "number"}}});
        let start = Instant::now();
        let mut matcher = compiler.compile(&GrammarSpec::JsonSchema(schema)).unwrap();
        let compiled = start.elapsed();
        let text = "{\"name\": \"Zoë's 2nd\\n box\", \"tags\": [\"new\", \"old\"],\n  \"size\": -1.5e3}";
        let ids = tokenizer.encode(text, false, false).unwrap();
        let (mut longest, start) = (std::time::Duration::ZERO, Instant::now());
        // SentencePiece puts a space first, which JSON does not begin with.
        for &id in ids.iter().skip_while(|&&id| tokenizer.token_bytes(id).unwrap() == b" ") {
            let step = Instant::now();
            assert!(!matcher.can_stop().unwrap());
            assert!(matcher.mask().unwrap().allows(id), "{:?} in {text}", tokenizer.id_to_token(id));
            longest = longest.max(step.elapsed());
            matcher.accept(id).unwrap();
        }
        let mean = start.elapsed() / ids.len() as u32;
        assert!(matcher.can_stop().unwrap() && matcher.mask().unwrap().allows(end));
        eprintln!(
            "{:?}: trie {built:?}, schema {compiled:?}, mask {mean:?} on average, {longest:?} at most",
            file.file_name().unwrap()
        );
        assert!(mean.as_millis() < 50, "masks take {mean:?}");
    }
}
