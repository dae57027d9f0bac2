//! Checkpoints in pieces against the same numbers stored as f32: every method, packed here independently of the loader.
#![allow(missing_docs, clippy::unwrap_used)] // a test may fail loudly

mod checkpoints;
mod rows;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use checkpoints::{Folder, config, tensors};
use fastchat_kernels::{DefaultKernels, cpu::CpuKernels};
use fastchat_models::{LoadOptions, inspect, load};
use half::{bf16, f16};
use rows::{chunked, difference};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};

/// Type, shape and bytes by name.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn save(tensors: &Tensors, path: &Path) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, path).unwrap();
}

fn f32s(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn f16s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()
}

/// A number below `n` that depends on all arguments.
fn pick(name: &str, a: usize, b: usize, n: usize) -> usize {
    let mut h = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, x| (h ^ u64::from(x)).wrapping_mul(0x100_0000_01b3));
    h = (h ^ (a as u64) << 20 ^ b as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((h >> 33) % n as u64) as usize
}

/// Words of `n` fields, lowest first.
fn words(fields: &[usize], bits: usize) -> Vec<u8> {
    let word = |fields: &[usize]| fields.iter().enumerate().fold(0u32, |word, (i, &x)| word | (x as u32) << (i * bits));
    fields.chunks(32 / bits).flat_map(|fields| word(fields).to_le_bytes()).collect()
}

/// A linear layer in both forms: its numbers, and the pieces by suffix.
struct Layer {
    values: Vec<f32>,
    pieces: Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)>,
}

/// Codes, zero points and scales of a matrix in groups of `size` columns.
struct Grid<'a> {
    name: &'a str,
    rows: usize,
    cols: usize,
    size: usize,
    bits: usize,
    symmetric: bool,
}

impl Grid<'_> {
    fn groups(&self) -> usize {
        self.cols / self.size
    }

    fn code(&self, row: usize, col: usize) -> usize {
        pick(self.name, row, col, 1 << self.bits)
    }

    fn zero(&self, row: usize, group: usize) -> usize {
        if self.symmetric { 1 << (self.bits - 1) } else { 1 + pick(self.name, row, 1000 + group, (1 << self.bits) - 1) }
    }

    /// Exact in f16 and in bf16.
    fn scale(&self, row: usize, group: usize) -> f32 {
        (1.0 + pick(self.name, row, 2000 + group, 64) as f32 / 64.0) / 2f32.powi(self.bits as i32 + 2)
    }

    fn values(&self) -> Vec<f32> {
        let at = |row, col| {
            let group = col / self.size;
            self.scale(row, group) * (self.code(row, col) as f32 - self.zero(row, group) as f32)
        };
        (0..self.rows).flat_map(|row| (0..self.cols).map(move |col| at(row, col))).collect()
    }

    /// `f(a, b)` for all of `0..outer`, `0..inner`.
    fn table<T>(outer: usize, inner: usize, f: impl Fn(usize, usize) -> T) -> Vec<T> {
        (0..outer).flat_map(|a| (0..inner).map(|b| f(a, b)).collect::<Vec<_>>()).collect()
    }
}

fn gptq(name: &str, rows: usize, cols: usize) -> Layer {
    let grid = Grid { name, rows, cols, size: 32, bits: 4, symmetric: name.contains("mlp") };
    // Eight columns of one row share a word; the words of all rows lie side by side.
    let fields = Grid::table(cols / 8, rows, |w, row| (0..8).map(|i| grid.code(row, 8 * w + i)).collect::<Vec<_>>());
    let zeros = Grid::table(grid.groups(), rows, |group, row| grid.zero(row, group) - 1);
    let scales = Grid::table(grid.groups(), rows, |group, row| grid.scale(row, group));
    let g_idx = (0..cols).flat_map(|col| ((col / 32) as i32).to_le_bytes()).collect();
    Layer {
        values: grid.values(),
        pieces: vec![
            (".qweight", Dtype::I32, vec![cols / 8, rows], words(&fields.concat(), 4)),
            (".qzeros", Dtype::I32, vec![grid.groups(), rows / 8], words(&zeros, 4)),
            (".scales", Dtype::F16, vec![grid.groups(), rows], f16s(&scales)),
            (".g_idx", Dtype::I32, vec![cols], g_idx),
        ],
    }
}

