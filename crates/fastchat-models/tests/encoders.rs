//! Every encoder family against the outputs of the reference implementation, alone and in company; pooling by the
//! sentence-transformers files.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

#[macro_use]
mod rows;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use fastchat_kernels::cpu::{CpuKernels, Isa};
use fastchat_kernels::{DefaultKernels, Kernels};
use fastchat_models::encoder_spec::{Pooling, PoolingMode};
use fastchat_models::{Embedder, Encoder, LoadOptions, is_encoder, load, load_encoder};
use rows::{difference, golden};
use serde_json::{Value, json};

/// Largest difference of an element, both sides computed in f32.
const TOLERANCE: f32 = 1e-4;

/// The reference and the CPU with every instruction set it has.
fn kernels() -> Vec<Arc<dyn Kernels>> {
    let mut sets = vec![Isa::Avx512Vnni, Isa::Avx2, Isa::Portable];
    for isa in &mut sets {
        *isa = (*isa).min(Isa::detect());
    }
    sets.dedup();
    let cpu = sets.into_iter().map(|isa| Arc::new(CpuKernels::with_isa(None, isa)) as Arc<dyn Kernels>);
    std::iter::once(Arc::new(DefaultKernels(Device::Cpu)) as Arc<dyn Kernels>).chain(cpu).collect()
}

fn encoder(folder: &Path, kernels: Arc<dyn Kernels>) -> Encoder {
    match load_encoder(folder, kernels, &LoadOptions::default()).unwrap().encoder {
        Embedder::Encoder(encoder) => encoder,
        Embedder::Decoder(_) => panic!("{} holds a decoder", folder.display()),
    }
}

/// The real rows of each golden sequence: (ids, hidden states).
fn sequences(folder: &Path) -> Vec<(Vec<u32>, Vec<Vec<f32>>)> {
    let file = folder.join("golden.safetensors");
    let table = |name| -> Vec<Vec<u32>> { golden(&file, name).to_dtype(DType::U32).unwrap().to_vec2().unwrap() };
    let states: Vec<Vec<Vec<f32>>> = golden(&file, "last_hidden_state").to_vec3().unwrap();
    let rows = table("input_ids").into_iter().zip(table("attention_mask")).zip(states);
    rows.map(|((ids, mask), states)| {
        let real = mask.iter().filter(|&&bit| bit == 1).count();
        assert!(mask[..real].iter().all(|&bit| bit == 1), "padding stands at the end");
        (ids[..real].to_vec(), states[..real].to_vec())
    })
    .collect()
}

fn family(name: &str) {
    let Some(shared) = rows::shared() else { return };
    let folder = shared.join("encoders").join(name);
    assert!(is_encoder(&folder).unwrap());
    let sequences = sequences(&folder);
    for kernels in kernels() {
        let what = format!("{name} on {}", kernels.name());
        let encoder = encoder(&folder, kernels);
        let ids: Vec<&[u32]> = sequences.iter().map(|(ids, _)| ids.as_slice()).collect();
        let together = encoder.forward(&ids).unwrap().to_vec2::<f32>().unwrap();
        let mut start = 0;
        for (ids, expected) in &sequences {
            let own = &together[start..start + ids.len()];
            let most = difference(own, expected);
            assert!(most <= TOLERANCE, "{what}: {} tokens differ by {most}", ids.len());
            let alone = encoder.forward(&[ids]).unwrap().to_vec2::<f32>().unwrap();
            if what.contains("cpu") {
                assert!(alone == own, "{what}: {} tokens alone differ from company in some bit", ids.len());
            }
            assert!(difference(&alone, expected) <= TOLERANCE, "{what}: {} tokens alone", ids.len());
            start += ids.len();
        }
    }
}

every_folder! { "encoders", family: bert modernbert nomic_bert xlm_roberta }

/// A copy of the tiny BERT folder, removed at the end, for tests that add files.
struct Copy(PathBuf);

impl Copy {
    fn new(name: &str) -> Option<Self> {
        Some(Self::of(&rows::shared()?.join("encoders/bert"), name))
    }

