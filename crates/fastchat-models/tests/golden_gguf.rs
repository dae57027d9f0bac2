//! Real GGUF models against the reference outputs of their de-quantised weights: greedy tokens step by step, and the
//! likelihood of 1,024 tokens of text.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

mod rows;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use fastchat_kernels::cpu::CpuKernels;
use fastchat_kernels::{BLOCK_SIZE, DefaultKernels, ForwardBatch, Kernels};
use fastchat_models::{Cache, Decoder, LoadOptions, load};
use rows::argmax;
use serde_json::Value;

/// How far a model may be from the reference.
#[derive(Clone, Copy)]
struct Limits {
    /// Steps whose best two logits lie closer may go to either.
    gap: f64,
    /// Least share of steps at which the model chooses what the reference does, wherever the best two lie.
    agreed: f64,
    /// Largest relative difference of the mean likelihood.
    likelihood: f64,
}

/// Where activations are quantised.
const QUANTIZED: Limits = Limits { gap: 0.3, agreed: 0.95, likelihood: 0.01 };
/// Where everything but the weights is f32, as in the reference.
const EXACT: Limits = Limits { gap: 0.005, agreed: 0.99, likelihood: 1e-4 };
/// Tokens of the longest sequence.
const CAPACITY: usize = 1024;
/// Tokens of one prefill step.
const CHUNK: usize = 256;

/// The file `name` in the folder of models, or `None` with a loud line when it may be absent.
fn model(name: &str) -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let folder = std::env::var_os("FASTCHAT_MODELS").map_or(default, PathBuf::from);
    let file = folder.join(format!("{name}.gguf"));
    if file.is_file() {
        return Some(file);
    }
    let required = name.starts_with("smollm2") && std::env::var("CI").as_deref() == Ok("true");
    assert!(!required, "{} must be there in CI", file.display());
    eprintln!("SKIPPED: {} is not there; set FASTCHAT_MODELS", file.display());
    None
}

/// One sequence that owns the whole cache.
struct Run<'a> {
    decoder: &'a Decoder,
    cache: Cache,
    fed: usize,
}

impl<'a> Run<'a> {
    fn new(decoder: &'a Decoder, tokens: usize, kv: DType) -> Self {
        let cache = decoder.new_cache(tokens.div_ceil(BLOCK_SIZE), 0, kv).unwrap();
        Self { decoder, cache, fed: 0 }
    }

    /// Logits after each of the last `rows` of `tokens`.
    fn feed(&mut self, tokens: &[u32], rows: usize) -> Vec<Vec<f32>> {
        let positions: Vec<u32> = (self.fed..self.fed + tokens.len()).map(|i| i as u32).collect();
        self.fed += tokens.len();
        let count = tokens.len() as u32;
        let batch = ForwardBatch {
            token_ids: tokens.to_vec(),
            slot_mapping: positions.clone(),
            positions,
            query_start: vec![0, count],
            context_lens: vec![self.fed as u32],
            block_tables: vec![(0..self.fed.div_ceil(BLOCK_SIZE) as u32).collect()],
            logits_rows: (count - rows as u32..count).collect(),
            ..ForwardBatch::default()
        };
        self.decoder.forward(&batch, &self.cache).unwrap().to_vec2().unwrap()
    }
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

/// Feeds the reference's tokens one by one. Up to the first step without a clear winner the model must choose the same;
/// after it the choices are counted: (the same, all).
fn greedy(mut run: Run, gap_limit: f64, case: &Value) -> (usize, usize) {
    let (prompt, expected) = (ids(&case["prompt_ids"]), ids(&case["greedy_ids"]));
    let gaps: Vec<f64> = case["top1_top2_gap"].as_array().unwrap().iter().map(|gap| gap.as_f64().unwrap()).collect();
    let mut rows = run.feed(&prompt, 1);
    let (mut same, mut clear) = (0, true);
    for (step, (&token, gap)) in expected.iter().zip(gaps).enumerate() {
        let best = argmax(&rows[0]);
        clear &= gap >= gap_limit;
        let prompt = &case["prompt_ids"];
        assert!(best == token || !clear, "{prompt}: step {step} gave {best}, not {token} (gap {gap})");
        same += usize::from(best == token);
        rows = run.feed(&[token], 1);
    }
    (same, expected.len())
}

/// Negative log-likelihood of a text's tokens after the first.
fn likelihood(mut run: Run, tokens: &[u32]) -> Vec<f64> {
    let mut next = tokens[1..].iter();
    let mut out = Vec::new();
    for chunk in tokens.chunks(CHUNK) {
        for (row, &token) in run.feed(chunk, chunk.len()).iter().zip(&mut next) {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
            out.push(total.ln() - f64::from(row[token as usize] - most));
        }
    }
    out
}

fn check(file: &str, reference: &str, kernels: &Arc<dyn Kernels>, (kv, limits): (DType, Limits)) {
    let (Some(shared), Some(path)) = (rows::shared(), model(file)) else { return };
    let json = std::fs::read(shared.join(format!("real/{reference}.json"))).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let loaded = load(&path, kernels.clone(), &LoadOptions::default()).unwrap();
    let decoder = &loaded.decoder;
    assert_eq!(decoder.default_kv_dtype(), DType::F16);
    let cases = ["chat", "raw"].iter().flat_map(|kind| json[kind].as_array().unwrap());
    let run = || Run::new(decoder, CAPACITY, kv);
    let (same, all) = cases
        .map(|case| greedy(run(), limits.gap, case))
        .fold((0, 0), |(same, all), (more, steps)| (same + more, all + steps));
    let nll = &json["nll"];
    let tokens = likelihood(run(), &ids(&nll["ids"]));
    let (mean, expected) = (tokens.iter().sum::<f64>() / tokens.len() as f64, nll["mean_nll"].as_f64().unwrap());
    let reference = nll["per_token"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap());
    let square = tokens.iter().zip(reference).map(|(x, y)| (x - y).powi(2)).sum::<f64>() / tokens.len() as f64;
    eprintln!(
        "{file} on {}: {same} of {all} greedy tokens; likelihood {mean:.5}, reference {expected:.5}, by token {:.5} apart",
        kernels.name(),
        square.sqrt()
    );
    assert!(same as f64 >= limits.agreed * all as f64, "{file}: {same} of {all} greedy tokens");
    assert!((mean / expected - 1.0).abs() < limits.likelihood, "{file}: mean likelihood {mean}, expected {expected}");
}

fn quantized(file: &str, reference: &str) {
    let kernels: Arc<dyn Kernels> = Arc::new(CpuKernels::new(None));
    check(file, reference, &kernels, (DType::F16, QUANTIZED));
}

#[test]
fn smollm2() {
    quantized("smollm2-135m-instruct-q4_1", "smollm2-135m-instruct-q4_1");
}

#[test]
fn smollm2_in_f32() {
    let name = "smollm2-135m-instruct-q4_1";
    let kernels: Arc<dyn Kernels> = Arc::new(DefaultKernels(Device::Cpu));
    check(name, name, &kernels, (DType::F32, EXACT));
}

#[test]
fn gemma3() {
    quantized("gemma-3-270m-q4_k_m", "gemma3-270m-q4_k_m");
}

#[test]
fn qwen2() {
    quantized("qwen2.5-coder-0.5b-instruct-q4_k_m", "qwen2.5-coder-0.5b-instruct-q4_k_m");
}
