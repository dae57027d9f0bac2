//! A device with memory of its own that runs out of it, or is lost: what requests see. The device is a fake; what it
//! computes is what the defaults compute.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

mod harness;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use candle_core::{Device, Error, Result, Tensor};
use fastchat_engine::{Engine, EngineConfig, EngineError, FinishReason, Request, SamplingParams};
use fastchat_kernels::{
    DefaultKernels, DeviceMemory, Fault, ForwardBatch, Kernels, MoeSpec, MoeWeights, Plan, Rope, SampleRow,
    SampledToken,
};
use harness::{all_blocks_come_back, complete, config, drain, greedy, request, shared, together, tokens};

/// Steps of more than `room` tokens do not fit; a step after `lost` does not return.
#[derive(Debug)]
struct FakeDevice {
    honest: DefaultKernels,
    room: AtomicUsize,
    lost: AtomicBool,
    /// Steps that did not fit, and tokens of the largest that did.
    refused: AtomicUsize,
    largest: AtomicUsize,
    memory: DeviceMemory,
    /// Whether it chooses tokens, and how many it has chosen.
    samples: AtomicBool,
    chosen: AtomicUsize,
}

impl FakeDevice {
    fn with_room(room: usize) -> Arc<Self> {
        Arc::new(Self {
            honest: DefaultKernels(Device::Cpu),
            room: AtomicUsize::new(room),
            lost: AtomicBool::default(),
            refused: AtomicUsize::default(),
            largest: AtomicUsize::default(),
            memory: DeviceMemory { free: 24 << 20, total: 64 << 20 },
            samples: AtomicBool::default(),
            chosen: AtomicUsize::default(),
        })
    }
}

impl Kernels for FakeDevice {
    fn device(&self) -> &Device {
        self.honest.device()
    }

    fn name(&self) -> String {
        "fake".to_owned()
    }

    fn memory(&self) -> Option<DeviceMemory> {
        Some(self.memory)
    }

    fn fault(&self, error: &Error) -> Fault {
        match error.to_string().as_str() {
            text if text.starts_with("full") => Fault::OutOfMemory,
            text if text.starts_with("lost") => Fault::Sticky,
            _ => Fault::Plain,
        }
    }

    fn plan(&self, batch: &ForwardBatch, ropes: &[Rope]) -> Result<Plan> {
        if self.lost.load(Ordering::SeqCst) {
            return Err(Error::Msg("lost".to_owned()));
        }
        if batch.num_tokens() > self.room.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(Error::Msg("full".to_owned()));
        }
        self.largest.fetch_max(batch.num_tokens(), Ordering::SeqCst);
        self.honest.plan(batch, ropes)
    }

    fn samples(&self) -> bool {
        self.samples.load(Ordering::SeqCst)
    }

    fn sample(&self, logits: &Tensor, rows: &[SampleRow]) -> Result<Vec<SampledToken>> {
        self.chosen.fetch_add(rows.len(), Ordering::SeqCst);
        self.honest.sample(logits, rows)
    }

    fn moe(&self, x: &Tensor, spec: &MoeSpec, weights: &MoeWeights) -> Result<Tensor> {
        self.honest.moe(x, spec, weights)
    }
}

fn requests() -> Vec<Request> {
    let prompt = |i: u32| (0..20 + 7 * i).map(|token| 1 + (token * 11 + i) % 90).collect::<Vec<u32>>();
    (0..6).map(|i| request(&prompt(i), SamplingParams { seed: Some(u64::from(i)), ..greedy(24) })).collect()
}

#[test]
fn a_full_device_costs_time_and_changes_nothing() {
    // One family with keys and values, one with recurrent state.
    for family in ["parity/text/llama3", "parity/text/qwen3_next"] {
        let Some(model) = shared(family) else { return };
        let run = |room| {
            let kernels = FakeDevice::with_room(room);
            let engine = Engine::load_with(&model, config(), kernels.clone()).unwrap();
            let found = tokens(&together(&engine, &requests()));
            all_blocks_come_back(&engine);
            (found, kernels.refused.load(Ordering::SeqCst), engine.stats().preemptions)
        };
        let (expected, refused, _) = run(usize::MAX);
        assert_eq!(refused, 0);
        for room in [1, 2, 7, 40] {
            let (found, refused, preemptions) = run(room);
            assert_eq!(found, expected, "{family} with room for {room}");
            assert!(refused > 0 && preemptions > 0, "{family}: {refused} refusals, {preemptions} preemptions");
        }
    }
}