    fn of(folder: &Path, name: &str) -> Self {
        let copy = std::env::temp_dir().join(format!("fastchat-encoders-{name}-{}", std::process::id()));
        fs::create_dir_all(copy.join("1_Pooling")).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(folder.join(file), copy.join(file)).unwrap();
        }
        Self(copy)
    }

    fn write(&self, file: &str, json: &Value) {
        fs::write(self.0.join(file), json.to_string()).unwrap();
    }

    fn modules(&self, last: &str) {
        let module = |i: usize, path: &str, kind: &str| {
            let kind = format!("sentence_transformers.models.{kind}");
            json!({"idx": i, "name": i.to_string(), "path": path, "type": kind})
        };
        let modules = [module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling"), module(2, "2", last)];
        self.write("modules.json", &json!(modules));
    }

    fn load(&self) -> Encoder {
        encoder(&self.0, Arc::new(DefaultKernels(Device::Cpu)))
    }

    fn error(&self) -> String {
        load_encoder(&self.0, Arc::new(DefaultKernels(Device::Cpu)), &LoadOptions::default()).unwrap_err().to_string()
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn sentence_transformers_files_decide_pooling_and_length() {
    let Some(copy) = Copy::new("pooling") else { return };
    assert_eq!(copy.load().pooling(), Pooling { mode: PoolingMode::Mean, normalize: true });
    assert_eq!(copy.load().max_model_len(), 128);

    copy.modules("Normalize");
    copy.write("1_Pooling/config.json", &json!({"word_embedding_dimension": 64, "pooling_mode_cls_token": true}));
    copy.write("sentence_bert_config.json", &json!({"max_seq_length": 32, "do_lower_case": false}));
    let encoder = copy.load();
    assert_eq!(encoder.pooling(), Pooling { mode: PoolingMode::Cls, normalize: true });
    assert_eq!(encoder.max_model_len(), 32);
    let vectors = encoder.embeddings(&[&[1, 2, 3], &[4]]).unwrap();
    let row = encoder.forward(&[&[1, 2, 3]]).unwrap().to_vec2::<f32>().unwrap().remove(0);
    let length = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
    assert_eq!(vectors.len(), 2);
    assert!((length(&vectors[0]) - 1.).abs() < 1e-6 && length(&row) > 2.);
    assert!(vectors[0].iter().zip(&row).all(|(a, b)| (a * length(&row) - b).abs() < 1e-4));
    assert!(encoder.forward(&[&[1; 33]]).unwrap_err().to_string().contains("1 to 32 tokens"));
    assert!(encoder.forward(&[&[]]).unwrap_err().to_string().contains("0 tokens"));
    assert!(encoder.forward(&[&[256]]).unwrap_err().to_string().contains("token_ids = 256"));

    copy.write("1_Pooling/config.json", &json!({"pooling_mode": "lasttoken"}));
    assert_eq!(copy.load().pooling().mode, PoolingMode::Last);
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    let Some(copy) = Copy::new("refused") else { return };
    copy.modules("Dense");
    copy.write("1_Pooling/config.json", &json!({"pooling_mode_mean_tokens": true}));
    assert!(
        copy.error().contains("[2].type = sentence_transformers.models.Dense is not supported"),
        "{}",
        copy.error()
    );
    copy.modules("Normalize");
    for (pooling, expected) in [
        (json!({"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true}), "pooling_mode_* = 2 modes"),
        (json!({"pooling_mode": "median"}), "pooling_mode = median"),
        (json!({"pooling_mode_cls_token": true, "word_embedding_dimension": 63}), "word_embedding_dimension = 63"),
    ] {
        copy.write("1_Pooling/config.json", &pooling);
        assert!(copy.error().contains(expected), "{}", copy.error());
    }
    fs::remove_file(copy.0.join("modules.json")).unwrap();
    let kernels: Arc<dyn Kernels> = Arc::new(DefaultKernels(Device::Cpu));
    let as_decoder = load(&copy.0, kernels.clone(), &LoadOptions::default()).unwrap_err().to_string();
    assert!(as_decoder.contains("model_type = bert is not supported; it is an encoder"), "{as_decoder}");
    let long = load_encoder(&copy.0, kernels, &LoadOptions { max_model_len: Some(129), ..LoadOptions::default() })
        .unwrap_err()
        .to_string();
    assert!(long.contains("max_model_len = 129"), "{long}");
    let text = rows::shared().unwrap().join("text/qwen3");
    assert!(!is_encoder(&text).unwrap());
    let kernels = Arc::new(DefaultKernels(Device::Cpu));
    let as_encoder = load_encoder(&text, kernels, &LoadOptions::default()).unwrap_err().to_string();
    assert!(as_encoder.contains("model_type = qwen3") && as_encoder.contains("modernbert"), "{as_encoder}");
}

/// A decoder whose folder says that its last rows are taken: the vector is what the reference's logits are made of.
#[test]
fn a_decoder_makes_vectors_of_its_last_rows() {
    let Some(shared) = rows::shared() else { return };
    let from = shared.join("text/llama_tied_bias");
    let copy = Copy::of(&from, "decoder");
    assert!(!is_encoder(&copy.0).unwrap());
    copy.modules("Normalize");
    copy.write("1_Pooling/config.json", &json!({"pooling_mode_lasttoken": true}));
    assert!(is_encoder(&copy.0).unwrap());
    let file = from.join("golden.safetensors");
    let ids: Vec<u32> = golden(&file, "input_ids").to_dtype(DType::U32).unwrap().to_vec1().unwrap();
    let logits: Vec<Vec<f32>> = golden(&file, "logits").to_vec2().unwrap();
    let table = candle_core::safetensors::load(from.join("model.safetensors"), &Device::Cpu).unwrap();
    let table = table["model.embed_tokens.weight"].to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
    let cosine = |a: &[f32], b: &[f32]| {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    for kernels in kernels() {
        let exact = kernels.name().contains("cpu");
        let options = LoadOptions { max_model_len: Some(64), ..LoadOptions::default() };
        let model = load_encoder(&copy.0, kernels, &options).unwrap().encoder;
        let Embedder::Decoder(decoder) = &model else { panic!("not a decoder") };
        assert_eq!(decoder.pooling(), Pooling { mode: PoolingMode::Last, normalize: true });
        assert_eq!((model.max_model_len(), model.sizes().1), (64, table[0].len()));
        // More than the cache holds at a time.
        let texts: Vec<&[u32]> = (1..=ids.len()).map(|len| &ids[..len]).collect();
        let vectors = model.embeddings(&texts).unwrap();
        assert_eq!(vectors.len(), texts.len());
        for (text, vector) in texts.iter().zip(&vectors) {
            let length: f32 = vector.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-5);
            let seen: Vec<f32> = table.iter().map(|row| row.iter().zip(vector).map(|(a, b)| a * b).sum()).collect();
            let found = cosine(&seen, &logits[text.len() - 1]);
            assert!(found > 0.999_999, "{} tokens: {found}", text.len());
            let alone = model.embeddings(&[text]).unwrap().remove(0);
            assert!(!exact || alone == *vector, "{} tokens alone differ from company in some bit", text.len());
        }
        for wrong in [&[][..], &[0; 65]] {
            assert!(model.embeddings(&[wrong]).unwrap_err().to_string().contains("1 to 64 tokens"));
        }
    }
}

/// Cosines with what sentence-transformers computes, for a folder that may not have been fetched.
#[test]
fn all_minilm() {
    let Some(shared) = rows::shared() else { return };
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let folder = std::env::var_os("FASTCHAT_MODELS").map_or(models, PathBuf::from).join("all-minilm-l6-v2");
    if !folder.is_dir() {
        eprintln!("SKIPPED: {} is not here; fetch it with python -m fastchat_rs.hub minilm", folder.display());
        return;
    }
    let expected: Value =
        serde_json::from_slice(&fs::read(shared.join("encoders/all-minilm-l6-v2.json")).unwrap()).unwrap();
    let numbers = |value: &Value| value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<f64>>();
    for kernels in kernels() {
        let name = kernels.name();
        let encoder = encoder(&folder, kernels);
        assert_eq!(encoder.max_model_len(), 256);
        let items = expected["items"].as_array().unwrap();
        let ids: Vec<Vec<u32>> =
            items.iter().map(|item| numbers(&item["ids"]).into_iter().map(|id| id as u32).collect()).collect();
        let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        let vectors = encoder.embeddings(&ids).unwrap();
        assert!(!items.is_empty());
        for (item, vector) in items.iter().zip(vectors) {
            let golden = numbers(&item["embedding"]);
            assert_eq!(golden.len(), vector.len());
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let vector: Vec<f64> = vector.into_iter().map(f64::from).collect();
            let cosine = dot(&vector, &golden) / (dot(&vector, &vector) * dot(&golden, &golden)).sqrt();
            assert!(cosine >= 0.99999, "{name}: cosine {cosine} of {}", item["text"]);
        }
    }
}
