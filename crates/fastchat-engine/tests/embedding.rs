//! The embedding engine: vectors do not depend on company, callers share steps, every refusal names its limit.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

use std::path::{Path, PathBuf};
use std::time::Duration;

use fastchat_engine::{EmbeddingConfig, EmbeddingEngine, EngineError, Prompt};

fn folder(name: &str) -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let folder = std::env::var_os("FASTCHAT_SHARED").map_or(default, PathBuf::from).join("parity/encoders").join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{} must be there in CI", folder.display());
    eprintln!("SKIPPED: {} is not here; set FASTCHAT_SHARED", folder.display());
    None
}

fn engine(name: &str, config: EmbeddingConfig) -> Option<EmbeddingEngine> {
    Some(EmbeddingEngine::load(&folder(name)?, config).unwrap())
}

/// Text `i`: of its own length and tokens.
fn tokens(i: u32) -> Prompt {
    Prompt::Tokens((0..=i * 7 % 60).map(|t| (t * 31 + i * 17) % 256).collect())
}

fn embed(engine: &EmbeddingEngine, inputs: &[Prompt]) -> Vec<Vec<f32>> {
    engine.submit(inputs).unwrap().wait(Duration::from_mins(1)).unwrap().unwrap()
}

fn refusal(engine: &EmbeddingEngine, input: Prompt) -> String {
    match engine.submit(&[tokens(1), input]).unwrap_err() {
        EngineError::InvalidRequest { param, message } if param == "input" => message,
        error => panic!("{error:?} is not about the input"),
    }
}

#[test]
fn vectors_do_not_depend_on_company() {
    for name in ["bert", "modernbert", "nomic_bert", "xlm_roberta"] {
        let config = EmbeddingConfig { max_batch_tokens: 100, threads: Some(2), ..EmbeddingConfig::default() };
        let Some(engine) = engine(name, config) else { return };
        let inputs: Vec<Prompt> = (0..30).map(tokens).collect();
        let alone: Vec<Vec<f32>> =
            inputs.iter().flat_map(|input| embed(&engine, std::slice::from_ref(input))).collect();
        assert_eq!(embed(&engine, &inputs), alone, "{name}: in one request");
        let handles: Vec<_> = inputs.chunks(4).map(|some| engine.submit(some).unwrap()).collect();
        let apart: Vec<Vec<f32>> =
            handles.iter().flat_map(|handle| handle.wait(Duration::from_mins(1)).unwrap().unwrap()).collect();
        assert_eq!(apart, alone, "{name}: in several requests at once");
        assert!(alone.iter().all(|vector| vector.len() == engine.info().dimensions));
        assert!(alone.windows(2).all(|pair| pair[0] != pair[1]), "{name}: texts differ");
        assert_eq!(engine.waiting(), 0);
    }
}

#[test]
fn refusals_name_text_value_and_limit() {
    let config = EmbeddingConfig { max_model_len: Some(32), max_queue: 2, ..EmbeddingConfig::default() };
    let Some(engine) = engine("bert", config) else { return };
    assert_eq!(refusal(&engine, Prompt::Tokens(vec![1; 33])), "input[1] has 33 tokens; this model takes 1 to 32");
    assert_eq!(refusal(&engine, Prompt::Tokens(vec![])), "input[1] has 0 tokens; this model takes 1 to 32");
    assert!(refusal(&engine, Prompt::Tokens(vec![256])).contains("input[1] has token id 256; it must be below 256"));
    let text = Prompt::Text { text: "a".to_owned(), add_special_tokens: true };
    assert!(refusal(&engine, text).contains("no tokenizer"));
    let many = engine.submit(&[tokens(1), tokens(2), tokens(3)]).unwrap_err();
    assert!(matches!(&many, EngineError::Overloaded(message) if message.contains("max_queue is 2")), "{many:?}");
    assert_eq!(engine.waiting(), 0);
    assert_eq!(engine.submit(&[tokens(0), tokens(1)]).unwrap().lengths(), [1, 8]);
    for config in [
        EmbeddingConfig { max_batch_tokens: 0, ..config },
        EmbeddingConfig { max_model_len: Some(129), ..EmbeddingConfig::default() },
    ] {
        let error = EmbeddingEngine::load(&folder("bert").unwrap(), config).unwrap_err();
        assert!(matches!(error, EngineError::InvalidRequest { .. }), "{error:?}");
    }
}

#[test]
fn leaving_and_stopping_free_what_waits() {
    let config = EmbeddingConfig { max_batch_tokens: 1, ..EmbeddingConfig::default() };
    let Some(engine) = engine("bert", config) else { return };
    let inputs: Vec<Prompt> = (0..2000).map(tokens).collect();
    drop(engine.submit(&inputs).unwrap());
    // The small request is not behind all of the large one, and the large one is given up.
    assert_eq!(embed(&engine, &[tokens(5)]).len(), 1);
    assert!(engine.waiting() < 2000);
    let waits = engine.submit(&inputs).unwrap();
    assert!(engine.alive());
    engine.shutdown();
    assert_eq!(waits.wait(Duration::from_mins(1)).unwrap_err(), EngineError::Cancelled);
    assert!(!engine.alive());
    assert!(matches!(engine.submit(&[tokens(1)]).unwrap_err(), EngineError::Internal(_)));
    engine.shutdown();
}
