//! Checkpoints written as GGUF files: the same logits as the folder they came from for every family, whatever order of rows
//! the architecture stores, and the kinds that were asked for.
#![allow(missing_docs, clippy::unwrap_used)] // a test may fail loudly

mod checkpoints;
mod rows;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use checkpoints::Folder;
use fastchat_kernels::DefaultKernels;
use fastchat_models::{
    Converted, FileKind, LoadOptions, LoadedModel, convert, inspect, is_encoder, load, load_encoder,
};
use rows::{chunked, difference};

/// Largest difference of a logit; both sides have the same weights, but rows of heads, and so sums, in another order.
const TOLERANCE: f32 = 1e-4;

/// Families of the reference models whose logits amplify rounding; `parity.rs` says why.
const AMPLIFIED: &[(&str, f32)] = &[("qwen3_5", 5e-4), ("qwen3_5_moe", 5e-4), ("qwen3_next", 5e-4)];

fn open(path: &Path, quantize: Option<&str>) -> LoadedModel {
    let options = LoadOptions { quantize: quantize.map(|name| name.parse().unwrap()), ..LoadOptions::default() };
    load(path, Arc::new(DefaultKernels(Device::Cpu)), &options).unwrap_or_else(|error| panic!("{error}"))
}

fn kind(name: &str) -> FileKind {
    name.parse().unwrap()
}

fn written(from: &Path, to: &Folder, name: &str, kind: Option<FileKind>) -> (PathBuf, Converted) {
    let file = to.0.join(name);
    let converted = convert(from, &file, kind).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(converted.bytes, std::fs::metadata(&file).unwrap().len());
    assert!(!to.0.join(format!("{name}.partial")).exists());
    (file, converted)
}

fn logits(model: &LoadedModel) -> Vec<Vec<f32>> {
    let vocab = model.decoder.spec().vocab_size as u32;
    let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % vocab.min(256)).collect();
    chunked(&model.decoder, &ids, ids.len())
}

/// f32 and as stored: the same model; and written again from the file: the same file.
fn round_trip(name: &str, from: &Path) {
    let folder = Folder::new(&format!("convert-{name}"));
    let expected = logits(&open(from, None));
    let tolerance = AMPLIFIED.iter().find(|(family, _)| *family == name).map_or(TOLERANCE, |(_, most)| *most);
    for (label, kind) in [("f32", Some(kind("f32"))), ("stored", None)] {
        let (file, _) = written(from, &folder, &format!("{label}.gguf"), kind);
        let model = open(&file, None);
        let most = difference(&logits(&model), &expected);
        assert!(most <= tolerance, "{name} as {label}: logits differ by {most}");
        let (again, _) = written(&file, &folder, "again.gguf", kind);
        assert_eq!(open(&again, None).fingerprint, model.fingerprint, "{name} as {label}");
    }
}

fn reference(name: &str) {
    if let Some(shared) = rows::shared() {
        round_trip(name, &shared.join("text").join(name));
    }
}

