//! Checkpoints whose matrices lie in pieces, packed by the formats' own descriptions and independently of the loader.
#![allow(dead_code)] // every test file uses its part
#![allow(missing_docs, clippy::unwrap_used)] // a test may fail loudly

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::Value;

use crate::checkpoints::{self, Folder, config, tensors};

/// Type, shape and bytes by name.
pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

pub fn save(tensors: &Tensors, path: &Path) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, path).unwrap();
}

pub fn f32s(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn f16s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()
}

/// A number below `n` that depends on all arguments.
pub fn pick(name: &str, a: usize, b: usize, n: usize) -> usize {
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
pub struct Layer {
    pub values: Vec<f32>,
    pub pieces: Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)>,
}

/// Codes, zero points and scales of a matrix in groups of `size` columns.
pub struct Grid<'a> {
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
    pub fn table<T>(outer: usize, inner: usize, f: impl Fn(usize, usize) -> T) -> Vec<T> {
        (0..outer).flat_map(|a| (0..inner).map(|b| f(a, b)).collect::<Vec<_>>()).collect()
    }
}

pub fn gptq(name: &str, rows: usize, cols: usize) -> Layer {
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
pub fn gptq_scattered(name: &str, rows: usize, cols: usize) -> Layer {
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

pub fn awq(name: &str, rows: usize, cols: usize) -> Layer {
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

pub fn compressed_words(name: &str, rows: usize, cols: usize) -> Layer {
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

pub fn compressed_bytes(name: &str, rows: usize, cols: usize) -> Layer {
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

pub fn fp8(name: &str, rows: usize, cols: usize, tile: (usize, usize), suffix: &'static str) -> Layer {
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

/// The same checkpoint with its numbers as f32 and in pieces.
pub fn both(name: &str, quantization: Value, encode: impl Fn(&str, usize, usize) -> Layer) -> (Folder, Folder) {
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
    (dense, coded)
}