/// Columns in an order of their own, as `desc_act` leaves them: even columns first.
fn gptq_scattered(name: &str, rows: usize, cols: usize) -> Layer {
    let grid = Grid { name, rows, cols, size: 32, bits: 8, symmetric: true };
    let group = |col: usize| col % grid.groups();
    let fields = Grid::table(cols / 4, rows, |w, row| (0..4).map(|i| grid.code(row, 4 * w + i)).collect::<Vec<_>>());
    let value = |row, col| grid.scale(row, group(col)) * (grid.code(row, col) as f32 - 128.0);
    Layer {
        values: Grid::table(rows, cols, value),
        pieces: vec![
            (".qweight", Dtype::I32, vec![cols / 4, rows], words(&fields.concat(), 8)),
            (".qzeros", Dtype::I32, vec![grid.groups(), rows / 4], words(&vec![128; grid.groups() * rows], 8)),
            (
                ".scales",
                Dtype::F16,
                vec![grid.groups(), rows],
                f16s(&Grid::table(grid.groups(), rows, |group, row| grid.scale(row, group))),
            ),
            (".g_idx", Dtype::I32, vec![cols], (0..cols).flat_map(|col| (group(col) as i32).to_le_bytes()).collect()),
        ],
    }
}

fn awq(name: &str, rows: usize, cols: usize) -> Layer {
    let grid = Grid { name, rows, cols, size: 32, bits: 4, symmetric: false };
    let order = [0, 2, 4, 6, 1, 3, 5, 7];
    let reordered = |outer: usize, f: &dyn Fn(usize, usize) -> usize| {
        Grid::table(outer, rows, |a, at| f(a, at / 8 * 8 + order[at % 8]))
    };
    Layer {
        values: grid.values(),
        pieces: vec![
            (".qweight", Dtype::I32, vec![cols, rows / 8], words(&reordered(cols, &|col, row| grid.code(row, col)), 4)),
            (
                ".qzeros",
                Dtype::I32,
                vec![grid.groups(), rows / 8],
                words(&reordered(grid.groups(), &|group, row| grid.zero(row, group)), 4),
            ),
            (
                ".scales",
                Dtype::F16,
                vec![grid.groups(), rows],
                f16s(&Grid::table(grid.groups(), rows, |group, row| grid.scale(row, group))),
            ),
        ],
    }
}

fn compressed_words(name: &str, rows: usize, cols: usize) -> Layer {
    let bits = if name.contains("mlp") { 8 } else { 4 };
    let grid = Grid { name, rows, cols, size: 32, bits, symmetric: true };
    let scales = Grid::table(rows, grid.groups(), |row, group| bf16::from_f32(grid.scale(row, group)));
    Layer {
        values: grid.values(),
        pieces: vec![
            (
                ".weight_packed",
                Dtype::I32,
                vec![rows, cols * bits / 32],
                words(&Grid::table(rows, cols, |row, col| grid.code(row, col)), bits),
            ),
            (
                ".weight_scale",
                Dtype::BF16,
                vec![rows, grid.groups()],
                scales.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ),
            (
                ".weight_shape",
                Dtype::I64,
                vec![2],
                [rows as i64, cols as i64].iter().flat_map(|x| x.to_le_bytes()).collect(),
            ),
        ],
    }
}

fn compressed_bytes(name: &str, rows: usize, cols: usize) -> Layer {
    let grid = Grid { name, rows, cols, size: cols, bits: 8, symmetric: true };
    let codes = Grid::table(rows, cols, |row, col| (grid.code(row, col) as i32 - 128) as i8 as u8);
    Layer {
        values: grid.values(),
        pieces: vec![
            (".weight", Dtype::I8, vec![rows, cols], codes),
            (".weight_scale", Dtype::F32, vec![rows, 1], f32s((0..rows).map(|row| grid.scale(row, 0)))),
        ],
    }
}

