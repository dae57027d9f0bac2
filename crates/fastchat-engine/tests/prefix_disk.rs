//! The prefix cache on disk through the engine: the same tokens with it, without it, after a restart and over damage.
#![allow(clippy::unwrap_used)] // a test may fail loudly

mod harness;

use std::fs;
use std::path::{Path, PathBuf};

use fastchat_engine::{Engine, EngineConfig, PrefixDiskConfig};
use harness::{Outcome, complete, config, greedy, request, shared};

/// A folder of its own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fastchat-disk-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn config(&self) -> EngineConfig {
        EngineConfig { prefix_disk: Some(PrefixDiskConfig { dir: self.0.clone(), bytes: 64 << 20 }), ..config() }
    }

    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        let _ = fs::remove_file(&self.0);
    }
}

fn prompt() -> Vec<u32> {
    (0..100).map(|i| 3 + i * 7 % 90).collect()
}

/// One answer of an engine that is started for it and ends after it, which waits for its files.
fn once(model: &Path, config: EngineConfig, salt: Option<&str>) -> Outcome {
    let engine = Engine::load(model, config).unwrap();
    let mut request = request(&prompt(), greedy(24));
    request.cache_salt = salt.map(str::to_owned);
    complete(&engine, request).remove(0)
}

#[test]
fn blocks_survive_a_restart_and_change_no_token() {
    let Some(model) = shared("parity/text/llama3") else { return };
    let scratch = Scratch::new("restart");
    let plain = once(&model, config(), None);
    let first = once(&model, scratch.config(), None);
    assert_eq!((first.usage.cached_tokens, &first.tokens), (0, &plain.tokens));
    assert!(!scratch.files().is_empty());
    let second = once(&model, scratch.config(), None);
    assert_eq!((second.usage.cached_tokens, &second.tokens), (96, &plain.tokens));
    let salted = once(&model, scratch.config(), Some("other"));
    assert_eq!((salted.usage.cached_tokens, &salted.tokens), (0, &plain.tokens), "another salt shares nothing");
    let again = once(&model, scratch.config(), Some("other"));
    assert_eq!(again.usage.cached_tokens, 96);
}

#[test]
fn another_type_of_cache_is_another_identity() {
    let Some(model) = shared("parity/text/llama3") else { return };
    let scratch = Scratch::new("identity");
    once(&model, scratch.config(), None);
    let half = EngineConfig { kv_dtype: Some(fastchat_engine::DType::F16), ..scratch.config() };
    assert_eq!(once(&model, half.clone(), None).usage.cached_tokens, 0);
    assert_eq!(once(&model, half, None).usage.cached_tokens, 96);
}

#[test]
fn damage_is_a_miss_and_a_directory_in_ruins_serves() {
    let Some(model) = shared("parity/text/llama3") else { return };
    let scratch = Scratch::new("damage");
    let plain = once(&model, scratch.config(), None);
    for path in scratch.files() {
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let engine = Engine::load(&model, scratch.config()).unwrap();
    let found = complete(&engine, request(&prompt(), greedy(24))).remove(0);
    assert_eq!((found.usage.cached_tokens, &found.tokens), (0, &plain.tokens));
    assert_eq!(engine.stats().disk.damaged, 1, "reading ends at the first miss");
    drop(engine);
    let engine = Engine::load(&model, scratch.config()).unwrap();
    fs::remove_dir_all(&scratch.0).unwrap();
    fs::write(&scratch.0, "in the way").unwrap();
    let found = complete(&engine, request(&prompt(), greedy(24))).remove(0);
    assert_eq!((found.usage.cached_tokens, &found.tokens), (0, &plain.tokens));
    engine.shutdown();
    assert!(engine.stats().disk.dropped > 0);
}

#[test]
fn a_directory_that_cannot_be_and_a_size_for_nothing_are_refused() {
    let Some(model) = shared("parity/text/llama3") else { return };
    let scratch = Scratch::new("refused");
    fs::write(&scratch.0, "a file").unwrap();
    let error = Engine::load(&model, scratch.config()).unwrap_err().to_string();
    assert!(error.contains("prefix_cache_dir"), "{error}");
    let mut small = Scratch::new("small").config();
    small.prefix_disk.as_mut().unwrap().bytes = 10;
    let error = Engine::load(&model, small.clone()).unwrap_err().to_string();
    assert!(error.contains("prefix_cache_size is 10 bytes"), "{error}");
    small.enable_prefix_caching = false;
    let error = Engine::load(&model, small).unwrap_err().to_string();
    assert!(error.contains("prefix_cache_dir"), "{error}");
}

#[test]
fn recurrent_models_say_that_they_do_not_use_it() {
    let Some(model) = shared("parity/text/qwen3_next") else { return };
    let scratch = Scratch::new("recurrent");
    let engine = Engine::load(&model, scratch.config()).unwrap();
    assert!(engine.info().prefix_disk.starts_with("not used: "), "{}", engine.info().prefix_disk);
    complete(&engine, request(&prompt(), greedy(4)));
    assert!(!scratch.0.exists());
}
