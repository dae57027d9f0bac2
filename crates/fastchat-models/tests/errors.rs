//! What a user reads when a checkpoint does not fit: one line that names the file, the field or tensor, and what would do.
//! And what happens to damaged ones: an error or a model, never a panic.
#![allow(missing_docs, clippy::unwrap_used)] // a test may fail loudly

mod checkpoints;

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use checkpoints::{Folder, config, tensors, write};
use fastchat_kernels::{DefaultKernels, ForwardBatch, Kernels};
use fastchat_models::{LoadOptions, LoadedModel, ModelError, inspect, load};
use serde_json::{Value, json};

fn kernels() -> Arc<dyn Kernels> {
    Arc::new(DefaultKernels(Device::Cpu))
}

fn open(folder: &Path) -> Result<LoadedModel, ModelError> {
    load(folder, kernels(), &LoadOptions::default())
}

/// The message without the folder's path.
fn message(folder: &Folder) -> String {
    let error = open(&folder.0).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error.replace(folder.0.to_str().unwrap(), "MODEL")
}

fn edited(name: &str, family: &str, edit: impl FnOnce(&mut Value)) -> Folder {
    let folder = checkpoints::random(family, name);
    let mut config = config(family);
    edit(&mut config);
    folder.write("config.json", config.to_string());
    folder
}

#[test]
fn tensors_that_do_not_fit() {
    let folder = checkpoints::random("glm4", "tensors");
    let file = folder.0.join("model.safetensors");
    let mut entries = tensors("glm4");
    let at = entries.iter().position(|(name, _)| name.contains("layers.1.mlp.down_proj")).unwrap();
    let removed = entries.remove(at);
    write(&file, &entries);
    assert_eq!(message(&folder), "MODEL: tensor model.layers.1.mlp.down_proj.weight: is missing");

    entries.push((removed.0, vec![64, 96]));
    write(&file, &entries);
    assert_eq!(
        message(&folder),
        "MODEL/model.safetensors: tensor model.layers.1.mlp.down_proj.weight: has shape [64, 96], which gives 64 x 96; \
         expected 64 x 128"
    );

    entries.last_mut().unwrap().1 = vec![64, 128];
    entries.push(("model.layers.1.mlp.extra.weight".to_owned(), vec![3]));
    write(&file, &entries);
    assert_eq!(
        message(&folder),
        "MODEL/model.safetensors: tensor model.layers.1.mlp.extra.weight: is left over: nothing in the configuration uses \
         it (0 more like it)"
    );
}

#[test]
fn fields_that_are_not_supported() {
    let cases: [(&str, Value, &str); 8] = [
        ("model_type", json!("gpt_j"), "MODEL/config.json: model_type = gpt_j is not supported; cohere2, "),
        ("model_type", json!(null), "MODEL/config.json: model_type = nothing: expected the name of a family"),
        ("hidden_act", json!("mish"), "MODEL/config.json: hidden_act = mish is not supported; silu, gelu, "),
        (
            "rope_scaling",
            json!({"rope_type": "spiral", "factor": 2.0}),
            "MODEL/config.json: rope_scaling.rope_type = spiral is not supported; default, linear, ",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "linear"}),
            "MODEL/config.json: rope_scaling.factor = nothing: expected a number",
        ),
        ("hidden_size", json!(-1), "MODEL/config.json: hidden_size = -1: expected a whole number from 1 to 67108864"),
        ("num_hidden_layers", json!(1e9), "MODEL/config.json: num_hidden_layers = 1000000000.0: expected "),
        (
            "quantization_config",
            json!({"quant_method": "hqq"}),
            "MODEL/config.json: quantization_config.quant_method = hqq is not supported; ",
        ),
    ];
    for (i, (field, value, expected)) in cases.into_iter().enumerate() {
        let folder = edited(&format!("fields-{i}"), "olmo2", |config| config[field] = value);
        let message = message(&folder);
        assert!(message.starts_with(expected), "{message}\n{expected}");
    }
}

