//! Decode steps as graphs: captured once per padded size, replayed with the eager steps' bits, given up after a failure.
//! The device is a fake that keeps a step's arrays apart from the host's: a replay sees what was written over them last.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

#[path = "graphs/capturing.rs"]
mod capturing;
mod harness;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use capturing::Capturing;
use fastchat_engine::{Engine, EngineConfig, Request, SamplingParams, TokenLogprobs};
use fastchat_kernels::Kernels;
use harness::{Outcome, all_blocks_come_back, complete, config, greedy, request, shared, together};

/// Requests that begin alike and end one after the other, so that batches grow and shrink.
fn requests(tokens: u32) -> Vec<Request> {
    let text = |start: u32, len: u32| -> Vec<u32> { (0..len).map(|i| 1 + (start + i * i * 7 + i * 3) % 90).collect() };
    let request = |i: u32| {
        let base = SamplingParams { logprobs: Some(2), ..greedy(tokens + 3 * i) };
        let params = match i % 3 {
            0 => base,
            1 => SamplingParams { temperature: 1.0, seed: Some(u64::from(i)), ..base },
            _ => SamplingParams { temperature: 0.8, seed: Some(u64::from(i)), top_p: 0.9, n: 2, ..base },
        };
        request(&text(i % 2, 14 + 5 * i), params)
    };
    (0..7).map(request).collect()
}

/// Bits that a reader sees.
fn seen(outcomes: &[Vec<Outcome>]) -> Vec<(Vec<u32>, Vec<TokenLogprobs>)> {
    assert!(outcomes.iter().flatten().all(|outcome| outcome.error.is_none()));
    outcomes.iter().flatten().map(|outcome| (outcome.tokens.clone(), outcome.logprobs.clone())).collect()
}

fn load(model: &Path, config: EngineConfig, kernels: &Arc<Capturing>) -> Engine {
    Engine::load_with(model, config, kernels.clone()).unwrap()
}

fn equal_eager(family: &str) {
    let Some(model) = shared(family) else { return };
    let requests = requests(20);
    let plain = || EngineConfig { speculation: false, ..config() };

    let kernels = Arc::new(Capturing::default());
    let eager = load(&model, EngineConfig { enforce_eager: true, ..plain() }, &kernels);
    let expected = seen(&together(&eager, &requests));
    assert_eq!((kernels.sizes().len(), eager.stats().graph_steps), (0, 0), "{family}: eager is eager");
    assert_eq!(eager.info().graphs, "off: enforce_eager");

    // Two choices of a request need up to 10 blocks.
    let tiny = EngineConfig { num_blocks: Some(11), ..plain() };
    for (name, config, times) in [("roomy", plain(), 2), ("tiny", tiny, 3), ("drafts", config(), 1)] {
        let kernels = Arc::new(Capturing::default());
        let engine = load(&model, config, &kernels);
        let crowd: Vec<_> = requests.iter().cycle().take(times * requests.len()).cloned().collect();
        for (round, found) in together(&engine, &crowd).chunks(requests.len()).enumerate() {
            assert!(seen(found) == expected, "{family}, {name}, {round}: a bit differs from eager steps");
        }
        let alone: Vec<_> = requests.iter().map(|request| complete(&engine, request.clone())).collect();
        assert!(seen(&alone) == expected, "{family}, {name}, alone: a bit differs from eager steps");
        // The last step is counted after its token was delivered.
        all_blocks_come_back(&engine);

        let mut sizes = kernels.sizes();
        let captured = sizes.len();
        sizes.sort_unstable();
        sizes.dedup();
        assert_eq!(sizes.len(), captured, "{family}, {name}: a size was captured twice");
        assert!(sizes.iter().all(|size| [1, 2, 4, 8, 16, 24, 32].contains(size)), "{family}, {name}: {sizes:?}");
        let stats = engine.stats();
        assert!(sizes.contains(&1) && sizes.len() > 2, "{family}, {name}: {sizes:?}");
        assert_eq!(stats.graph_steps, kernels.replays.load(Ordering::SeqCst), "{family}, {name}");
        assert!(
            stats.graph_steps > 2 * captured as u64 && stats.graph_steps < stats.steps,
            "{family}, {name}: {stats:?}"
        );
        assert!(stats.cached_tokens > 0 && stats.graph_failure.is_none(), "{family}, {name}: {stats:?}");
        assert!(name != "tiny" || stats.preemptions > 0, "{family}: nobody was preempted");
    }
}

