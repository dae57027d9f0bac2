//! A stored matrix as a file holds it: rows, columns, element kind, bytes. Loaders cut, join and reorder rows here;
//! `Kernels::pack` turns the result into what the hardware likes. Knows no tensor names.

use std::ops::Range;

use candle_core::{Result, bail};
use half::f16;

use crate::mapped::Bytes;

/// How the elements of a [`Weight`] are stored. The quantised kinds are GGML's, block for block; `F8_E4M3` has a scale in
/// f32, then 128 floats of 8 bits (arXiv 2209.05433, E4M3 without infinities).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types)] // the names are the formats' own
pub enum WeightKind {
    F32,
    F16,
    BF16,
    F8_E4M3,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ4_NL,
    IQ4_XS,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ1_S,
    IQ1_M,
    TQ1_0,
    TQ2_0,
    MXFP4,
}

impl WeightKind {
    /// (elements, bytes) of one block; dense kinds have blocks of one element.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::F8_E4M3 => (128, 132),
            Self::Q4_0 | Self::IQ4_NL => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2_K => (256, 84),
            Self::Q3_K | Self::IQ3_S => (256, 110),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
            Self::Q8_K => (256, 292),
            Self::IQ4_XS => (256, 136),
            Self::IQ2_XXS | Self::TQ2_0 => (256, 66),
            Self::IQ2_XS => (256, 74),
            Self::IQ2_S => (256, 82),
            Self::IQ3_XXS => (256, 98),
            Self::IQ1_S => (256, 50),
            Self::IQ1_M => (256, 56),
            Self::TQ1_0 => (256, 54),
            Self::MXFP4 => (32, 17),
        }
    }

    /// Whether elements are stored one by one as floats.
    pub const fn is_dense(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// Whether elements are floats, if with a scale for many: whoever asks for fewer bits means these.
    pub const fn is_float(self) -> bool {
        self.is_dense() || matches!(self, Self::F8_E4M3)
    }
}

/// A row-major matrix `[rows, cols]` as stored; a row is one output feature of a linear layer.
#[derive(Clone, Debug)]
pub struct Weight {
    kind: WeightKind,
    rows: usize,
    cols: usize,
    bytes: Bytes,
}

impl Weight {
    /// Checks that `bytes` holds exactly `rows * cols` elements of `kind`.
    ///
    /// # Errors
    /// When `cols` is not a multiple of the kind's block or the length differs.
    pub fn new(kind: WeightKind, rows: usize, cols: usize, bytes: Bytes) -> Result<Self> {
        let (elements, size) = kind.block();
        if !cols.is_multiple_of(elements) {
            bail!("{kind:?} needs a row length that is a multiple of {elements}, got {cols}");
        }
        let expected = (cols / elements).checked_mul(size).and_then(|row| row.checked_mul(rows));
        if expected != Some(bytes.len()) {
            bail!("{kind:?} [{rows}, {cols}] needs {expected:?} bytes, got {}", bytes.len());
        }
        Ok(Self { kind, rows, cols, bytes })
    }

    /// `values` as f16, whose step is far below that of any code; as f32 where one is too large for it.
    ///
    /// # Errors
    /// When there are not `rows * cols` of them.
    pub fn halves(rows: usize, cols: usize, values: &[f32]) -> Result<Self> {
        let (kind, bytes) = if values.iter().all(|x| x.abs() <= f16::MAX.to_f32()) {
            (WeightKind::F16, values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect::<Vec<_>>())
        } else {
            (WeightKind::F32, values.iter().flat_map(|x| x.to_le_bytes()).collect())
        };
        Self::new(kind, rows, cols, bytes.into())
    }

    /// Element kind.
    pub fn kind(&self) -> WeightKind {
        self.kind
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The stored bytes, row after row.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        let (elements, size) = self.kind.block();
        self.cols / elements * size
    }

    /// Rows `start .. start + len`, without copying.
    ///
    /// # Errors
    /// When the range leaves the matrix.
    pub fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        if start.checked_add(len).is_none_or(|end| end > self.rows) {
            bail!("rows {start}+{len} of a matrix of {} rows", self.rows);
        }
        let row = self.row_bytes();
        let bytes = match &self.bytes {
            Bytes::Mapped { file, range } => {
                let from = range.start + start * row;
                Bytes::Mapped { file: file.clone(), range: from..from + len * row }
            }
            Bytes::Owned(bytes) => bytes[start * row..(start + len) * row].to_vec().into(),
        };
        Ok(Self { kind: self.kind, rows: len, cols: self.cols, bytes })
    }

    /// A copy of some columns of all rows.
    ///
    /// # Errors
    /// When they leave the matrix or begin or end within a block.
    pub fn narrow_cols(&self, cols: Range<usize>) -> Result<Self> {
        let (elements, size) = self.kind.block();
        let Range { start, end } = cols;
        if start > end || end > self.cols {
            bail!("columns {start}..{end} of a matrix of {} columns", self.cols);
        }
        if !start.is_multiple_of(elements) || !end.is_multiple_of(elements) {
            bail!("columns {start}..{end} are not whole blocks of {elements}, as {:?} has them", self.kind);
        }
        let own = start / elements * size..end / elements * size;
        let bytes: Vec<u8> =
            self.bytes.chunks_exact(self.row_bytes()).flat_map(|row| &row[own.clone()]).copied().collect();
        Self::new(self.kind, self.rows, end - start, bytes.into())
    }

    /// A copy whose row `i` is this matrix's row `order[i]`.
    ///
    /// # Errors
    /// When an index is out of range.
    pub fn select_rows(&self, order: &[usize]) -> Result<Self> {
        let row = self.row_bytes();
        let mut bytes = Vec::with_capacity(order.len() * row);
        for &index in order {
            if index >= self.rows {
                bail!("row {index} of a matrix of {} rows", self.rows);
            }
            bytes.extend_from_slice(&self.bytes[index * row..(index + 1) * row]);
        }
        Ok(Self { kind: self.kind, rows: order.len(), cols: self.cols, bytes: bytes.into() })
    }

    /// All elements as f32, row-major.
    ///
    /// # Errors
    /// When the kind cannot be read.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        crate::quant::dequantize(self.kind, &self.bytes, self.rows * self.cols)
    }
}
