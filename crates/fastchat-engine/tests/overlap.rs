//! Steps that are queued before the tokens of the last are known: the tokens of eager steps, whatever comes, goes or ends
//! meanwhile. The device is a fake that does what it was told when somebody waits for it, as late as a device can be.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

#[path = "graphs/capturing.rs"]
mod capturing;
mod harness;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use capturing::Capturing;
use fastchat_engine::{Engine, EngineConfig, FinishReason, Request, SamplingParams};
use fastchat_kernels::Kernels;
use harness::{all_blocks_come_back, config, greedy, request, serves, shared, together, tokens};

fn prompt(start: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| 1 + (start + i * i * 7 + i * 3) % 90).collect()
}

/// Requests that begin alike, end one after the other and choose in different ways; one of them takes the host.
fn requests(tokens: u32) -> Vec<Request> {
    let request = |i: u32| {
        let base = SamplingParams { seed: Some(u64::from(i)), ..greedy(tokens + 5 * i) };
        let params = match i % 5 {
            0 | 1 => base,
            2 => SamplingParams { temperature: 1.0, ..base },
            3 => SamplingParams { temperature: 0.8, top_p: 0.9, top_k: 20, n: 2, ..base },
            _ => SamplingParams { max_tokens: Some(6), frequency_penalty: 0.5, ..base },
        };
        request(&prompt(i % 2, 14 + 5 * i), params)
    };
    (0..8).map(request).collect()
}

fn plain() -> EngineConfig {
    EngineConfig { speculation: false, ..config() }
}

fn load(model: &Path, config: EngineConfig) -> Engine {
    Engine::load_with(model, config, Arc::new(Capturing::sampling())).unwrap()
}

fn eager(model: &Path) -> Engine {
    load(model, EngineConfig { enforce_eager: true, ..plain() })
}

fn equal_eager(family: &str) {
    let Some(model) = shared(family) else { return };
    let requests = requests(20);
    let engine = eager(&model);
    let expected = tokens(&together(&engine, &requests));
    assert_eq!(engine.stats().overlapped_steps, 0, "{family}: eager is eager");
    let tiny = EngineConfig { num_blocks: Some(14), ..plain() };
    let narrow = EngineConfig { max_num_seqs: 3, ..plain() };
    for (name, config) in [("roomy", plain()), ("tiny", tiny), ("narrow", narrow), ("drafts", config())] {
        let engine = load(&model, config);
        serves(&engine, &requests, &expected, &format!("{family}, {name}"));
        let stats = engine.stats();
        assert!(stats.overlapped_steps > 30 && stats.overlapped_steps < stats.steps, "{family}, {name}: {stats:?}");
        assert!(name != "tiny" || stats.preemptions > 0, "{family}: nobody was preempted");
        assert!(stats.graph_failure.is_none(), "{family}, {name}: {stats:?}");
    }
}