macro_rules! families {
    ($($name:ident)*) => {
        $(#[test] fn $name() { equal_eager(concat!("parity/text/", stringify!($name))); })*
    };
}

families! { llama3 qwen3 gemma3 gpt_oss deepseek_v3 qwen3_next qwen3_5 }

#[test]
fn a_capture_that_fails_is_said_and_changes_nothing() {
    let Some(model) = shared("parity/text/llama3") else { return };
    let config = || EngineConfig { speculation: false, ..config() };
    let requests = requests(12);
    let kernels = Arc::new(Capturing::default());
    let expected = seen(&together(&load(&model, config(), &kernels), &requests));
    // From the first on, or from eight sequences on.
    for first in [1, 8] {
        let kernels = Arc::new(Capturing::default());
        kernels.fails_from.store(first, Ordering::SeqCst);
        let engine = load(&model, config(), &kernels);
        for _ in 0..2 {
            assert!(seen(&together(&engine, &requests)) == expected, "a bit differs when size {first} fails");
        }
        all_blocks_come_back(&engine);
        let stats = engine.stats();
        let failure = stats.graph_failure.unwrap();
        assert!(failure.starts_with("a decode step of ") && failure.ends_with(": the fake is full"), "{failure}");
        assert_eq!(kernels.failures.load(Ordering::SeqCst), 1, "nothing is tried again");
        assert!(kernels.sizes().iter().all(|&size| size < first), "{:?}", kernels.sizes());
        assert_eq!(stats.graph_steps, kernels.replays.load(Ordering::SeqCst));
    }
}

#[test]
fn models_that_the_host_looks_at_stay_eager() {
    let Some(model) = shared("parity/vision/mllama") else { return };
    let kernels = Arc::new(Capturing::default());
    let engine = load(&model, config(), &kernels);
    together(&engine, &requests(4));
    assert_eq!((kernels.sizes().len(), engine.stats().graph_steps), (0, 0));
    assert!(engine.info().graphs.starts_with("off: this model has layers"), "{}", engine.info().graphs);
}

#[test]
fn a_processor_has_none_and_says_so() {
    let Some(model) = shared("parity/text/llama3") else { return };
    let engine = Engine::load(&model, EngineConfig { enforce_eager: true, ..config() }).unwrap();
    let info = engine.info();
    assert_eq!(info.graphs, format!("off: {} has none", info.kernels));
}

/// The CUDA backend in its emulator, where a replay runs the captured work again: its kernels read what has changed from
/// the arrays in place, padding and all.
fn emulated_equals_eager(family: &str) {
    let Some(model) = shared(family) else { return };
    let run = |enforce_eager| {
        let emulated = fastchat_emulator::emulated(false)?;
        let kernels: Arc<dyn Kernels> = emulated.kernels;
        let config = EngineConfig { enforce_eager, speculation: false, ..config() };
        let engine = Engine::load_with(&model, config, kernels).unwrap();
        let outcomes = seen(&together(&engine, &requests(3)[..4]));
        Some((outcomes, engine.stats().graph_steps))
    };
    let (Some((eager, none)), Some((replayed, steps))) = (run(true), run(false)) else {
        eprintln!("SKIPPED: the CUDA kernels are not emulated without a C++ compiler");
        return;
    };
    assert!(replayed == eager, "{family}: a bit differs from eager steps");
    assert!(none == 0 && steps > 4, "{family}: {steps} steps were replayed");
}

#[test]
fn the_emulated_gpu_replays_llama3() {
    emulated_equals_eager("parity/text/llama3");
}

#[test]
fn the_emulated_gpu_replays_gpt_oss() {
    emulated_equals_eager("parity/text/gpt_oss");
}
