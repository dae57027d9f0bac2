//! What breaks in a step touches the requests of that step, or of one row, and nobody else; the engine says how it is.
//! The faults come from the kernels a test hands in and from the weights it writes: the engine has no hooks for them.
#![allow(clippy::unwrap_used)] // a test may fail loudly

mod harness;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use candle_core::{Device, Result, Tensor};
use fastchat_engine::{Engine, EngineError, Request, SamplingParams};
use fastchat_kernels::{DefaultKernels, Kernels, MoeSpec, MoeWeights};
use harness::{all_blocks_come_back, complete, config, greedy, request, shared, together};

/// The reference kernels, which panic once when the countdown of norms reaches 0.
#[derive(Debug)]
struct Fragile {
    plain: DefaultKernels,
    countdown: AtomicI64,
}

impl Kernels for Fragile {
    fn device(&self) -> &Device {
        self.plain.device()
    }

    fn name(&self) -> String {
        self.plain.name()
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        assert!(self.countdown.fetch_sub(1, Ordering::Relaxed) != 0, "a kernel gave way");
        self.plain.rms_norm(x, weight, eps)
    }

    fn moe(&self, x: &Tensor, spec: &MoeSpec, weights: &MoeWeights) -> Result<Tensor> {
        self.plain.moe(x, spec, weights)
    }
}

fn model() -> Option<PathBuf> {
    shared("parity/text/llama3")
}

#[test]
fn a_panic_in_a_step_ends_the_requests_of_that_step() {
    let Some(model) = model() else { return };
    let kernels = Arc::new(Fragile { plain: DefaultKernels(Device::Cpu), countdown: AtomicI64::new(i64::MAX) });
    let engine = Engine::load_with(&model, config(), kernels.clone()).unwrap();
    let requests: Vec<Request> = (0..4).map(|first| request(&[first, 6, 7], greedy(8))).collect();
    let expected: Vec<_> = requests.iter().map(|one| complete(&engine, one.clone())).collect();
    kernels.countdown.store(0, Ordering::Relaxed);
    let outcomes = together(&engine, &requests);
    let failed = |choices: &&Vec<harness::Outcome>| choices[0].error.is_some();
    assert!(outcomes.iter().any(|choices| failed(&choices)), "nobody was touched");
    for choices in outcomes.iter().filter(failed) {
        let Some(EngineError::Internal(message)) = &choices[0].error else { panic!("{choices:?}") };
        assert!(message.contains("a kernel gave way"), "{message}");
    }
    assert!(engine.stats().alive);
    all_blocks_come_back(&engine);
    let tokens = harness::tokens(&expected);
    assert_eq!(harness::tokens(&together(&engine, &requests)), tokens, "what comes after is as before");
}

/// A copy of the model whose embedding of one token is not a number.
fn poisoned(source: &Path, token: usize) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("poisoned");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(source.join("config.json"), folder.join("config.json")).unwrap();
    let mut tensors = candle_core::safetensors::load(source.join("model.safetensors"), &Device::Cpu).unwrap();
    let name = "model.embed_tokens.weight";
    let table = tensors[name].clone();
    let (rows, width) = table.dims2().unwrap();
    let nan = Tensor::full(f32::NAN, (1, width), &Device::Cpu).unwrap().to_dtype(table.dtype()).unwrap();
    let (before, after) = (table.narrow(0, 0, token).unwrap(), table.narrow(0, token + 1, rows - token - 1).unwrap());
    tensors.insert(name.to_owned(), Tensor::cat(&[before, nan, after], 0).unwrap());
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    folder
}

#[test]
fn a_row_that_is_not_a_number_fails_alone() {
    let Some(source) = model() else { return };
    let bad = 9;
    let engine = Engine::load(&poisoned(&source, bad as usize), config()).unwrap();
    let prompt = |first: u32| (0..40).map(|at| if at == 20 { first } else { 30 + at }).collect::<Vec<u32>>();
    // A token of the poisoned row is never chosen, so only those who bring it are touched.
    let params = |seed| SamplingParams {
        temperature: if seed % 2 == 0 { 0.0 } else { 1.0 },
        seed: Some(seed),
        logit_bias: vec![(bad, -100.0)],
        ..greedy(12)
    };
    let ask = |first| request(&prompt(first), params(u64::from(first)));
    let alone: Vec<_> = (10..17).map(|first| complete(&engine, ask(first))).collect();
    let mut requests: Vec<Request> = (10..17).map(ask).collect();
    requests.insert(3, ask(bad));
    let mut outcomes = together(&engine, &requests);
    let failed = outcomes.remove(3).remove(0);
    assert!(matches!(failed.error, Some(EngineError::Internal(ref message)) if message.contains("not a number")));
    assert!(failed.tokens.is_empty());
    assert_eq!(harness::tokens(&outcomes), harness::tokens(&alone), "seven others are as ever");
    assert!(outcomes.iter().flatten().all(|outcome| outcome.error.is_none()));
    all_blocks_come_back(&engine);
    // Nothing of what failed is found by those who share its beginning.
    let again = complete(&engine, ask(bad)).remove(0);
    assert!(again.error.is_some());
    assert_eq!(again.usage.cached_tokens, 0, "a failed request leaves nothing behind that it computed itself");
}
