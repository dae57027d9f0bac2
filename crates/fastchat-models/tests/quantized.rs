//! Checkpoints in pieces against the same numbers stored as f32, for every method.
#![allow(missing_docs, clippy::unwrap_used)] // a test may fail loudly

mod checkpoints;
mod pieces;
mod rows;

use std::sync::Arc;

use candle_core::Device;
use checkpoints::{Folder, config};
use fastchat_kernels::{DefaultKernels, cpu::CpuKernels};
use fastchat_models::{LoadOptions, inspect, load};
use half::bf16;
use pieces::{
    Grid, Layer, Tensors, awq, both, compressed_bytes, compressed_words, fp8, gptq, gptq_scattered, pick, save,
};
use rows::{chunked, difference};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

fn logits(folder: &Folder) -> Vec<Vec<f32>> {
    let model = load(&folder.0, Arc::new(DefaultKernels(Device::Cpu)), &LoadOptions::default()).unwrap();
    chunked(&model.decoder, &(0..32).map(|i| i * 7 % 256).collect::<Vec<_>>(), 32)
}

/// Loads both forms; `rounding` is what the kind that the loader chose may change in a logit.
fn method(name: &str, quantization: Value, encode: impl Fn(&str, usize, usize) -> Layer, rounding: f32) {
    let (dense, coded) = both(name, quantization, encode);
    let most = difference(&logits(&coded), &logits(&dense));
    assert!(most <= rounding, "{name}: logits differ by {most}");
    assert!(inspect(&coded.0, None).unwrap().kinds.len() > 1);
}

/// Sums of the same numbers in the same order.
const EXACT: f32 = 1e-5;

/// Elements rounded to f16.
const HALF: f32 = 5e-3;

