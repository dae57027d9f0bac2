//! A model that several devices compute: the tokens of one device, whatever comes, goes or ends meanwhile, with steps one by
//! one and with steps as graphs that are queued ahead; and the end of all of it when one device fails.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

#[path = "graphs/capturing.rs"]
mod capturing;
mod harness;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use candle_core::DType;
use capturing::Capturing;
use fastchat_engine::{Engine, EngineConfig, EngineError, Request, SamplingParams, TensorParallelDevice};
use fastchat_kernels::cpu::CpuKernels;
use fastchat_kernels::{Collective, HostRank, Kernels};
use harness::{config, greedy, request, serves, shared, together, tokens};

fn prompt(start: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| 1 + (start + i * i * 7 + i * 3) % 90).collect()
}

/// Requests that begin alike, end one after the other and choose in different ways; one of them takes the host.
fn requests() -> Vec<Request> {
    let request = |i: u32| {
        let base = SamplingParams { seed: Some(u64::from(i)), ..greedy(20 + 5 * i) };
        let params = match i % 4 {
            0 | 1 => base,
            2 => SamplingParams { temperature: 0.8, top_p: 0.9, top_k: 20, n: 2, ..base },
            _ => SamplingParams { max_tokens: Some(6), frequency_penalty: 0.5, logprobs: Some(2), ..base },
        };
        request(&prompt(i % 2, 14 + 5 * i), params)
    };
    (0..7).map(request).collect()
}

fn devices<K: Kernels + 'static>(size: usize, kernels: impl Fn() -> K) -> (Vec<TensorParallelDevice>, Vec<Arc<K>>) {
    let kernels: Vec<_> = (0..size).map(|_| Arc::new(kernels())).collect();
    let device = |(rank, kernels): (HostRank, &Arc<K>)| {
        let kernels: Arc<dyn Kernels> = kernels.clone();
        TensorParallelDevice { kernels, collective: Arc::new(rank) as Arc<dyn Collective> }
    };
    (HostRank::all(size).into_iter().zip(&kernels).map(device).collect(), kernels)
}

fn cpu() -> CpuKernels {
    CpuKernels::new(Some(1))
}

fn alone(model: &Path) -> Engine {
    Engine::load_with(model, config(), Arc::new(cpu())).unwrap()
}

fn equal_one_device(family: &str) {
    let Some(model) = shared(family) else { return };
    let requests = requests();
    let expected = tokens(&together(&alone(&model), &requests));
    let tiny = EngineConfig { num_blocks: Some(14), ..config() };
    for (name, config) in [("roomy", config()), ("tiny", tiny)] {
        let engine = Engine::load_on(&model, config, devices(2, cpu).0).unwrap();
        serves(&engine, &requests, &expected, &format!("{family}, {name}"));
        let stats = engine.stats();
        assert!(name != "tiny" || stats.preemptions > 0, "{family}: nobody was preempted");
        assert_eq!(stats.graph_steps, 0, "a CPU captures nothing");
    }
    let plain = EngineConfig { speculation: false, ..config() };
    let engine = Engine::load_on(&model, plain, devices(2, Capturing::running).0).unwrap();
    serves(&engine, &requests, &expected, &format!("{family}, graphs"));
    let stats = engine.stats();
    assert!(stats.overlapped_steps > 20 && stats.graph_steps > stats.overlapped_steps, "{family}: {stats:?}");
    assert!(stats.graph_failure.is_none(), "{family}: {stats:?}");
}

