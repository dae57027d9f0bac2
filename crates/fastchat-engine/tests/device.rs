//! A device with memory of its own that runs out of it, or is lost: what requests see. The device is a fake; what it
//! computes is what the defaults compute.
#![allow(clippy::unwrap_used)] // a test may fail loudly

mod harness;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use candle_core::{Device, Error, Result, Tensor};
use fastchat_engine::{Engine, EngineConfig, EngineError, FinishReason, Request, SamplingParams};
use fastchat_kernels::{DefaultKernels, DeviceMemory, Fault, ForwardBatch, Kernels, MoeSpec, MoeWeights, Plan, Rope};
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