#[test]
fn files_that_are_not_there() {
    let folder = Folder::new("files");
    assert_eq!(
        message(&folder),
        "MODEL: *.gguf = 0 files: expected config.json, or exactly one *.gguf file or model in several"
    );
    folder.write("config.json", config("olmo2").to_string());
    assert_eq!(message(&folder), "MODEL: *.safetensors = 0 files: expected model.safetensors.index.json or one file");
    folder.write("model.safetensors.index.json", r#"{"weight_map": {"a": "../secret"}}"#);
    assert_eq!(
        message(&folder),
        "MODEL/model.safetensors.index.json: weight_map = ../secret: expected a file name without folders"
    );
    folder.write("config.json", "{");
    assert!(message(&folder).starts_with("MODEL/config.json: json = EOF while parsing an object"));
    let missing = folder.0.join("nothing-here");
    assert!(matches!(open(&missing), Err(ModelError::Io { .. })));
}

#[test]
fn requests_past_the_limits() {
    let folder = checkpoints::random("olmo2", "requests");
    let options = LoadOptions { max_model_len: Some(5000), ..LoadOptions::default() };
    let error = load(&folder.0, kernels(), &options).unwrap_err().to_string();
    assert_eq!(error, "max_model_len = 5000: the model's positions reach from 1 to 4096");
    let decoder =
        load(&folder.0, kernels(), &LoadOptions { max_model_len: Some(20), ..LoadOptions::default() }).unwrap().decoder;
    assert_eq!(decoder.max_model_len(), 20);
    let cache = decoder.new_cache(2, 0, DType::F32).unwrap();
    let batch = |token: u32, position: u32, slot: u32| ForwardBatch {
        token_ids: vec![token],
        positions: vec![position],
        slot_mapping: vec![slot],
        query_start: vec![0, 1],
        context_lens: vec![position + 1],
        block_tables: vec![vec![0, 1]],
        logits_rows: vec![0],
        ..ForwardBatch::default()
    };
    let error = |batch: &ForwardBatch| decoder.forward(batch, &cache).unwrap_err().to_string();
    assert_eq!(error(&batch(256, 0, 0)), "token_ids = 256: the vocabulary has 256 tokens");
    assert_eq!(error(&batch(0, 20, 20)), "positions = 20: max_model_len is 20");
    assert!(error(&batch(0, 0, 32)).contains("slot_mapping leaves the cache"));
    assert!(decoder.new_cache(usize::MAX, 0, DType::F32).is_err());
    assert!(decoder.new_cache(1, 0, DType::U8).is_err());
}

#[test]
fn inspection_counts_what_is_stored() {
    let folder = checkpoints::random("granite", "inspect");
    folder
        .write("generation_config.json", r#"{"temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": [2, 7]}"#);
    let inspection = inspect(&folder.0, None).unwrap();
    let entries = tensors("granite");
    let elements: usize = entries.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!(inspection.total.tensors, entries.len() as u64);
    assert_eq!(inspection.total.elements, elements as u64);
    assert_eq!(inspection.total.bytes, 4 * elements as u64);
    assert_eq!(inspection.kinds.keys().collect::<Vec<_>>(), ["F32"]);
    assert_eq!((inspection.generation.temperature, inspection.generation.top_k), (Some(0.6), Some(20)));
    let model = open(&folder.0).unwrap();
    assert_eq!((model.eos_token_ids, model.bos_token_id, model.tokenizer), (vec![2, 7], Some(1), None));
    assert_eq!(model.decoder.bytes_per_block(DType::F16), 2 * 2 * 16 * 2 * 16 * 2);
}

#[test]
fn the_fingerprint_follows_spec_and_weights() {
    let folder = checkpoints::random("granite", "fingerprint");
    let first = open(&folder.0).unwrap().fingerprint;
    assert_eq!(first.len(), 16);
    assert_eq!(open(&folder.0).unwrap().fingerprint, first);
    let mut config = config("granite");
    config["residual_multiplier"] = json!(0.5);
    folder.write("config.json", config.to_string());
    let second = open(&folder.0).unwrap().fingerprint;
    let file = folder.0.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let third = open(&folder.0).unwrap().fingerprint;
    assert!(first != second && second != third && third != first);
}

#[test]
fn text_files_beside_the_weights() {
    let folder = checkpoints::random("granite", "text");
    folder.write("tokenizer.json", "{}");
    assert_eq!(open(&folder.0).unwrap().chat_template, None);
    let named = r#"{"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}"#;
    folder.write("tokenizer_config.json", named);
    assert_eq!(open(&folder.0).unwrap().chat_template.as_deref(), Some("D"));
    folder.write("chat_template.jinja", "J");
    assert_eq!(open(&folder.0).unwrap().chat_template.as_deref(), Some("J"));
}