#[test]
fn steps_grow_again_when_there_is_room() {
    let Some(model) = shared("parity/text/llama3") else { return };
    let kernels = FakeDevice::with_room(4);
    let engine = Engine::load_with(&model, config(), kernels.clone()).unwrap();
    together(&engine, &requests());
    assert_eq!(kernels.largest.load(Ordering::SeqCst), 4);
    kernels.room.store(usize::MAX, Ordering::SeqCst);
    for _ in 0..2 {
        complete(&engine, request(&[1, 2, 3], greedy(300)));
    }
    let long: Vec<u32> = (0..200).map(|token| 1 + token % 90).collect();
    complete(&engine, request(&long, greedy(1)));
    assert_eq!(kernels.largest.load(Ordering::SeqCst), 200);
}

#[test]
fn a_step_that_never_fits_fails_alone() {
    let Some(model) = shared("parity/text/llama3") else { return };
    let kernels = FakeDevice::with_room(0);
    let engine = Engine::load_with(&model, config(), kernels.clone()).unwrap();
    let found = &complete(&engine, request(&[1, 2, 3], greedy(4)))[0];
    assert_eq!(found.finish.as_ref().map(|finish| finish.reason), Some(FinishReason::Error));
    assert!(matches!(&found.error, Some(EngineError::Internal(message)) if message.contains("full")));
    kernels.room.store(usize::MAX, Ordering::SeqCst);
    assert!(complete(&engine, request(&[1, 2, 3], greedy(4)))[0].error.is_none());
    assert!(engine.stats().alive);
}

#[test]
fn a_lost_device_ends_every_request_and_the_engine() {
    let Some(model) = shared("parity/text/llama3") else { return };
    let kernels = FakeDevice::with_room(usize::MAX);
    let engine = Engine::load_with(&model, EngineConfig { max_num_seqs: 1, ..config() }, kernels.clone()).unwrap();
    kernels.lost.store(true, Ordering::SeqCst);
    // The second waits for the first and is in no step.
    let handles: Vec<_> = requests()[..2].iter().filter_map(|request| engine.submit(request.clone()).ok()).collect();
    for found in handles.iter().map(drain) {
        assert!(matches!(&found[0].error, Some(EngineError::Internal(message)) if message.contains("lost")));
    }
    assert!(!engine.stats().alive);
    let refused = engine.submit(request(&[1, 2], greedy(1))).map(|handle| drain(&handle)[0].error.clone());
    assert!(refused.as_ref().map_or(true, Option::is_some), "{refused:?}");
}

#[test]
fn the_cache_gets_what_the_largest_step_leaves() {
    let Some(model) = shared("parity/text/llama3") else { return };
    let load = |config: EngineConfig| -> Arc<FakeDevice> {
        let kernels = FakeDevice::with_room(usize::MAX);
        let engine = Engine::load_with(&model, config.clone(), kernels.clone()).unwrap();
        // 24 MiB are free, and a 32nd of 64 MiB is left alone.
        let bytes = config.kv_memory.unwrap_or((24 - 2) << 20);
        assert_eq!(engine.stats().total_blocks, blocks_in(&model, bytes));
        kernels
    };
    let everything = EngineConfig { kv_memory: None, max_num_seqs: 4096, ..EngineConfig::default() };
    assert_eq!(load(everything.clone()).largest.load(Ordering::SeqCst), 512, "the profile runs the largest step");
    let asked = EngineConfig { kv_memory: Some(3 << 20), ..everything };
    assert_eq!(load(asked).largest.load(Ordering::SeqCst), 0, "nothing to find out");
}