#[test]
fn gptq_of_4_bits() {
    method("gptq", json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": false}), gptq, HALF);
}

#[test]
fn gptq_of_8_bits_with_scattered_groups() {
    let quantization =
        json!({"quant_method": "gptq", "bits": 8, "group_size": 32, "desc_act": true, "checkpoint_format": "gptq_v2"});
    method("gptq-scattered", quantization, gptq_scattered, HALF);
}

#[test]
fn awq_gemm() {
    method(
        "awq",
        json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": true}),
        awq,
        HALF,
    );
}

#[test]
fn compressed_tensors_words_are_exact() {
    let quantization = json!({"quant_method": "compressed-tensors", "format": "pack-quantized"});
    method("compressed-words", quantization, compressed_words, EXACT);
}

#[test]
fn compressed_tensors_bytes_are_exact() {
    let quantization = json!({"quant_method": "compressed-tensors", "format": "int-quantized"});
    method("compressed-bytes", quantization, compressed_bytes, EXACT);
}

#[test]
fn fp8_per_tensor_channel_and_tile() {
    let compressed = json!({"quant_method": "compressed-tensors", "format": "float-quantized"});
    method("fp8-channel", compressed, |n, r, c| fp8(n, r, c, (1, c), ".weight_scale"), HALF);
    let tensor = json!({"quant_method": "fp8", "activation_scheme": "dynamic"});
    method("fp8-tensor", tensor, |n, r, c| fp8(n, r, c, (r, c), ".weight_scale"), HALF);
    let tiles = json!({"quant_method": "fp8", "weight_block_size": [48, 48]});
    method("fp8-tiles", tiles, |n, r, c| fp8(n, r, c, (48, 48), ".weight_scale_inv"), HALF);
}

#[test]
fn mxfp4_stacks_are_exact() {
    let Some(shared) = rows::shared() else { return };
    let source = shared.join("text/gpt_oss");
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (mut plain, mut pieces) = (Tensors::new(), Tensors::new());
    let value = |code: usize| [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][code & 7] * if code < 8 { 1.0 } else { -1.0 };
    for (name, view) in stored.tensors() {
        let (shape, data) = (view.shape().to_vec(), view.data().to_vec());
        if !name.ends_with("_proj") {
            plain.insert(name.clone(), (view.dtype(), shape.clone(), data.clone()));
            pieces.insert(name, (view.dtype(), shape, data));
            continue;
        }
        // Stored as `[experts, in, out]`, coded as `[experts, out, in / 32, 16]`.
        let (experts, cols, rows) = (shape[0], shape[1], shape[2]);
        let code = |expert: usize, row: usize, col: usize| pick(&name, expert * rows + row, col, 16);
        let scale = |expert: usize, row: usize, block: usize| 118 + pick(&name, expert * rows + row, 5000 + block, 6);
        let mut dense = Vec::new();
        for expert in 0..experts {
            dense.extend(Grid::table(cols, rows, |col, row| {
                let power = 2f32.powi(scale(expert, row, col / 32) as i32 - 127);
                bf16::from_f32(value(code(expert, row, col)) * power)
            }));
        }
        let dense = dense.iter().flat_map(|x| x.to_le_bytes()).collect();
        plain.insert(name.clone(), (Dtype::BF16, shape, dense));
        let all = |width: usize, f: &dyn Fn(usize, usize, usize) -> u8| -> Vec<u8> {
            Grid::table(experts * rows, width, |at, i| f(at / rows, at % rows, i))
        };
        let codes = all(cols / 2, &|e, row, i| (code(e, row, 2 * i) | code(e, row, 2 * i + 1) << 4) as u8);
        let scales = all(cols / 32, &|e, row, block| scale(e, row, block) as u8);
        pieces.insert(format!("{name}_blocks"), (Dtype::U8, vec![experts, rows, cols / 32, 16], codes));
        pieces.insert(format!("{name}_scales"), (Dtype::U8, vec![experts, rows, cols / 32], scales));
    }
    let (dense, coded) = (Folder::new("dense-mxfp4"), Folder::new("coded-mxfp4"));
    save(&plain, &dense.0.join("model.safetensors"));
    save(&pieces, &coded.0.join("model.safetensors"));
    let mut config: Value = serde_json::from_slice(&std::fs::read(source.join("config.json")).unwrap()).unwrap();
    dense.write("config.json", config.to_string());
    config["quantization_config"] = json!({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]});
    coded.write("config.json", config.to_string());
    let most = difference(&logits(&coded), &logits(&dense));
    assert!(most <= EXACT, "MXFP4: logits differ by {most}");
    // The CPU kernels take the blocks as they are.
    load(&coded.0, Arc::new(CpuKernels::new(Some(1))), &LoadOptions::default()).unwrap();
}

#[test]
fn pieces_that_do_not_fit_together() {
    let folder = Folder::new("pieces");
    let mut config = config("olmo2");
    config["quantization_config"] = json!({"quant_method": "gptq", "bits": 4, "group_size": 32});
    folder.write("config.json", config.to_string());
    let mut all = Tensors::new();
    for (suffix, dtype, shape, bytes) in gptq("a", 64, 64).pieces {
        all.insert(format!("a{suffix}"), (dtype, shape, bytes));
    }
    let message = |all: &Tensors| {
        save(all, &folder.0.join("model.safetensors"));
        let error = inspect(&folder.0, None).unwrap_err().to_string();
        error.split(": ").skip(1).collect::<Vec<_>>().join(": ")
    };
    let scales = all.remove("a.scales").unwrap();
    assert_eq!(message(&all), "tensor a.scales: is missing");
    all.insert("a.scales".to_owned(), (Dtype::F16, vec![1, 64], scales.2[..128].to_vec()));
    assert_eq!(message(&all), "tensor a.scales: has shape [1, 64], expected 128 elements");
    all.insert("a.scales".to_owned(), scales);
    let index = (0..64).flat_map(|_| 9i32.to_le_bytes()).collect();
    all.insert("a.g_idx".to_owned(), (Dtype::I32, vec![64], index));
    assert_eq!(message(&all), "tensor a.g_idx: must give one of 2 groups to each of 64 columns");
}
