//! The engine over a real model: the reference's own words, and the same words in any company.
#![allow(clippy::unwrap_used)] // a test may fail loudly

mod harness;

use std::path::{Path, PathBuf};

use fastchat_engine::{Engine, EngineConfig, FinishReason, Prompt, Request, SamplingParams};
use harness::{all_blocks_come_back, complete, greedy, real_model, request, shared, together};
use serde_json::Value;

/// Kernels with quantised activations may take the other token where the best two are closer than this (in logits).
const CLOSE: f64 = 0.5;

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn smollm2() -> Option<PathBuf> {
    real_model("smollm2-135m-instruct-q4_1.gguf", true)
}

fn text(text: &str) -> Request {
    let prompt = Prompt::Text { text: text.to_owned(), add_special_tokens: false };
    Request { prompt, ..request(&[], SamplingParams { ignore_eos: false, ..greedy(32) }) }
}

fn follows_the_reference(model: &Path, reference: &str) {
    let Some(reference) = shared(&format!("parity/real/{reference}")) else { return };
    let golden: Value = serde_json::from_slice(&std::fs::read(reference).unwrap()).unwrap();
    let engine = Engine::load(model, EngineConfig { max_model_len: Some(1024), ..EngineConfig::default() }).unwrap();
    let (mut steps, mut compared, mut whole) = (0, 0, 0);
    let cases = golden["chat"].as_array().unwrap().iter().map(|case| (case, "prompt_text", false));
    for (case, prompt, add_special_tokens) in
        cases.chain(golden["raw"].as_array().unwrap().iter().map(|case| (case, "prompt", true)))
    {
        let prompt = case[prompt].as_str().unwrap();
        let expected = ids(&case["greedy_ids"]);
        let max_tokens = Some(expected.len() as u32);
        let params = SamplingParams { max_tokens, ignore_eos: false, ..greedy(1) };
        let ask = Prompt::Text { text: prompt.to_owned(), add_special_tokens };
        let ask = Request { prompt: ask, params, ..request(&[], greedy(1)) };
        let handle = engine.submit(ask.clone()).unwrap();
        assert_eq!(handle.prompt_token_ids(), ids(&case["prompt_ids"]), "{prompt:?}");
        let found = &harness::drain(&handle)[0];
        // Log-probabilities need whole rows of logits, the most likely token alone does not.
        let params = SamplingParams { logprobs: Some(1), ..ask.params.clone() };
        let of_rows = &complete(&engine, Request { params, ..ask })[0];
        assert_eq!(of_rows.tokens, found.tokens, "{prompt:?}: other tokens with log-probabilities");
        let gaps = case["top1_top2_gap"].as_array().unwrap();
        let same = found.tokens.iter().zip(&expected).take_while(|(a, b)| a == b).count();
        steps += expected.len();
        compared += same;
        if same < expected.len() {
            let gap = gaps[same].as_f64().unwrap();
            assert!(gap < CLOSE, "{prompt:?}: step {same} differs where the gap is {gap}: {:?}", found.text);
        } else {
            whole += 1;
            assert_eq!(found.text, case["greedy_text"].as_str().unwrap(), "{prompt:?}");
        }
    }
    assert!(2 * compared >= steps, "only {compared} of {steps} steps agree");
    assert!(whole > 0, "no text agrees to its end");
}

#[test]
fn smollm2_says_what_the_reference_says() {
    if let Some(model) = smollm2() {
        follows_the_reference(&model, "smollm2-135m-instruct-q4_1.json");
    }
}

#[test]
fn qwen_coder_says_what_the_reference_says() {
    if let Some(model) = real_model("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", false) {
        follows_the_reference(&model, "qwen2.5-coder-0.5b-instruct-q4_k_m.json");
    }
}

#[test]
fn gemma_says_what_the_reference_says() {
    if let Some(model) = real_model("gemma-3-270m-q4_k_m.gguf", false) {
        follows_the_reference(&model, "gemma3-270m-q4_k_m.json");
    }
}

#[test]
fn thirty_two_prompts_in_any_company() {
    let Some(model) = smollm2() else { return };
    let base = EngineConfig { max_model_len: Some(256), ..EngineConfig::default() };
    let system = "<|im_start|>system\nYou are a patient teacher who answers in one short sentence.<|im_end|>\n";
    let topics = ["rain", "stars", "bread", "a river", "music", "chess", "the moon", "wool"];
    let requests: Vec<Request> = (0..32)
        .map(|i| {
            let question = format!(
                "{system}<|im_start|>user\nQuestion {}: what is {}?<|im_end|>\n<|im_start|>assistant\n",
                i / 8,
                topics[i % 8]
            );
            let mut request = text(&question);
            if i % 2 == 1 {
                request.params =
                    SamplingParams { temperature: 0.8, top_p: 0.9, seed: Some(i as u64), ..request.params };
            }
            (request.params.max_tokens, request.params.ignore_eos) = (Some(32), true);
            request
        })
        .collect();
    let texts = |outcomes: Vec<Vec<harness::Outcome>>| -> Vec<(String, Vec<u32>)> {
        outcomes.into_iter().map(|mut choices| choices.remove(0)).map(|choice| (choice.text, choice.tokens)).collect()
    };
    let engine = Engine::load(&model, EngineConfig { enable_prefix_caching: false, ..base.clone() }).unwrap();
    let alone = texts(requests.iter().map(|request| complete(&engine, request.clone())).collect());
    assert_eq!(texts(together(&engine, &requests)), alone, "together");
    let cached = Engine::load(&model, base.clone()).unwrap();
    assert_eq!(texts(together(&cached, &requests)), alone, "cold cache");
    assert_eq!(texts(together(&cached, &requests)), alone, "prefix hits");
    assert!(cached.stats().cached_tokens > 32 * 16);
    let tiny = Engine::load(&model, EngineConfig { num_blocks: Some(10), max_batch_tokens: 48, ..base }).unwrap();
    assert_eq!(texts(together(&tiny, &requests)), alone, "tiny cache");
    assert!(tiny.stats().preemptions > 0);
    all_blocks_come_back(&tiny);
}

#[test]
fn stop_strings_never_leave() {
    let Some(model) = smollm2() else { return };
    let engine = Engine::load(&model, EngineConfig { max_model_len: Some(256), ..EngineConfig::default() }).unwrap();
    let ask = text("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n");
    let whole = complete(&engine, ask.clone())[0].clone();
    assert_eq!(whole.finish.unwrap().reason, FinishReason::Stop);
    let stop = whole.text[whole.text.len() / 2..whole.text.len() / 2 + 4].to_owned();
    let mut stopping = ask;
    stopping.params.stop = vec!["no such words".to_owned(), stop.clone()];
    let found = complete(&engine, stopping.clone())[0].clone();
    assert_eq!(found.text, whole.text[..whole.text.find(&stop).unwrap()]);
    assert_eq!(found.finish.unwrap().stop, Some(fastchat_engine::StopReason::Text(stop.clone())));
    stopping.params.include_stop_str_in_output = true;
    assert!(complete(&engine, stopping)[0].text.ends_with(&stop));
}
