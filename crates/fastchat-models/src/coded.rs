//! Matrices that a checkpoint stores in pieces: codes here, scales and zero points there. Decoded one matrix at a time,
//! when it is packed, into the block layout that holds the same numbers, else into f16. Knows no names.

use std::fmt::Debug;

use fastchat_kernels::quant::{e4m3, is_nan_e4m3};
use fastchat_kernels::{Bytes, Weight, WeightKind};
use half::f16;

/// A matrix, or a stack of them, behind its pieces.
pub trait Coded: Debug + Send + Sync {
    /// Name of the code, for messages and `inspect`.
    fn name(&self) -> &'static str;

    /// All pieces, for the fingerprint and the sum of bytes.
    fn pieces(&self) -> Vec<&Bytes>;

    /// Matrix `part` of the stack; 0 where there is one.
    fn matrix(&self, part: usize) -> Result<Weight, String>;
}

/// Codes of one matrix in row-major order, with a scale and a zero point per row and group of columns:
/// an element is `scale * (code - zero)`.
#[derive(Debug)]
pub(crate) struct Groups {
    pub rows: usize,
    pub cols: usize,
    /// Columns of a group.
    pub size: usize,
    /// 4 or 8.
    pub bits: u32,
    /// `[rows, cols]`, one code a byte.
    pub codes: Vec<u8>,
    /// `[rows, groups]`.
    pub zeros: Vec<u8>,
    /// `[rows, groups]`.
    pub scales: Vec<f32>,
}

/// Elements of a block of the Q4 and Q8 kinds.
const BLOCK: usize = 32;

impl Groups {
    /// Q4_0 and Q8_0 hold symmetric codes exactly; Q4_1 rounds `scale * zero` to f16, which moves an element by less than
    /// 0.4 % of a step, as f16 itself would. What fits none becomes f16.
    pub fn weight(&self) -> Result<Weight, String> {
        let middle = 1u8 << (self.bits - 1);
        let symmetric = self.zeros.iter().all(|&zero| zero == middle);
        let exact = self.scales.iter().all(|&scale| f16::from_f32(scale).to_f32().to_bits() == scale.to_bits());
        let in_blocks = self.size.is_multiple_of(BLOCK) && self.cols.is_multiple_of(BLOCK);
        let kind = match (self.bits, symmetric) {
            _ if !exact || !in_blocks => return dense(self.rows, self.cols, &self.values()),
            (4, true) => WeightKind::Q4_0,
            (4, false) => WeightKind::Q4_1,
            (8, true) => WeightKind::Q8_0,
            _ => return dense(self.rows, self.cols, &self.values()),
        };
        let mut bytes = Vec::with_capacity(self.codes.len() / BLOCK * kind.block().1);
        for (block, codes) in self.codes.chunks_exact(BLOCK).enumerate() {
            let (row, col) = (block * BLOCK / self.cols, block * BLOCK % self.cols);
            let group = row * self.groups() + col / self.size;
            let (scale, zero) = (self.scales[group], self.zeros[group]);
            bytes.extend_from_slice(&f16::from_f32(scale).to_le_bytes());
            if kind == WeightKind::Q4_1 {
                bytes.extend_from_slice(&f16::from_f32(-scale * f32::from(zero)).to_le_bytes());
            }
            if kind == WeightKind::Q8_0 {
                bytes.extend(codes.iter().map(|code| code.wrapping_sub(middle)));
            } else {
                let (low, high) = codes.split_at(BLOCK / 2);
                bytes.extend(low.iter().zip(high).map(|(low, high)| low | high << 4));
            }
        }
        Weight::new(kind, self.rows, self.cols, bytes.into()).map_err(|error| error.to_string())
    }

    fn groups(&self) -> usize {
        self.cols.div_ceil(self.size)
    }

    fn values(&self) -> Vec<f32> {
        let groups = self.groups();
        let value = |(at, &code): (usize, &u8)| {
            let group = at / self.cols * groups + at % self.cols / self.size;
            self.scales[group] * (f32::from(code) - f32::from(self.zeros[group]))
        };
        self.codes.iter().enumerate().map(value).collect()
    }
}

/// f16, or f32 where that is too small.
fn dense(rows: usize, cols: usize, values: &[f32]) -> Result<Weight, String> {
    Weight::halves(rows, cols, values).map_err(|error| error.to_string())
}

/// Floats of 8 bits (arXiv 2209.05433, E4M3 without infinities) with a scale per tile.
#[derive(Debug)]
pub(crate) struct Fp8 {
    pub rows: usize,
    pub cols: usize,
    /// Rows and columns of a tile.
    pub tile: (usize, usize),
    pub codes: Bytes,
    /// `[tiles down, tiles across]`.
    pub scales: Vec<f32>,
    pub stored_scales: Bytes,
}

