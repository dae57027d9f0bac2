//! The engine over a tiny model: what requests yield, who may leave, and what a failure touches.
#![allow(clippy::unwrap_used)] // a test may fail loudly

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use candle_core::{Device, Result, Tensor};
use fastchat_engine::{Engine, EngineConfig, EngineError, FinishReason, Prompt, Request, SamplingParams, StopReason};
use fastchat_kernels::{DefaultKernels, ForwardBatch, Kernels, MoeSpec, MoeWeights, Plan, Rope};
use harness::{all_blocks_come_back, complete, config, drain, greedy, request, shared, together};

fn model() -> Option<std::path::PathBuf> {
    shared("parity/text/llama3")
}

struct Golden {
    ids: Vec<u32>,
    greedy: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

fn golden(model: &std::path::Path) -> Golden {
    let tensors = candle_core::safetensors::load(model.join("golden.safetensors"), &Device::Cpu).unwrap();
    let ids = |name: &str| tensors[name].to_dtype(candle_core::DType::U32).unwrap().to_vec1().unwrap();
    Golden { ids: ids("input_ids"), greedy: ids("greedy"), logits: tensors["logits"].to_vec2().unwrap() }
}

#[test]
fn continues_as_the_reference_does() {
    let Some(model) = model() else { return };
    let Golden { ids, greedy: expected, .. } = golden(&model);
    let engine = Engine::load(&model, config()).unwrap();
    let found = &complete(&engine, request(&ids[..40], greedy(16)))[0];
    assert_eq!(found.tokens, expected);
    assert_eq!(found.finish.as_ref().map(|finish| finish.reason), Some(FinishReason::Length));
    assert_eq!((found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.cached_tokens), (40, 16, 0));
    assert_eq!(complete(&engine, request(&ids[..40], greedy(16)))[0].usage.cached_tokens, 32);
}

#[test]
fn prompt_logprobs_are_those_of_the_reference() {
    let Some(model) = model() else { return };
    let Golden { ids, logits, .. } = golden(&model);
    let engine = Engine::load(&model, EngineConfig { max_batch_tokens: 10, ..config() }).unwrap();
    let vocab = engine.info().vocab_size;
    let reference = |row: usize, id: u32| {
        let sum: f64 = logits[row].iter().map(|&l| f64::from(l).exp()).sum();
        f64::from(logits[row][id as usize]) - sum.ln()
    };
    // The second time the prompt is in the cache, and must be computed all the same.
    for _ in 0..2 {
        let ask = |k| request(&ids, SamplingParams { prompt_logprobs: Some(k), ..greedy(2) });
        let handle = engine.submit(ask(2)).unwrap();
        let outcome = drain(&handle);
        let found = handle.prompt_logprobs().unwrap();
        assert_eq!((found.rows, found.tokens.len(), outcome[0].usage.cached_tokens), (47, 47, 0));
        for (row, token) in found.tokens.iter().enumerate() {
            assert_eq!(token.token_id, ids[row + 1]);
            assert!((f64::from(token.logprob) - reference(row, token.token_id)).abs() < 1e-3);
            assert_eq!(token.rank == 1, token.top[0].0 == token.token_id);
            assert_eq!(token.top.len(), 2);
        }
        let handle = engine.submit(ask(-1)).unwrap();
        drain(&handle);
        let matrix = handle.prompt_logprobs().unwrap().matrix.unwrap();
        assert_eq!(matrix.len(), 47 * vocab);
        for (row, values) in matrix.chunks(vocab).enumerate() {
            for (id, &value) in (0..).zip(values) {
                assert!((f64::from(value) - reference(row, id)).abs() < 1e-3);
            }
        }
    }
}

#[test]
fn choice_zero_of_three_is_the_request_of_one() {
    let Some(model) = model() else { return };
    let engine = Engine::load(&model, config()).unwrap();
    let prompt: Vec<u32> = (0..37).collect();
    let ask = |n| {
        let params = SamplingParams { n, temperature: 1.0, seed: Some(99), logprobs: Some(2), ..greedy(12) };
        complete(&engine, request(&prompt, params))
    };
    let (one, three) = (ask(1), ask(3));
    assert_eq!(one[0].tokens, three[0].tokens);
    assert_eq!(one[0].logprobs, three[0].logprobs);
    assert_eq!(three.len(), 3);
    assert!(three[0].tokens != three[1].tokens && three[1].tokens != three[2].tokens);
    assert!(three.iter().all(|choice| choice.logprobs.len() == 12 && choice.logprobs[0].top.len() == 2));
}

#[test]
fn stops_where_it_is_told() {
    let Some(model) = model() else { return };
    let engine = Engine::load(&model, config()).unwrap();
    let prompt: Vec<u32> = (3..20).collect();
    let free = complete(&engine, request(&prompt, greedy(12)))[0].tokens.clone();
    let stop = free[4];
    let first = free.iter().position(|&token| token == stop).unwrap();
    let stopping = SamplingParams { stop_token_ids: vec![stop], ..greedy(12) };
    let found = &complete(&engine, request(&prompt, stopping.clone()))[0];
    assert_eq!(found.tokens, free[..=first]);
    let finish = found.finish.clone().unwrap();
    assert_eq!((finish.reason, finish.stop), (FinishReason::Stop, Some(StopReason::Token(stop))));

    let patient = SamplingParams { min_tokens: 9, ..stopping };
    let found = &complete(&engine, request(&prompt, patient))[0];
    assert!(found.tokens.len() > 9 && !found.tokens[..9].contains(&stop));

    let forced = SamplingParams { logit_bias: vec![(7, 100.0)], ..greedy(5) };
    assert_eq!(complete(&engine, request(&prompt, forced))[0].tokens, [7; 5]);
}

#[test]
fn refuses_by_name() {
    let Some(model) = model() else { return };
    let engine = Engine::load(&model, EngineConfig { max_model_len: Some(64), max_queue: 1, ..config() }).unwrap();
    let param = |request| match engine.submit(request) {
        Err(EngineError::InvalidRequest { param, .. }) => param,
        other => panic!("{other:?}"),
    };
    assert_eq!(param(request(&[], greedy(1))), "prompt");
    assert_eq!(param(request(&[1 << 20], greedy(1))), "prompt");
    assert_eq!(param(request(&[1], SamplingParams { stop_token_ids: vec![1 << 20], ..greedy(1) })), "stop_token_ids");
    assert_eq!(param(request(&[1], SamplingParams { stop: vec!["x".into()], ..greedy(1) })), "stop");
    let text = Prompt::Text { text: "x".into(), add_special_tokens: true };
    assert_eq!(param(Request { prompt: text, ..request(&[], greedy(1)) }), "prompt");
    let long = engine.submit(request(&[1; 64], greedy(1))).err();
    assert_eq!(long, Some(EngineError::ContextLength { limit: 64, prompt: 64 }));
    // As long as fits is served, whatever was asked for.
    let clamped = &complete(&engine, request(&[1; 60], greedy(1000)))[0];
    assert_eq!(clamped.tokens.len(), 4);

    let handles: Vec<_> = (0..50).map(|_| engine.submit(request(&[1; 40], greedy(20)))).collect();
    assert!(handles.iter().any(|handle| matches!(handle, Err(EngineError::Overloaded(_)))), "the queue holds 1");
    handles.iter().flatten().for_each(|handle| drop(drain(handle)));
    let too_small = EngineConfig { kv_memory: Some(1), max_model_len: Some(64), ..config() };
    assert!(
        matches!(Engine::load(&model, too_small), Err(EngineError::InvalidRequest { param, .. }) if param == "kv_memory")
    );
}

#[test]
fn leaving_frees_blocks_at_once() {
    let Some(model) = model() else { return };
    let engine = Engine::load(&model, config()).unwrap();
    let handle = engine.submit(request(&[1; 30], SamplingParams { n: 2, ..greedy(4000) })).unwrap();
    handle.wait(None);
    let steps = engine.stats().steps;
    handle.abort();
    let outcome = drain(&handle);
    assert!(outcome.iter().all(|choice| choice.error == Some(EngineError::Cancelled)));
    assert_eq!(outcome[0].finish.as_ref().map(|finish| finish.reason), Some(FinishReason::Abort));
    assert!(outcome[0].usage.completion_tokens >= outcome[0].tokens.len());
    all_blocks_come_back(&engine);
    assert!(engine.stats().steps < steps + 1000, "it ran to its end");
}

#[test]
fn two_hundred_leave_as_they_please() {
    let Some(model) = model() else { return };
    let engine = Engine::load(&model, EngineConfig { num_blocks: Some(40), ..config() }).unwrap();
    let survivor =
        request(&(0..50).collect::<Vec<_>>(), SamplingParams { temperature: 1.0, seed: Some(5), ..greedy(60) });
    let expected = complete(&engine, survivor.clone())[0].tokens.clone();
    let survivors: Vec<_> = (0..4).map(|_| engine.submit(survivor.clone()).unwrap()).collect();
    let mut random = 12345_u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let mut present = Vec::new();
    for number in 0..200_u32 {
        let prompt: Vec<u32> = (0..=next(80) as u32).map(|i| (i + number % 5) % 256).collect();
        let params = SamplingParams { n: 1 + next(3) as u32, ..greedy(1 + next(60) as u32) };
        present.push(engine.submit(request(&prompt, params)).unwrap());
        match next(4) {
            0 => drop(present.swap_remove(next(present.len() as u64) as usize)),
            1 => present[next(present.len() as u64) as usize].abort(),
            2 => drop(present[next(present.len() as u64) as usize].wait(Some(Duration::from_millis(2)))),
            _ => {}
        }
    }
    drop(present);
    for handle in &survivors {
        assert_eq!(drain(handle)[0].tokens, expected);
    }
    all_blocks_come_back(&engine);
}

#[test]
fn a_subscription_names_who_has_news() {
    let Some(model) = model() else { return };
    let engine = Engine::load(&model, config()).unwrap();
    let subscription = engine.subscribe().unwrap();
    assert!(subscription.ready().is_empty());
    let mut open: Vec<_> = (1..6).map(|i| subscription.submit(request(&[i; 20], greedy(10 * i))).unwrap()).collect();
    let mut counts = std::collections::HashMap::new();
    let started = std::time::Instant::now();
    while !open.is_empty() {
        assert!(started.elapsed() < harness::PATIENCE);
        for id in subscription.ready() {
            let handle = open.iter().find(|handle| handle.id() == id).expect("only open handles have news");
            let deltas = handle.take();
            *counts.entry(id).or_insert(0) += deltas.iter().map(|delta| delta.token_ids.len()).sum::<usize>();
        }
        open.retain(|handle| !handle.is_finished());
        std::thread::yield_now();
    }
    let mut counts: Vec<_> = counts.into_values().collect();
    counts.sort_unstable();
    assert_eq!(counts, [10, 20, 30, 40, 50]);
    assert!(subscription.ready().is_empty());
}

/// Fails on purpose when a step contains token 13, and waits at token 14 until told.
#[derive(Debug)]
struct Treacherous {
    honest: DefaultKernels,
    gate: Arc<AtomicBool>,
}

impl Kernels for Treacherous {
    fn device(&self) -> &Device {
        self.honest.device()
    }