macro_rules! references {
    ($($name:ident)*) => { $(#[test] fn $name() { reference(stringify!($name)); })* };
}

macro_rules! random {
    ($($name:ident)*) => {
        $(#[test] fn $name() {
            let folder = checkpoints::random(stringify!($name), "convert-source");
            round_trip(stringify!($name), &folder.0);
        })*
    };
}

references! {
    llama3 llama_tied_bias mistral_window mixtral qwen2 qwen2_yarn qwen3 qwen3_moe qwen3_next qwen3_5 gemma2 gemma3 phi3
    phi3_longrope gpt_oss deepseek_v3
}

random! {
    cohere2 ernie4_5 exaone4 glm4 glm4_moe granite olmo2 olmo3 olmoe qwen2_moe seed_oss starcoder2
}

/// The text of a model that takes pictures; its tower is named as left out.
#[test]
fn the_text_of_models_that_take_pictures() {
    let Some(shared) = rows::shared() else { return };
    for name in ["gemma3_vision", "idefics3", "llava", "qwen2_5_vl", "qwen3_vl"] {
        let from = shared.join("vision").join(name);
        let (folder, expected) = (Folder::new(&format!("convert-{name}")), logits(&open(&from, None)));
        let (file, converted) = written(&from, &folder, "text.gguf", None);
        assert_eq!(converted.left_out.as_deref(), Some("the tower for pictures"), "{name}");
        let model = open(&file, None);
        let most = difference(&logits(&model), &expected);
        assert!(most <= TOLERANCE && model.vision.is_none(), "{name}: logits differ by {most}");
    }
    let folder = Folder::new("convert-mllama");
    let error = convert(&shared.join("vision/mllama"), &folder.0.join("a.gguf"), None).unwrap_err().to_string();
    assert!(error.contains("model_type = mllama_text_model is not supported; it has no GGUF architecture"), "{error}");
}

/// Vectors of ids up to `vocab` in sequences of several lengths, and their pooling.
fn vectors(path: &Path) -> (Vec<Vec<f32>>, fastchat_models::LoadedEncoder) {
    let loaded = load_encoder(path, Arc::new(DefaultKernels(Device::Cpu)), &LoadOptions::default());
    let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
    let vocab = loaded.encoder.sizes().0.min(256) as u32;
    let ids = |len: u32| (0..len).map(|i| (i * 37 + 11 + len) % vocab).collect::<Vec<u32>>();
    let texts: Vec<Vec<u32>> = [1, 7, 40].into_iter().map(ids).collect();
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    (loaded.encoder.embeddings(&texts).unwrap(), loaded)
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The same vectors from the file, and the same file from itself; rounded, nearly the same ones.
fn vectors_round_trip(name: &str, architecture: &str) {
    let Some(shared) = rows::shared() else { return };
    let from = shared.join("encoders").join(name);
    let folder = Folder::new(&format!("convert-{name}"));
    let (expected, source) = vectors(&from);
    for (kind_name, least) in [("f32", 0.999_999_9), ("bf16", 0.999_999_9), ("f16", 0.9999), ("q8_0", 0.999)] {
        let (file, converted) = written(&from, &folder, &format!("{kind_name}.gguf"), Some(kind(kind_name)));
        assert_eq!(converted.left_out, None);
        let (found, loaded) = vectors(&file);
        for (found, expected) in found.iter().zip(&expected) {
            let same = cosine(found, expected);
            assert!(same >= least, "{name} as {kind_name}: cosine {same}");
        }
        let (one, other) = (source.encoder.encoder().unwrap(), loaded.encoder.encoder().unwrap());
        assert_eq!((one.pooling(), one.max_model_len()), (other.pooling(), other.max_model_len()));
        let bytes = std::fs::read(&file).unwrap();
        assert!(bytes.windows(architecture.len()).any(|window| window == architecture.as_bytes()));
        let (again, _) = written(&file, &folder, "again.gguf", Some(kind(kind_name)));
        assert_eq!(vectors(&again).1.fingerprint, loaded.fingerprint, "{name} as {kind_name}");
        // What another format resolves to is what this file is read as.
        let spec = |path: &Path| match inspect(path, None).unwrap().spec {
            fastchat_models::ModelSpec::Encoder(spec) => spec.layers,
            fastchat_models::ModelSpec::Decoder(_) => panic!("{name} is a decoder"),
        };
        assert_eq!(spec(&file), spec(&from), "{name}");
    }
}

macro_rules! encoders {
    ($($name:ident $architecture:literal)*) => {
        $(#[test] fn $name() { vectors_round_trip(stringify!($name), $architecture); })*
    };
}

encoders! {
    bert "bert"
    modernbert "modern-bert"
    nomic_bert "nomic-bert"
    xlm_roberta "bert"
}

/// A decoder's folder that says how its rows are pooled makes vectors from its file too, without the output matrix.
#[test]
fn a_decoder_that_makes_vectors() {
    let Some(folder) = derived("pooled", "llama_tied_bias", |_, _| {}) else { return };
    let pool = |mode: &str, last: &str| {
        let module = |i: usize, path: &str, kind: &str| serde_json::json!({"idx": i, "name": i.to_string(), "path": path, "type": format!("sentence_transformers.models.{kind}")});
        let modules = [module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling"), module(2, "2", last)];
        let used = if last.is_empty() { 2 } else { 3 };
        folder.write("modules.json", serde_json::to_string(&modules[..used]).unwrap());
        std::fs::create_dir_all(folder.0.join("1_Pooling")).unwrap();
        folder.write("1_Pooling/config.json", serde_json::json!({"pooling_mode": mode}).to_string());
    };
    pool("lasttoken", "Normalize");
    folder.write("sentence_bert_config.json", r#"{"max_seq_length": 48}"#);
    let out = Folder::new("convert-pooled");
    let (file, converted) = written(&folder.0, &out, "pooled.gguf", Some(kind("f32")));
    let left = converted.left_out.unwrap();
    assert!(left.starts_with("the longest text of 48 tokens, where positions reach "), "{left}");
    assert!(is_encoder(&file).unwrap());
    for (found, expected) in vectors(&file).0.iter().zip(vectors(&folder.0).0) {
        assert!(cosine(found, &expected) >= 0.999_999_9);
    }
    for (mode, last, said) in [
        ("lasttoken", "", "pooling.normalize = false is not supported"),
        ("max", "Normalize", "pooling.mode = Max is not supported"),
    ] {
        pool(mode, last);
        let error = convert(&folder.0, &out.0.join("refused.gguf"), None).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(std::fs::read_dir(&out.0).unwrap().count(), 1, "a refused model leaves no file");
}

/// Layers without positions are every fourth, as the architecture has it.
#[test]
fn smollm3() {
    let Some(folder) = derived("smollm3", "smollm3", |config, tensors| {
        config["num_hidden_layers"] = 4.into();
        config["no_rope_layers"] = serde_json::Value::Null;
        config["layer_types"] = serde_json::Value::Null;
        for (name, tensor) in tensors.clone() {
            if name.contains(".layers.0.") {
                tensors.insert(name.replace(".layers.0.", ".layers.3."), tensor);
            }
        }
    }) else {
        return;
    };
    round_trip("smollm3", &folder.0);
}

/// The reference model has three layers, which the architecture cannot say the positions of.
#[test]
fn what_the_format_has_no_key_for_is_refused() {
    let Some(shared) = rows::shared() else { return };
    let folder = Folder::new("convert-refused");
    let error = convert(&shared.join("text/smollm3"), &folder.0.join("a.gguf"), None).unwrap_err().to_string();
    assert!(error.contains("rope") && error.contains("the architecture smollm3 of GGUF would read it as"), "{error}");
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0, "a refused model leaves no file");
    let error = convert(&shared.join("text/llama3"), &folder.0.join("a.bin"), None).unwrap_err().to_string();
    assert!(error.contains("ends in .gguf"), "{error}");
}

/// Rounding at load and in a file is the same rounding.
#[test]
fn quantised_at_load_is_quantised_in_a_file() {
    let source = checkpoints::random("granite", "convert-quantised");
    let folder = Folder::new("convert-quantised");
    for name in ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"] {
        let at_load = open(&source.0, Some(name));
        let (file, converted) = written(&source.0, &folder, &format!("{name}.gguf"), Some(kind(name)));
        assert!(converted.kinds.keys().any(|kind| kind.eq_ignore_ascii_case(name)), "{:?}", converted.kinds);
        let most = difference(&logits(&open(&file, None)), &logits(&at_load));
        assert!(most <= TOLERANCE, "{name}: logits differ by {most}");
        let plain = difference(&logits(&open(&source.0, None)), &logits(&at_load));
        assert!(plain > TOLERANCE, "{name} rounds nothing: {plain}");
        assert_eq!(at_load.decoder.default_kv_dtype(), candle_core::DType::F16);
    }
}

#[test]
fn nothing_to_round_is_an_error() {
    let source = checkpoints::random("granite", "convert-rounded");
    let folder = Folder::new("convert-rounded");
    let (file, _) = written(&source.0, &folder, "q8_0.gguf", Some(kind("q8_0")));
    let options = LoadOptions { quantize: Some("q4_0".parse().unwrap()), ..LoadOptions::default() };
    let error = load(&file, Arc::new(DefaultKernels(Device::Cpu)), &options).unwrap_err().to_string();
    assert_eq!(error, "quantize = q4_0: no matrix of this model is stored as floats in rows of whole blocks");
}

/// Keys that no description holds come through: sampling defaults, end tokens, the template.
#[test]
fn the_text_side_is_written() {
    let source = checkpoints::random("granite", "convert-text");
    let generation = |ends: &str| {
        let text = format!(r#"{{"temperature": 0.5, "top_k": 20, "eos_token_id": {ends}}}"#);
        source.write("generation_config.json", text);
    };
    generation("[3, 61]");
    source.write("chat_template.jinja", "{{ messages[0].content }} ü");
    let vocab: String = (0..60).fold(String::new(), |all, id| all + &format!("\"t{id}\": {id}, "));
    source.write(
        "tokenizer.json",
        format!(
            r#"{{"added_tokens": [{{"id": 61, "content": "<end>", "special": true}}], "normalizer": null,
            "pre_tokenizer": {{"type": "ByteLevel", "use_regex": true, "add_prefix_space": false}},
            "post_processor": {{"type": "TemplateProcessing", "single": [{{"SpecialToken": {{"id": "<end>"}}}}]}},
            "model": {{"type": "BPE", "vocab": {{{vocab}"t 0": 60}}, "merges": ["t 1", ["t", "2"]]}}}}"#
        ),
    );
    let folder = Folder::new("convert-text");
    let (file, _) = written(&source.0, &folder, "text.gguf", None);
    let (one, other) = (open(&source.0, None), open(&file, None));
    assert_eq!(one.chat_template, other.chat_template);
    assert_eq!(one.generation, other.generation);
    // The one that the tokenizer appends comes first: readers append the first.
    assert_eq!((&one.eos_token_ids[..2], &other.eos_token_ids[..2]), (&[3, 61][..], &[61, 3][..]));
    let Some(fastchat_models::TokenizerSource::Gguf(vocab)) = other.tokenizer else { panic!("no tables") };
    assert_eq!((vocab.model.as_str(), vocab.pre.as_str()), ("gpt2", "gpt-2"));
    assert_eq!((vocab.tokens[7].as_str(), vocab.tokens[61].as_str()), ("t7", "<end>"));
    assert_eq!((vocab.token_types[7], vocab.token_types[61], vocab.token_types[62]), (1, 3, 5));
    assert_eq!(vocab.merges, ["t 1", "t 2"]);
    assert!(vocab.add_bos && vocab.add_eos);
    assert_eq!(vocab.eos, Some(61));
    assert_eq!(inspect(&file, None).unwrap().spec.decoder().unwrap().vocab_size, vocab.tokens.len());
    generation("[3, 5]");
    let error = convert(&source.0, &folder.0.join("other.gguf"), None).unwrap_err().to_string();
    assert!(
        error.contains("post_processor = token 61 at the end of a text is not supported; one of eos_token_id, [3, 5"),
        "{error}"
    );
}

/// A reference folder with other fields and tensors.
fn derived(
    name: &str,
    from: &str,
    edit: impl Fn(&mut serde_json::Value, &mut std::collections::HashMap<String, candle_core::Tensor>),
) -> Option<Folder> {
    let from = rows::shared()?.join("text").join(from);
    let folder = Folder::new(&format!("convert-source-{name}"));
    let mut config = serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    let mut tensors = candle_core::safetensors::load(from.join("model.safetensors"), &Device::Cpu).unwrap();
    edit(&mut config, &mut tensors);
    folder.write("config.json", config.to_string());
    candle_core::safetensors::save(&tensors, folder.0.join("model.safetensors")).unwrap();
    Some(folder)
}

/// DeepSeek-V2 from the weights of its successor: softmax scores, with and without groups.
#[test]
fn deepseek_v2() {
    let mut seen = Vec::new();
    for (method, kept) in [("greedy", 1), ("group_limited_greedy", 1), ("group_limited_greedy", 2)] {
        let Some(folder) = derived("deepseek_v2", "deepseek_v3", |config, tensors| {
            config["model_type"] = "deepseek_v2".into();
            config["topk_method"] = method.into();
            config["topk_group"] = kept.into();
            config["norm_topk_prob"] = false.into();
            tensors.retain(|name, _| !name.contains("e_score_correction_bias"));
        }) else {
            return;
        };
        round_trip("deepseek_v2", &folder.0);
        let found = inspect(&folder.0, None).unwrap();
        let spec = found.spec.decoder().unwrap();
        let moe = spec.layers.iter().find_map(|layer| match &layer.mlp {
            fastchat_models::spec::Mlp::Moe(moe) => Some(moe.clone()),
            _ => None,
        });
        let groups = moe.unwrap().groups;
        assert_eq!(groups.map(|(_, kept)| kept), (method != "greedy").then_some(kept));
        seen.push(logits(&open(&folder.0, None)));
    }
    assert!(difference(&seen[0], &seen[1]) > 1e-2, "groups choose other experts");
}

/// Qwen3.5 with experts, from the dense weights: every expert is another scale of the dense MLP.
#[test]
fn qwen3_5_moe() {
    let Some(folder) = derived("qwen3_5_moe", "qwen3_5", |config, tensors| {
        config["model_type"] = "qwen3_5_moe_text".into();
        for (field, value) in [
            ("num_experts", 4),
            ("num_experts_per_tok", 2),
            ("moe_intermediate_size", 128),
            ("shared_expert_intermediate_size", 128),
        ] {
            config[field] = value.into();
        }
        config.as_object_mut().unwrap().remove("intermediate_size");
        for layer in 0..4 {
            let mlp = format!("model.layers.{layer}.mlp");
            let mut take = |name: &str| {
                tensors.remove(&format!("{mlp}.{name}.weight")).unwrap().to_dtype(candle_core::DType::F32).unwrap()
            };
            let (gate, up, down) = (take("gate_proj"), take("up_proj"), take("down_proj"));
            let both = candle_core::Tensor::cat(&[&gate, &up], 0).unwrap();
            let scaled = |of: &candle_core::Tensor| {
                let parts: Vec<_> = (1..=4).map(|i| (of * (0.4 * f64::from(i))).unwrap()).collect();
                candle_core::Tensor::stack(&parts, 0).unwrap()
            };
            let mut put = |name: &str, tensor: candle_core::Tensor| tensors.insert(format!("{mlp}.{name}"), tensor);
            put("experts.gate_up_proj", scaled(&both));
            put("experts.down_proj", scaled(&down));
            put("gate.weight", gate.narrow(0, 0, 4).unwrap().contiguous().unwrap());
            put("shared_expert_gate.weight", up.narrow(0, 0, 1).unwrap().contiguous().unwrap());
            put("shared_expert.gate_proj.weight", gate);
            put("shared_expert.up_proj.weight", up);
            put("shared_expert.down_proj.weight", down);
        }
    }) else {
        return;
    };
    round_trip("qwen3_5_moe", &folder.0);
    let file = Folder::new("convert-qwen3_5_moe-file");
    let (path, _) = written(&folder.0, &file, "experts.gguf", None);
    let text = std::fs::read(&path).unwrap();
    assert!(text.windows(9).any(|window| window == b"qwen35moe"));
}

/// The reader of the `gguf` package finds every tensor, and reads blocks as this project does.
#[test]
fn the_gguf_package_reads_it() {
    if !checkpoints::writer() {
        return;
    }
    let source = checkpoints::random("granite", "convert-package");
    let folder = Folder::new("convert-package");
    for name in ["f32", "bf16", "q8_0", "q5_1"] {
        let (file, converted) = written(&source.0, &folder, &format!("{name}.gguf"), Some(kind(name)));
        let script = "import sys, gguf, numpy as np\n\
            r = gguf.GGUFReader(sys.argv[1])\n\
            t = next(t for t in r.tensors if t.name == 'blk.0.ffn_down.weight')\n\
            v = gguf.quants.dequantize(t.data, t.tensor_type)\n\
            print(len(r.tensors), r.fields['general.architecture'].contents(), v.shape, float(np.abs(v).sum()))";
        let output = std::process::Command::new("python3").args(["-c", script]).arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let expected = format!("{} granite (", converted.tensors);
        assert!(text.starts_with(&expected), "{text} does not start with {expected}");
        let sum: f64 = text.rsplit(' ').next().unwrap().trim().parse().unwrap();
        assert!(sum > 0.0 && sum.is_finite());
    }
}

/// The error that docs/models.md states for every kind: root mean square over normally distributed weights.
#[test]
fn rounding_stays_in_its_budget() {
    use fastchat_kernels::{WeightKind as W, quantize};
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let values: Vec<f32> = (0..256 * 256).map(|_| (0..12).map(|_| uniform()).sum()).collect();
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x * x)).sum::<f64>();
    for (kind, budget) in [
        (W::Q8_0, 0.007),
        (W::Q6_K, 0.022),
        (W::Q5_K, 0.04),
        (W::Q5_1, 0.045),
        (W::Q5_0, 0.055),
        (W::Q4_K, 0.08),
        (W::Q4_1, 0.09),
        (W::Q4_0, 0.11),
    ] {
        let decoded = quantize(kind, 256, 256, &values).unwrap().to_f32().unwrap();
        let error = square(&mut decoded.iter().zip(&values).map(|(a, b)| a - b)) / square(&mut values.iter().copied());
        let error = error.sqrt();
        assert!(error < budget && error > budget / 2.0, "{kind:?}: {error} of {budget}");
    }
}