macro_rules! families {
    ($($name:ident)*) => {
        $(#[test] fn $name() { equal_eager(concat!("parity/text/", stringify!($name))); })*
    };
}

families! { llama3 qwen3 gemma3 gpt_oss deepseek_v3 qwen3_next qwen3_5 }

/// A stop token ends a sequence whose next step is under way; what that step writes is read by nobody.
#[test]
fn ends_that_nobody_foresaw_leave_no_trace() {
    let Some(model) = shared("parity/text/llama3") else { return };
    let reference = eager(&model);
    let whole: Vec<_> = (0..6).map(|i| request(&prompt(i, 20 + 3 * i), greedy(60))).collect();
    let texts: Vec<_> =
        tokens(&together(&reference, &whole)).into_iter().map(|mut choices| choices.remove(0)).collect();
    let stopping: Vec<_> = (0..)
        .zip(&texts)
        .map(|(i, text)| {
            let stop = text[17 + 5 * i as usize];
            request(&prompt(i, 20 + 3 * i), SamplingParams { stop_token_ids: vec![stop], ..greedy(60) })
        })
        .collect();
    let expected = together(&reference, &stopping);
    assert!(expected.iter().all(|one| one[0].finish.as_ref().unwrap().reason == FinishReason::Stop));
    let engine = load(&model, plain());
    for _ in 0..2 {
        let found = together(&engine, &stopping);
        assert!(tokens(&found) == tokens(&expected), "other tokens");
        assert!(found.iter().zip(&expected).all(|(one, other)| one[0].finish == other[0].finish), "another end");
        // What they left in the cache is sound: the texts go on from there.
        let longer: Vec<_> = (0..)
            .zip(&texts)
            .map(|(i, text)| request(&[&prompt(i, 20 + 3 * i), &text[..40]].concat(), greedy(20)))
            .collect();
        let found = tokens(&together(&engine, &longer));
        assert!(found.iter().zip(&texts).all(|(found, text)| found[0] == text[40..60]), "a cached block is not sound");
    }
    all_blocks_come_back(&engine);
    let stats = engine.stats();
    assert!(stats.overlapped_steps > 30 && stats.cached_tokens > 0, "{stats:?}");
}

#[test]
fn readers_that_leave_take_nothing_from_others() {
    let Some(model) = shared("parity/text/qwen3") else { return };
    let requests = requests(40);
    let expected = tokens(&together(&eager(&model), &requests));
    let engine = load(&model, plain());
    for round in 0..3 {
        let leaving: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
        let staying: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
        leaving[round].wait(Some(harness::PATIENCE));
        drop(leaving);
        let found: Vec<_> = staying.iter().map(harness::drain).collect();
        assert!(tokens(&found) == expected, "round {round}: other tokens");
    }
    all_blocks_come_back(&engine);
    assert!(engine.stats().overlapped_steps > 30);
}

#[test]
fn a_step_that_fails_on_the_way_ends_its_requests_and_no_others() {
    let Some(model) = shared("parity/text/llama3") else { return };
    let requests: Vec<_> = (0..5).map(|i| request(&prompt(i, 20), greedy(30))).collect();
    let expected = tokens(&together(&eager(&model), &requests));
    let kernels = Arc::new(Capturing::sampling());
    let engine = Engine::load_with(&model, plain(), kernels.clone()).unwrap();
    assert!(tokens(&together(&engine, &requests)) == expected);
    let replays = kernels.replays.load(Ordering::SeqCst);
    kernels.breaks_at.store(replays + 12, Ordering::SeqCst);
    for outcome in together(&engine, &requests).iter().flatten() {
        let error = outcome.error.as_ref().unwrap().to_string();
        assert!(error.contains("the fake stumbles"), "{error}");
        let whole = expected.iter().flatten().any(|whole| whole.starts_with(&outcome.tokens));
        assert!(whole, "a token of the step that failed, or of the one after it");
    }
    assert!(tokens(&together(&engine, &requests)) == expected, "what comes after it differs");
    all_blocks_come_back(&engine);
}

/// The CUDA backend in its emulator: its kernels give a sequence the token that the step before has chosen.
fn emulated_follows(family: &str) {
    let Some(model) = shared(family) else { return };
    let run = |enforce_eager| {
        let emulated = fastchat_emulator::emulated(false)?;
        let kernels: Arc<dyn Kernels> = emulated.kernels;
        let engine = Engine::load_with(&model, EngineConfig { enforce_eager, ..plain() }, kernels).unwrap();
        Some((tokens(&together(&engine, &requests(6)[..6])), engine.stats().overlapped_steps))
    };
    let (Some((eager, none)), Some((found, steps))) = (run(true), run(false)) else {
        eprintln!("SKIPPED: the CUDA kernels are not emulated without a C++ compiler");
        return;
    };
    assert!(found == eager, "{family}: other tokens than eager steps choose");
    assert!(none == 0 && steps > 4, "{family}: {steps} steps overlapped");
}

#[test]
fn the_emulated_gpu_follows_tokens_of_llama3() {
    emulated_follows("parity/text/llama3");
}

#[test]
fn the_emulated_gpu_follows_tokens_of_qwen3_next() {
    emulated_follows("parity/text/qwen3_next");
}