macro_rules! families {
    ($($name:ident)*) => {
        $(#[test] fn $name() { equal_one_device(concat!("parity/text/", stringify!($name))); })*
    };
}

families! { llama3 gemma3 mixtral gpt_oss deepseek_v3 qwen3_next }

/// Each device keeps the cache of its own heads.
#[test]
fn caches_are_dealt_out() {
    let Some(model) = shared("parity/text/llama3") else { return };
    let blocks = |devices| {
        let config = EngineConfig { kv_dtype: Some(DType::F32), kv_memory: Some(1 << 20), ..config() };
        Engine::load_on(&model, config, devices).unwrap().info().memory.num_blocks
    };
    let one = blocks(devices(1, cpu).0);
    assert_eq!(blocks(devices(2, cpu).0), 2 * one);
}

/// A rank that captures no graph of a size keeps all ranks from replaying any: they would not meet.
#[test]
fn ranks_stop_capturing_together() {
    let Some(model) = shared("parity/text/llama3") else { return };
    let requests = requests();
    let expected = tokens(&together(&alone(&model), &requests));
    for failing in 0..2 {
        let (devices, kernels) = devices(2, Capturing::running);
        kernels[failing].fails_from.store(4, Ordering::SeqCst);
        let plain = EngineConfig { speculation: false, ..config() };
        let engine = Engine::load_on(&model, plain, devices).unwrap();
        for _ in 0..2 {
            assert!(tokens(&together(&engine, &requests)) == expected, "rank {failing} fails: other tokens");
        }
        let failure = engine.stats().graph_failure.unwrap();
        assert!(failure.contains("the fake is full"), "{failure}");
        assert_eq!(kernels[failing].failures.load(Ordering::SeqCst), 1, "nobody tries again");
    }
    for without in 0..2 {
        let (devices, kernels) = devices(2, Capturing::running);
        kernels[without].fails_from.store(0, Ordering::SeqCst);
        let plain = EngineConfig { speculation: false, ..config() };
        let engine = Engine::load_on(&model, plain, devices).unwrap();
        serves(&engine, &requests, &expected, &format!("rank {without} has no graphs"));
        assert_eq!(engine.stats().graph_steps, 0);
    }
}

/// Whichever device fails at what it was told, everybody is told what went wrong, and nobody waits for ever.
#[test]
fn a_device_that_fails_ends_the_engine() {
    let Some(model) = shared("parity/text/llama3") else { return };
    for failing in 0..2 {
        let (devices, kernels) = devices(2, Capturing::running);
        kernels[failing].breaks_at.store(7, Ordering::SeqCst);
        let plain = EngineConfig { speculation: false, ..config() };
        let engine = Engine::load_on(&model, plain, devices).unwrap();
        let ends = together(&engine, &requests());
        let errors: Vec<_> = ends.iter().flatten().filter_map(|one| one.error.clone()).collect();
        assert!(!errors.is_empty(), "rank {failing}: nobody was told");
        for error in errors {
            assert!(matches!(&error, EngineError::Internal(line) if line.contains("the fake stumbles")), "{error}");
        }
        assert!(!engine.stats().alive, "rank {failing}: the engine says that it lives");
    }
}

#[test]
fn says_what_several_devices_do_not_do() {
    let disk = fastchat_engine::PrefixDiskConfig { dir: std::env::temp_dir(), bytes: 1 << 20 };
    let config = EngineConfig { tensor_parallel_size: 2, prefix_disk: Some(disk), ..config() };
    let error = config.check().unwrap_err().to_string();
    assert_eq!(error, "prefix_cache_dir keeps the blocks of one device; tensor_parallel_size is 2");
    let Some(model) = shared("parity/text/llama3") else { return };
    let cpu = EngineConfig { device: "cpu".parse().unwrap(), tensor_parallel_size: 2, ..harness::config() };
    let error = Engine::load(&model, cpu).unwrap_err().to_string();
    assert_eq!(error, "tensor_parallel_size is 2; the cores of a CPU are one device, so it must be 1");
    let Some(model) = shared("parity/vision/qwen2_5_vl") else { return };
    let error = Engine::load_on(&model, harness::config(), devices(2, self::cpu).0).unwrap_err().to_string();
    assert!(error.contains("models that take pictures run on one device"), "{error}");
}