impl Coded for Fp8 {
    fn name(&self) -> &'static str {
        "FP8"
    }

    fn pieces(&self) -> Vec<&Bytes> {
        vec![&self.codes, &self.stored_scales]
    }

    fn matrix(&self, _part: usize) -> Result<Weight, String> {
        let across = self.cols.div_ceil(self.tile.1);
        let scale_of = |row: usize, col: usize| self.scales[row / self.tile.0 * across + col / self.tile.1];
        let (elements, size) = WeightKind::F8_E4M3.block();
        // A block has one scale, and no kernel looks for codes that are no numbers.
        let one_scale = self.tile.1.is_multiple_of(elements) || self.tile.1 >= self.cols;
        if one_scale && self.cols.is_multiple_of(elements) && !self.codes.iter().any(|&code| is_nan_e4m3(code)) {
            let mut bytes = Vec::with_capacity(self.codes.len() / elements * size);
            for (block, codes) in self.codes.chunks_exact(elements).enumerate() {
                let at = block * elements;
                bytes.extend_from_slice(&scale_of(at / self.cols, at % self.cols).to_le_bytes());
                bytes.extend_from_slice(codes);
            }
            let weight = Weight::new(WeightKind::F8_E4M3, self.rows, self.cols, bytes.into());
            return weight.map_err(|error| error.to_string());
        }
        let value = |(at, &code): (usize, &u8)| e4m3(code) * scale_of(at / self.cols, at % self.cols);
        dense(self.rows, self.cols, &self.codes.iter().enumerate().map(value).collect::<Vec<_>>())
    }
}

/// A stack of matrices of 4-bit floats with a power of two per 32 (OCP Microscaling Formats 1.0). A block's 32 codes lie in
/// 16 bytes, neighbours sharing a byte; GGML's block has the scale first and element `i` beside element `i + 16`.
#[derive(Debug)]
pub(crate) struct Mxfp4 {
    /// Rows and columns of one matrix.
    pub rows: usize,
    pub cols: usize,
    /// `[stack, rows, cols / 32, 16]`.
    pub codes: Bytes,
    /// `[stack, rows, cols / 32]`.
    pub scales: Bytes,
}

impl Coded for Mxfp4 {
    fn name(&self) -> &'static str {
        "MXFP4"
    }

    fn pieces(&self) -> Vec<&Bytes> {
        vec![&self.codes, &self.scales]
    }

    fn matrix(&self, part: usize) -> Result<Weight, String> {
        let blocks = self.rows * self.cols / BLOCK;
        let pieces = self.codes.chunks_exact(16).zip(self.scales.iter()).skip(part * blocks).take(blocks);
        let mut bytes = Vec::with_capacity(blocks * 17);
        for (codes, &scale) in pieces {
            let code = |i: usize| codes[i / 2] >> (4 * (i % 2)) & 15;
            bytes.push(scale);
            bytes.extend((0..16).map(|i| code(i) | code(i + 16) << 4));
        }
        Weight::new(WeightKind::MXFP4, self.rows, self.cols, bytes.into()).map_err(|error| error.to_string())
    }
}

/// Whole-number codes in words, and how to reach them.
#[derive(Debug)]
pub(crate) struct Integers {
    pub rows: usize,
    pub cols: usize,
    /// Columns of a group.
    pub size: usize,
    pub bits: u32,
    pub order: Order,
    pub codes: Bytes,
    /// Packed like the codes of the order; `None` is the middle of the range.
    pub zeros: Option<Bytes>,
    /// f32, in the order's own shape.
    pub scales: Vec<f32>,
    pub stored_scales: Bytes,
    /// Group of each column, where they are not consecutive.
    pub group_of: Option<Vec<usize>>,
}

/// Where a code of row `r` and column `c` lies; `n` codes share a 32-bit word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Signed bytes `[rows, cols]`; scales `[rows, groups]`.
    Bytes,
    /// Words `[rows, cols / n]`, lowest bits first; scales `[rows, groups]`, zeros `[rows / n, groups]`.
    Rows,
    /// Words `[cols / n, rows]`; scales `[groups, rows]`, zeros `[groups, rows / n]` less `bias`.
    Gptq {
        /// What the first version of the format takes off every zero point.
        bias: u8,
    },
    /// Words `[cols, rows / n]` with the rows of a word in the order 0 2 4 6 1 3 5 7; scales `[groups, rows]`, zeros
    /// `[groups, rows / n]` likewise.
    Awq,
}