fn blocks_in(model: &Path, bytes: u64) -> usize {
    let loaded =
        fastchat_models::load(model, Arc::new(DefaultKernels(Device::Cpu)), &fastchat_models::LoadOptions::default());
    let decoder = loaded.unwrap().decoder;
    (bytes / decoder.bytes_per_block(decoder.default_kv_dtype()) as u64) as usize
}

/// Requests that use everything by which tokens are chosen.
fn choosy() -> Vec<Request> {
    let base = || SamplingParams { temperature: 0.9, ..greedy(24) };
    let all = [
        greedy(24),
        base(),
        SamplingParams { top_k: 9, top_p: 0.8, logprobs: Some(3), ..base() },
        SamplingParams { min_p: 0.05, n: 2, prompt_logprobs: Some(1), ..base() },
        SamplingParams { repetition_penalty: 1.2, frequency_penalty: 0.3, presence_penalty: 0.1, ..greedy(24) },
        SamplingParams {
            logit_bias: vec![(5, 4.0), (9, -8.0)],
            min_tokens: 6,
            stop_token_ids: vec![7, 7, 5],
            ..base()
        },
    ];
    let prompt = |i: u32| (0..20 + 7 * i).map(|token| 1 + (token * 11 + i) % 5).collect::<Vec<u32>>();
    let request = |(i, params)| request(&prompt(i), SamplingParams { seed: Some(u64::from(i)), ..params });
    (0..).zip(all).map(request).collect()
}

#[test]
fn a_device_that_chooses_tokens_chooses_those_of_the_host() {
    for family in ["parity/text/llama3", "parity/text/qwen3_next"] {
        let Some(model) = shared(family) else { return };
        let run = |samples| {
            let kernels = FakeDevice::with_room(usize::MAX);
            kernels.samples.store(samples, Ordering::SeqCst);
            let engine = Engine::load_with(&model, config(), kernels.clone()).unwrap();
            let found = together(&engine, &choosy());
            (found, kernels.chosen.load(Ordering::SeqCst))
        };
        let ((host, none), (device, chosen)) = (run(false), run(true));
        assert_eq!(tokens(&device), tokens(&host), "{family}");
        let delivered: usize = tokens(&host).iter().flatten().map(Vec::len).sum();
        assert!(none == 0 && chosen >= delivered, "{family}: {chosen} chosen, {delivered} delivered");
        for (host, device) in host.iter().flatten().zip(device.iter().flatten()) {
            assert_eq!((&host.finish, &host.error), (&device.finish, &device.error));
            assert_eq!(host.logprobs.len(), device.logprobs.len());
            for (host, device) in host.logprobs.iter().zip(&device.logprobs) {
                assert_eq!((host.token_id, host.rank), (device.token_id, device.rank));
                assert!((host.logprob - device.logprob).abs() < 1e-5);
                let ids = |top: &[(u32, f32)]| top.iter().map(|entry| entry.0).collect::<Vec<_>>();
                assert_eq!(ids(&host.top), ids(&device.top));
            }
        }
    }
}

/// The whole way of a request over the CUDA backend, in its emulator: forward, sampling, delivery.
#[test]
fn the_emulated_gpu_serves_what_the_host_serves() {
    let Some(model) = shared("parity/text/qwen3") else { return };
    let Some(emulated) = fastchat_emulator::emulated(false) else {
        eprintln!("SKIPPED: the CUDA kernels are not emulated without a C++ compiler");
        return;
    };
    let requests: Vec<Request> = choosy()
        .into_iter()
        .map(|mut request| {
            request.params.max_tokens = Some(4);
            request.params.min_tokens = request.params.min_tokens.min(4);
            request
        })
        .collect();
    let run = |kernels: Arc<dyn Kernels>| {
        tokens(&together(&Engine::load_with(&model, config(), kernels).unwrap(), &requests))
    };
    assert!(emulated.kernels.samples());
    assert_eq!(run(emulated.kernels), run(Arc::new(DefaultKernels(Device::Cpu))));
}
