//! Results do not depend on company: alone, in a batch, in chunks, from a cached prefix, with drafts checked ahead and
//! after preemption a request gives the same tokens, sampled ones included.
#![allow(clippy::unwrap_used)] // a test may fail loudly

mod harness;

use std::path::Path;

use fastchat_engine::{Engine, EngineConfig, Request, SamplingParams};
use harness::{all_blocks_come_back, complete, config, greedy, request, shared, together, tokens};

/// Prompts that share beginnings, each with another way to choose tokens.
fn requests(vocab: u32) -> Vec<Request> {
    let text = |start: u32, len: u32| -> Vec<u32> { (0..len).map(|i| (start + i * i * 7 + i * 3) % vocab).collect() };
    let sampled = |seed| SamplingParams { temperature: 1.0, seed: Some(seed), ..greedy(24) };
    let params = [
        greedy(24),
        sampled(1),
        SamplingParams { top_p: 0.8, top_k: 40, ..sampled(2) },
        SamplingParams { repetition_penalty: 1.3, presence_penalty: 0.5, frequency_penalty: 0.2, ..sampled(3) },
        SamplingParams { n: 3, min_p: 0.02, ..sampled(4) },
        SamplingParams { logprobs: Some(3), ..greedy(24) },
    ];
    let lens = [1, 15, 16, 17, 33, 48, 60];
    let prompts = lens.iter().enumerate().map(|(i, &len)| text(if i % 2 == 0 { 5 } else { 9 }, len));
    prompts.zip(params.iter().cycle()).map(|(prompt, params)| request(&prompt, params.clone())).collect()
}

/// `repeats`: its greedy texts go in circles, so that drafts must come true.
fn check(model: &Path, repeats: bool) {
    let load = |config: EngineConfig| Engine::load(model, config).unwrap();
    let plain = || EngineConfig { enable_prefix_caching: false, ..config() };
    let alone = load(EngineConfig { speculation: false, ..plain() });
    let requests = requests(alone.info().vocab_size as u32);
    let expected: Vec<_> = requests.iter().map(|request| complete(&alone, request.clone())).collect();
    assert!(expected.iter().flatten().all(|choice| choice.tokens.len() == 24));
    let expected = tokens(&expected);
    let name = model.file_name().unwrap().display();

    assert_eq!(tokens(&together(&alone, &requests)), expected, "{name}: in a batch");
    all_blocks_come_back(&alone);

    // What is served alone is drafted most.
    let drafted = load(plain());
    let found: Vec<_> = requests.iter().map(|request| complete(&drafted, request.clone())).collect();
    assert_eq!(tokens(&found), expected, "{name}: with drafts");
    let stats = drafted.stats();
    assert!(!repeats || stats.accepted_tokens > 0, "{name}: no draft came true");
    all_blocks_come_back(&drafted);

    let chunked = load(EngineConfig { max_batch_tokens: 7, ..plain() });
    assert_eq!(tokens(&together(&chunked, &requests)), expected, "{name}: in chunks of 7");

    let cached = load(config());
    assert_eq!(tokens(&together(&cached, &requests)), expected, "{name}: cold cache");
    let before = cached.stats().cached_tokens;
    assert_eq!(tokens(&together(&cached, &requests)), expected, "{name}: warm cache");
    assert!(cached.stats().cached_tokens > before, "{name}: nothing was found in the cache");
    all_blocks_come_back(&cached);

    // Enough of them that many are in the engine at once, however fast it is.
    let crowd: Vec<_> = requests.iter().cycle().take(4 * requests.len()).cloned().collect();
    for enable_prefix_caching in [false, true] {
        // The longest request needs 6 blocks to itself.
        let tiny = load(EngineConfig { num_blocks: Some(9), enable_prefix_caching, ..config() });
        let found = tokens(&together(&tiny, &crowd));
        assert!(found.chunks(requests.len()).all(|found| found == expected), "{name}: preempted");
        assert!(tiny.stats().preemptions > 0, "{name}: nobody was preempted");
        all_blocks_come_back(&tiny);
    }
}

macro_rules! families {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            if let Some(model) = shared(concat!("parity/text/", stringify!($name))) {
                check(&model, matches!(stringify!($name), "gemma3" | "qwen3_moe"));
            }
        }
    )*};
}

families! {
    llama3 mistral_window gemma3 gpt_oss qwen3_moe deepseek_v3 qwen3_next qwen3_5
}