impl Coded for Integers {
    fn name(&self) -> &'static str {
        if self.bits == 4 { "INT4" } else { "INT8" }
    }

    fn pieces(&self) -> Vec<&Bytes> {
        [Some(&self.codes), self.zeros.as_ref(), Some(&self.stored_scales)].into_iter().flatten().collect()
    }

    fn matrix(&self, _part: usize) -> Result<Weight, String> {
        let (rows, cols, middle) = (self.rows, self.cols, 1u8 << (self.bits - 1));
        let groups = cols.div_ceil(self.size);
        let mut all = Groups {
            rows,
            cols,
            size: self.size,
            bits: self.bits,
            codes: Vec::with_capacity(rows * cols),
            zeros: Vec::with_capacity(rows * groups),
            scales: Vec::with_capacity(rows * groups),
        };
        for row in 0..rows {
            all.codes.extend((0..cols).map(|col| self.code(row, col)));
            for group in 0..groups {
                all.zeros.push(self.zeros.as_ref().map_or(middle, |zeros| self.zero(zeros, row, group, groups)));
                let transposed = !matches!(self.order, Order::Bytes | Order::Rows);
                all.scales.push(self.scales[if transposed { group * rows + row } else { row * groups + group }]);
            }
        }
        let Some(group_of) = &self.group_of else { return all.weight() };
        // Columns of one group lie apart: no block layout holds that.
        let value = |at: usize| {
            let group = at / cols * groups + group_of[at % cols];
            all.scales[group] * (f32::from(all.codes[at]) - f32::from(all.zeros[group]))
        };
        dense(rows, cols, &(0..rows * cols).map(value).collect::<Vec<_>>())
    }
}

/// Place within an AWQ word of each of 8 neighbouring rows.
const AWQ_PLACE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

impl Integers {
    fn code(&self, row: usize, col: usize) -> u8 {
        let per_word = 32 / self.bits as usize;
        match self.order {
            // Signed bytes count from the middle.
            Order::Bytes => self.codes[row * self.cols + col].wrapping_add(128),
            Order::Rows => self.field(&self.codes, row * self.cols.div_ceil(per_word) + col / per_word, col % per_word),
            Order::Gptq { .. } => self.field(&self.codes, col / per_word * self.rows + row, col % per_word),
            Order::Awq => {
                self.field(&self.codes, col * (self.rows / per_word) + row / per_word, AWQ_PLACE[row % per_word])
            }
        }
    }

    fn zero(&self, zeros: &[u8], row: usize, group: usize, groups: usize) -> u8 {
        let per_word = 32 / self.bits as usize;
        let at = group * (self.rows / per_word) + row / per_word;
        match self.order {
            Order::Bytes => zeros[row * groups + group].wrapping_add(128),
            Order::Rows => self.field(zeros, row / per_word * groups + group, row % per_word),
            Order::Gptq { bias } => self.field(zeros, at, row % per_word).wrapping_add(bias),
            Order::Awq => self.field(zeros, at, AWQ_PLACE[row % per_word]),
        }
    }

    /// Field `place` of little-endian word `word`.
    fn field(&self, words: &[u8], word: usize, place: usize) -> u8 {
        let bytes = &words[4 * word..4 * word + 4];
        let value = u32::from_le_bytes(bytes.try_into().expect("four bytes; this is a bug"));
        (value >> (place as u32 * self.bits) & ((1 << self.bits) - 1)) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `rows` of 256 codes, with tiles of two rows.
    fn fp8(across: usize, codes: Vec<u8>) -> Fp8 {
        let rows = codes.len() / 256;
        let scales: Vec<f32> = (0..rows.div_ceil(2) * 256usize.div_ceil(across)).map(|i| 0.3 + i as f32).collect();
        Fp8 { rows, cols: 256, tile: (2, across), codes: codes.into(), scales, stored_scales: Vec::new().into() }
    }

    fn value(of: &Fp8, row: usize, col: usize) -> f32 {
        e4m3(of.codes[row * 256 + col]) * of.scales[row / 2 * 256usize.div_ceil(of.tile.1) + col / of.tile.1]
    }

    #[test]
    fn eight_bits_stay_where_a_block_has_one_scale() {
        let codes: Vec<u8> = (0..3 * 256).map(|i| (i * 37 % 127) as u8 | (i as u8 & 1) << 7).collect();
        for (across, kind) in
            [(128, WeightKind::F8_E4M3), (256, WeightKind::F8_E4M3), (999, WeightKind::F8_E4M3), (96, WeightKind::F16)]
        {
            let coded = fp8(across, codes.clone());
            let weight = coded.matrix(0).unwrap();
            assert_eq!(weight.kind(), kind);
            for (at, found) in weight.to_f32().unwrap().into_iter().enumerate() {
                let value = value(&coded, at / 256, at % 256);
                let bound = if kind == WeightKind::F16 { value.abs() / 1024. } else { 0. };
                assert!((found - value).abs() <= bound, "{across}, element {at}: {found} is not {value}");
            }
        }
        let mut codes = codes;
        codes[77] = 0xff;
        let none = fp8(128, codes).matrix(0).unwrap();
        assert!(none.kind() != WeightKind::F8_E4M3 && none.to_f32().unwrap()[77].is_nan());
    }
}