/// A finite E4M3 code and its value, by the definition of the format.
fn float8(name: &str, row: usize, col: usize) -> (u8, f32) {
    let code = pick(name, row, col, 256);
    let code = if code & 0x7f == 0x7f { 0x38 } else { code };
    let (sign, exponent, mantissa) = (code >> 7, code >> 3 & 15, code & 7);
    let size =
        if exponent == 0 { mantissa as f32 / 512.0 } else { (8 + mantissa) as f32 * 2f32.powi(exponent as i32 - 10) };
    (code as u8, if sign == 1 { -size } else { size })
}

fn fp8(name: &str, rows: usize, cols: usize, tile: (usize, usize), suffix: &'static str) -> Layer {
    let (down, across) = (rows.div_ceil(tile.0), cols.div_ceil(tile.1));
    let scale = |a: usize, b: usize| (1.0 + pick(name, a, 3000 + b, 64) as f32 / 64.0) / 4096.0;
    let value = |row: usize, col: usize| float8(name, row, col).1 * scale(row / tile.0, col / tile.1);
    Layer {
        values: Grid::table(rows, cols, value),
        pieces: vec![
            (".weight", Dtype::F8_E4M3, vec![rows, cols], Grid::table(rows, cols, |row, col| float8(name, row, col).0)),
            (suffix, Dtype::F32, vec![down, across], f32s(Grid::table(down, across, scale))),
        ],
    }
}

fn logits(folder: &Folder) -> Vec<Vec<f32>> {
    let model = load(&folder.0, Arc::new(DefaultKernels(Device::Cpu)), &LoadOptions::default()).unwrap();
    chunked(&model.decoder, &(0..32).map(|i| i * 7 % 256).collect::<Vec<_>>(), 32)
}

/// Loads both forms; `rounding` is what the kind that the loader chose may change in a logit.
fn method(name: &str, quantization: Value, encode: impl Fn(&str, usize, usize) -> Layer, rounding: f32) {
    let (dense, coded) = (Folder::new(&format!("dense-{name}")), Folder::new(&format!("coded-{name}")));
    let base = checkpoints::random("olmo2", &format!("base-{name}"));
    let stored = std::fs::read(base.0.join("model.safetensors")).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&stored).unwrap();
    let (mut plain, mut pieces) = (Tensors::new(), Tensors::new());
    for (tensor, shape) in tensors("olmo2") {
        if let Some(stem) = tensor.strip_suffix("_proj.weight") {
            let stem = format!("{stem}_proj");
            let layer = encode(&stem, shape[0], shape[1]);
            plain.insert(tensor, (Dtype::F32, shape, f32s(layer.values)));
            pieces.extend(
                layer
                    .pieces
                    .into_iter()
                    .map(|(suffix, dtype, shape, bytes)| (format!("{stem}{suffix}"), (dtype, shape, bytes))),
            );
        } else {
            let bytes = stored.tensor(&tensor).unwrap().data().to_vec();
            plain.insert(tensor.clone(), (Dtype::F32, shape.clone(), bytes.clone()));
            pieces.insert(tensor, (Dtype::F32, shape, bytes));
        }
    }
    save(&plain, &dense.0.join("model.safetensors"));
    save(&pieces, &coded.0.join("model.safetensors"));
    let mut config = config("olmo2");
    dense.write("config.json", config.to_string());
    config["quantization_config"] = quantization;
    coded.write("config.json", config.to_string());
    let most = difference(&logits(&coded), &logits(&dense));
    assert!(most <= rounding, "{name}: logits differ by {most}");
    assert!(inspect(&coded.0).unwrap().kinds.len() > 1);
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
        let error = inspect(&folder.0).unwrap_err().to_string();
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
