//! What the engine's tests share: where models lie, and requests run to their end.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::print_stderr)] // each test uses a part

use std::path::{Path, PathBuf};
use std::time::Duration;

use fastchat_engine::{
    Engine, EngineConfig, EngineError, Finish, Prompt, Request, RequestHandle, SamplingParams, TokenLogprobs, Usage,
};

/// Nothing here takes longer, even in company of other builds.
pub const PATIENCE: Duration = Duration::from_mins(5);

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A path that must exist in CI and may be absent elsewhere.
fn found(path: PathBuf, required: bool) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    assert!(!(required && std::env::var("CI").is_ok_and(|ci| ci == "true")), "{} is required", path.display());
    eprintln!("SKIPPED: {} is absent", path.display());
    None
}

pub fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("FASTCHAT_SHARED").map_or_else(|| repository().join("../shared"), PathBuf::from);
    found(root.join(path), true)
}

pub fn real_model(name: &str, required: bool) -> Option<PathBuf> {
    let root = std::env::var_os("FASTCHAT_MODELS").map_or_else(|| repository().join("models"), PathBuf::from);
    found(root.join(name), required)
}

pub fn config() -> EngineConfig {
    EngineConfig { kv_memory: Some(64 << 20), threads: Some(2), ..EngineConfig::default() }
}

pub fn request(tokens: &[u32], params: SamplingParams) -> Request {
    Request { prompt: Prompt::Tokens(tokens.to_vec()), params, cache_salt: None, priority: 0, tenant: None }
}

pub fn greedy(max_tokens: u32) -> SamplingParams {
    SamplingParams { temperature: 0.0, max_tokens: Some(max_tokens), ignore_eos: true, ..SamplingParams::default() }
}

/// All that one choice yielded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub text: String,
    pub tokens: Vec<u32>,
    pub logprobs: Vec<TokenLogprobs>,
    pub finish: Option<Finish>,
    pub usage: Usage,
    pub error: Option<EngineError>,
}

/// Reads a request to its end.
pub fn drain(handle: &RequestHandle) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = Vec::new();
    while !handle.is_finished() {
        let deltas = handle.wait(Some(PATIENCE));
        assert!(!deltas.is_empty(), "request {} is stuck", handle.id());
        for delta in deltas {
            let index = delta.index as usize;
            outcomes.resize(outcomes.len().max(index + 1), Outcome::default());
            let outcome = &mut outcomes[index];
            assert_eq!(outcome.finish, None, "news after the end");
            outcome.text.push_str(&delta.text);
            outcome.tokens.extend(delta.token_ids);
            outcome.logprobs.extend(delta.logprobs.into_iter().flatten());
            outcome.finish = delta.finish;
            outcome.usage = delta.usage;
            outcome.error = delta.error;
        }
    }
    outcomes
}

pub fn complete(engine: &Engine, request: Request) -> Vec<Outcome> {
    drain(&engine.submit(request).unwrap())
}

/// Submits all before reading any.
pub fn together(engine: &Engine, requests: &[Request]) -> Vec<Vec<Outcome>> {
    let handles: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    handles.iter().map(drain).collect()
}

/// Tokens of every choice of every request.
pub fn tokens(outcomes: &[Vec<Outcome>]) -> Vec<Vec<Vec<u32>>> {
    outcomes.iter().map(|choices| choices.iter().map(|choice| choice.tokens.clone()).collect()).collect()
}

/// Serves requests together, twice, and one by one: always these tokens, and no block is kept.
pub fn serves(engine: &Engine, requests: &[Request], expected: &[Vec<Vec<u32>>], what: &str) {
    for round in 0..2 {
        assert!(tokens(&together(engine, requests)) == expected, "{what}, {round}: other tokens");
    }
    let alone: Vec<_> = requests.iter().map(|request| complete(engine, request.clone())).collect();
    assert!(tokens(&alone) == expected, "{what}, alone: other tokens");
    all_blocks_come_back(engine);
}

/// Waits until nobody owns a block.
pub fn all_blocks_come_back(engine: &Engine) {
    for _ in 0..10_000 {
        let stats = engine.stats();
        if stats.free_blocks == stats.total_blocks && stats.running == 0 && stats.waiting == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("blocks are lost: {:?}", engine.stats());
}
