//! Every architecture from a GGUF file that the `gguf` package writes: against the outputs of the reference
//! implementation where there are some, else against the same weights read from safetensors.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

mod checkpoints;
mod rows;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use candle_core::{DType, Device};
use checkpoints::Folder;
use fastchat_kernels::cpu::CpuKernels;
use fastchat_kernels::{DefaultKernels, Kernels};
use fastchat_models::encoder_spec::{Pooling, PoolingMode};
use fastchat_models::{Embedder, LoadOptions, LoadedModel, TokenizerSource, inspect, is_encoder, load, load_encoder};
use rows::{chunked, difference, golden};

/// Largest difference of a logit, both sides computed in f32.
const TOLERANCE: f32 = 1e-4;

/// Rows that f32 evaluations scatter in by more, and by how much; `parity.rs` says why.
const AMPLIFIED: &[(&str, &[usize], f32)] = &[("qwen3_5", &[14, 16], 5e-4), ("qwen3_next", &[2], 5e-4)];

/// The safetensors folder `from` as a GGUF file in `to`.
fn convert(from: &Path, to: &Folder, architecture: &str, settings: &[&str]) -> PathBuf {
    let file = to.0.join("model.gguf");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gguf/convert.py");
    let output = Command::new("python3").arg(script).arg(from).arg(&file).arg(architecture).args(settings).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{architecture}: {}", String::from_utf8_lossy(&output.stderr));
    file
}

fn open(path: &Path) -> LoadedModel {
    load(path, Arc::new(DefaultKernels(Device::Cpu)), &LoadOptions::default()).unwrap_or_else(|error| panic!("{error}"))
}

fn reference(name: &str, architecture: &str) {
    let Some(shared) = rows::shared().filter(|_| checkpoints::writer()) else { return };
    let folder = Folder::new(&format!("gguf-{name}"));
    let from = shared.join("text").join(name);
    let model = open(&convert(&from, &folder, architecture, &[]));
    let file = from.join("golden.safetensors");
    let ids: Vec<u32> = golden(&file, "input_ids").to_dtype(DType::U32).unwrap().to_vec1().unwrap();
    let expected: Vec<Vec<f32>> = golden(&file, "logits").to_vec2().unwrap();
    for chunk in [ids.len(), 7] {
        for (row, (got, expected)) in chunked(&model.decoder, &ids, chunk).iter().zip(&expected).enumerate() {
            let amplified = AMPLIFIED.iter().find(|(family, rows, _)| *family == name && rows.contains(&row));
            let most = difference(std::slice::from_ref(got), std::slice::from_ref(expected));
            let tolerance = amplified.map_or(TOLERANCE, |(_, _, tolerance)| *tolerance);
            assert!(most <= tolerance, "{name} in chunks of {chunk}: logits of row {row} differ by {most}");
        }
    }
}

/// Both formats of one checkpoint compute the same.
fn twin(name: &str, from: &Path, architecture: &str) {
    if !checkpoints::writer() {
        return;
    }
    let folder = Folder::new(&format!("gguf-{name}"));
    let other = open(&convert(from, &folder, architecture, &[])).decoder;
    let one = open(from).decoder;
    let ids: Vec<u32> = (0..60).map(|i| (i * 37 + 11) % 256).collect();
    let most = difference(&chunked(&other, &ids, ids.len()), &chunked(&one, &ids, ids.len()));
    assert!(most <= TOLERANCE, "{name}: logits differ by {most}");
}