    fn name(&self) -> String {
        "treacherous".to_owned()
    }

    fn plan(&self, batch: &ForwardBatch, ropes: &[Rope]) -> Result<Plan> {
        assert!(!batch.token_ids.contains(&13), "token 13");
        while batch.token_ids.contains(&14) && !self.gate.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        self.honest.plan(batch, ropes)
    }

    fn moe(&self, x: &Tensor, spec: &MoeSpec, weights: &MoeWeights) -> Result<Tensor> {
        self.honest.moe(x, spec, weights)
    }
}

#[test]
fn a_panic_ends_only_what_it_touched() {
    let Some(model) = model() else { return };
    let gate = Arc::new(AtomicBool::new(true));
    let kernels = Arc::new(Treacherous { honest: DefaultKernels(Device::Cpu), gate: gate.clone() });
    let one_at_a_time = EngineConfig { max_num_seqs: 1, ..config() };
    let engine = Engine::load_with(&model, one_at_a_time, kernels).unwrap();
    let allowed = SamplingParams { logit_bias: vec![(13, -100.0), (14, -100.0)], ..greedy(8) };
    let good = request(&[1, 2, 3], allowed.clone());
    let expected = complete(&engine, good.clone())[0].tokens.clone();
    let requests = [good.clone(), request(&[5, 13, 6], allowed.clone()), good.clone()];
    let outcomes = together(&engine, &requests);
    assert_eq!(outcomes[0][0].tokens, expected);
    assert_eq!(outcomes[2][0].tokens, expected);
    let failed = &outcomes[1][0];
    assert_eq!(failed.finish.as_ref().map(|finish| finish.reason), Some(FinishReason::Error));
    assert!(matches!(&failed.error, Some(EngineError::Internal(message)) if message.contains("token 13")));
    assert!(engine.stats().alive);
    all_blocks_come_back(&engine);

    // Ended while a step is under way: nobody is left waiting.
    gate.store(false, Ordering::SeqCst);
    let stuck = engine.submit(request(&[14, 1], allowed)).unwrap();
    let behind = engine.submit(good.clone()).unwrap();
    let subscription = engine.subscribe().unwrap();
    let three = SamplingParams { n: 3, ..good.params.clone() };
    let announced = subscription.submit(request(&[1, 2, 3], three)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| engine.shutdown());
        std::thread::sleep(Duration::from_millis(20));
        gate.store(true, Ordering::SeqCst);
    });
    assert_eq!(subscription.ready(), [announced.id()]);
    for (handle, choices) in [(stuck, 1), (behind, 1), (announced, 3)] {
        let outcomes = drain(&handle);
        assert_eq!(outcomes.len(), choices);
        assert!(outcomes.iter().all(|choice| choice.error == Some(EngineError::Cancelled)));
    }
    assert!(!engine.stats().alive);
    assert!(matches!(engine.submit(good), Err(EngineError::Internal(_))));
}