macro_rules! references {
    ($($name:ident $architecture:literal)*) => { $(#[test] fn $name() { reference(stringify!($name), $architecture); })* };
}

references! {
    llama3 "llama"
    llama_tied_bias "llama"
    mistral_window "llama"
    mixtral "llama"
    qwen2 "qwen2"
    qwen2_yarn "qwen2"
    qwen3 "qwen3"
    qwen3_moe "qwen3moe"
    qwen3_next "qwen3next"
    qwen3_5 "qwen35"
    gemma2 "gemma2"
    gemma3 "gemma3"
    phi3 "phi3"
    phi3_longrope "phi3"
    gpt_oss "gpt-oss"
    deepseek_v3 "deepseek2"
}

macro_rules! twins {
    ($($name:ident $architecture:literal)*) => {
        $(#[test] fn $name() {
            let folder = checkpoints::random(stringify!($name), "gguf-source");
            twin(stringify!($name), &folder.0, $architecture);
        })*
    };
}

twins! {
    cohere2 "cohere2"
    ernie4_5 "ernie4_5"
    exaone4 "exaone4"
    glm4 "glm4"
    glm4_moe "glm4moe"
    granite "granite"
    olmo2 "olmo2"
    olmo3 "olmo2"
    olmoe "olmoe"
    qwen2_moe "qwen2moe"
    seed_oss "seed_oss"
    starcoder2 "starcoder2"
}

/// The encoders' hidden states, and what their files say of pooling and framing.
fn encoder(name: &str, architecture: &str) {
    let Some(shared) = rows::shared().filter(|_| checkpoints::writer()) else { return };
    let folder = Folder::new(&format!("gguf-{name}"));
    let from = shared.join("encoders").join(name);
    let file = convert(&from, &folder, architecture, &[]);
    assert!(is_encoder(&file).unwrap());
    let loaded = load_encoder(&file, Arc::new(DefaultKernels(Device::Cpu)), &LoadOptions::default()).unwrap();
    let Some(TokenizerSource::Gguf(vocab)) = loaded.tokenizer else { panic!("{name} has no vocabulary") };
    assert_eq!((vocab.model.as_str(), vocab.bos, vocab.eos), ("bert", Some(101), Some(102)));
    assert!(vocab.add_bos && vocab.add_eos);
    let encoder = loaded.encoder.encoder().unwrap();
    assert_eq!(encoder.pooling(), Pooling { mode: PoolingMode::Cls, normalize: true });
    let golden_file = from.join("golden.safetensors");
    let table = |name| golden(&golden_file, name).to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
    let states: Vec<Vec<Vec<f32>>> = golden(&golden_file, "last_hidden_state").to_vec3().unwrap();
    for ((ids, mask), states) in table("input_ids").iter().zip(table("attention_mask")).zip(&states) {
        let real = mask.iter().filter(|&&bit| bit == 1).count();
        let found = encoder.forward(&[&ids[..real]]).unwrap().to_vec2::<f32>().unwrap();
        let most = difference(&found, &states[..real]);
        assert!(most <= TOLERANCE, "{name}: hidden states differ by {most}");
    }
    let says = load(&file, Arc::new(DefaultKernels(Device::Cpu)), &LoadOptions::default()).unwrap_err().to_string();
    assert!(says.contains("general.architecture") && says.contains(architecture), "{says}");
}

#[test]
fn bert() {
    encoder("bert", "bert");
}

#[test]
fn modernbert() {
    encoder("modernbert", "modern-bert");
}

#[test]
fn nomic_bert() {
    encoder("nomic_bert", "nomic-bert");
}

/// A decoder's file that says how its rows are pooled makes vectors, and the same as the folder that says so.
#[test]
fn a_decoder_with_a_pooling_type_makes_vectors() {
    let Some(shared) = rows::shared().filter(|_| checkpoints::writer()) else { return };
    let folder = Folder::new("gguf-pooled");
    let from = shared.join("text/qwen3");
    let plain = convert(&from, &folder, "qwen3", &[]);
    assert!(!is_encoder(&plain).unwrap());
    let refused = load_encoder(&plain, Arc::new(DefaultKernels(Device::Cpu)), &LoadOptions::default());
    assert!(refused.unwrap_err().to_string().contains("pooling_type"));
    let pooled = convert(&from, &folder, "qwen3", &["0", "3"]);
    assert!(is_encoder(&pooled).unwrap());
    let text: Vec<u32> = (3..40).collect();
    for kernels in [Arc::new(DefaultKernels(Device::Cpu)) as Arc<dyn Kernels>, Arc::new(CpuKernels::new(Some(2)))] {
        let loaded = load_encoder(&pooled, kernels, &LoadOptions::default()).unwrap().encoder;
        let Embedder::Decoder(decoder) = &loaded else { panic!("not a decoder") };
        assert_eq!(decoder.pooling(), Pooling { mode: PoolingMode::Last, normalize: true });
        let vector = loaded.embeddings(&[&text]).unwrap().remove(0);
        assert_eq!(vector.len(), loaded.sizes().1);
    }
}

/// The reference model has three layers; positions are left out in the fourth.
#[test]
fn smollm3() {
    let Some(shared) = rows::shared() else { return };
    let from = shared.join("text/smollm3");
    let folder = Folder::new("gguf-source-smollm3");
    let config = std::fs::read(from.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["num_hidden_layers"] = 4.into();
    config["no_rope_layers"] = serde_json::Value::Null;
    config["layer_types"] = serde_json::Value::Null;
    folder.write("config.json", config.to_string());
    let mut tensors = candle_core::safetensors::load(from.join("model.safetensors"), &Device::Cpu).unwrap();
    for (name, tensor) in tensors.clone() {
        if name.contains(".layers.0.") {
            tensors.insert(name.replace(".layers.0.", ".layers.3."), tensor);
        }
    }
    candle_core::safetensors::save(&tensors, folder.0.join("model.safetensors")).unwrap();
    twin("smollm3", &folder.0, "smollm3");
}

/// A model in several files is the same from any of them; a file of it that is gone is named.
#[test]
fn shards() {
    let Some(shared) = rows::shared().filter(|_| checkpoints::writer()) else { return };
    let (whole, cut) = (Folder::new("gguf-whole"), Folder::new("gguf-shards"));
    let from = shared.join("text/qwen2");
    let expected = open(&convert(&from, &whole, "qwen2", &[])).fingerprint;
    convert(&from, &cut, "qwen2", &["10"]);
    let part = |number: u32| cut.0.join(format!("model-{number:05}-of-00004.gguf"));
    for number in 1..=4 {
        assert_eq!(open(&part(number)).fingerprint, expected);
    }
    assert_eq!(open(&cut.0).fingerprint, expected);
    let refused = || load(&part(1), Arc::new(DefaultKernels(Device::Cpu)), &LoadOptions::default()).unwrap_err();
    std::fs::rename(part(3), cut.0.join("away")).unwrap();
    assert!(refused().to_string().contains("model-00003-of-00004.gguf"));
    std::fs::copy(part(2), part(3)).unwrap();
    assert!(refused().to_string().contains("model-00003-of-00004.gguf: split.no = 1: expected 2 of 4"));
}

#[test]
fn text_side() {
    let Some(shared) = rows::shared().filter(|_| checkpoints::writer()) else { return };
    let folder = Folder::new("gguf-text");
    let path = convert(&shared.join("text/qwen2"), &folder, "qwen2", &[]);
    let model = open(&path);
    assert_eq!(model.eos_token_ids, [2, 3]);
    assert_eq!(model.bos_token_id, Some(1));
    assert_eq!(model.chat_template.as_deref(), Some("{{ messages }}"));
    assert_eq!((model.generation.temperature, model.generation.top_k), (Some(0.5), Some(20)));
    let Some(TokenizerSource::Gguf(vocab)) = &model.tokenizer else { panic!("no vocabulary") };
    assert_eq!((vocab.model.as_str(), vocab.pre.as_str()), ("gpt2", "qwen2"));
    assert_eq!((vocab.tokens.len(), vocab.tokens[255].as_str()), (256, "t255"));
    assert_eq!((vocab.scores[255], vocab.token_types[255]), (-255.0, 1));
    assert_eq!(vocab.merges, ["t 1", "t 2"]);
    assert_eq!((vocab.bos, vocab.eos, vocab.unk, vocab.pad), (Some(1), Some(2), None, None));
    assert_eq!((vocab.add_bos, vocab.add_eos, vocab.add_space_prefix), (true, false, false));
    // A folder with one file is that file.
    assert_eq!(open(&folder.0).fingerprint, model.fingerprint);
    assert_eq!(inspect(&path, None).unwrap().format, "gguf");
}
