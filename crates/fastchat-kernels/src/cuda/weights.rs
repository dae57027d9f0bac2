//! Weights in the device's memory: quantised ones in the CPU backend's tiles, floats as they are stored, those of 8 bits with
//! their scales behind them.

use candle_core::{DType, Result, Tensor, bail};

use super::CudaKernels;
use super::launchers::FormatArgs;
use crate::cpu::Pool;
use crate::cpu::host::{Disjoint, for_rows};
use crate::cpu::linear::{Format, tiles};
use crate::linear::{Packed, Part};
use crate::ops::linear::stacked_shape;
use crate::{Linear, Weight, WeightKind};

/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 16;

/// The launchers' numbers of element types.
pub(super) const F32: i32 = 0;
pub(super) const F16: i32 = 1;
pub(super) const BF16: i32 = 2;
/// Rows of codes, then the scales of all rows, as `Scaled` of bf16.cu has them; no type of the device's own.
pub(super) const E4M3: i32 = 3;

/// How a weight's bytes are read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stored {
    /// Tiles of a format.
    Tiles(FormatArgs),
    /// Rows of floats; the launchers' number of their type.
    Dense(i32),
}

/// One weight, or several of a kind stacked.
#[derive(Debug)]
pub(crate) struct DeviceWeight {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stored: Stored,
    /// u8.
    pub(super) bytes: Tensor,
}

impl From<&Format> for FormatArgs {
    fn from(format: &Format) -> Self {
        let table = format.table.map_or([0; 4], |table| {
            [0, 4, 8, 12].map(|i| u32::from_le_bytes([table[i], table[i + 1], table[i + 2], table[i + 3]]))
        });
        Self {
            plane: format.plane as i32,
            scales: format.scales as i32,
            offset: format.offset_value(),
            unit: format.unit,
            has_table: i32::from(format.table.is_some()),
            table,
        }
    }
}

/// The launchers' number of an element type.
pub(super) fn element(dtype: DType) -> Result<i32> {
    match dtype {
        DType::F32 => Ok(F32),
        DType::F16 => Ok(F16),
        DType::BF16 => Ok(BF16),
        other => bail!("f32, f16 and bf16 are known, not {other:?}"),
    }
}

/// Weights of one kind, stacked.
fn joined(weights: &[Weight]) -> Result<Weight> {
    if let [one] = weights {
        return Ok(one.clone());
    }
    let bytes = weights.iter().map(Weight::bytes).collect::<Vec<_>>().concat();
    let rows = weights.iter().map(Weight::rows).sum();
    Weight::new(weights[0].kind(), rows, weights[0].cols(), bytes.into())
}

/// Uploads weights of one kind as one, so that one launch serves them.
fn upload(kernels: &CudaKernels, weights: &[Weight]) -> Result<DeviceWeight> {
    let device = kernels.runtime.device();
    let (rows, cols) = (weights.iter().map(Weight::rows).sum(), weights[0].cols());
    let dense = match weights[0].kind() {
        WeightKind::F32 => Some(F32),
        WeightKind::F16 => Some(F16),
        WeightKind::BF16 => Some(BF16),
        _ => None,
    };
    if let Some(element) = dense {
        // Straight from the mapped file; they meet on the device.
        let there = |weight: &Weight| Tensor::from_slice(weight.bytes(), weight.bytes().len(), device);
        let parts = weights.iter().map(there).collect::<Result<Vec<_>>>()?;
        let bytes = if let [one] = &parts[..] { one.clone() } else { Tensor::cat(&parts, 0)? };
        return Ok(DeviceWeight { rows, cols, stored: Stored::Dense(element), bytes });
    }
    if weights[0].kind() == WeightKind::F8_E4M3 {
        let bytes = scaled(weights, &kernels.pool);
        let len = bytes.len();
        return Ok(DeviceWeight {
            rows,
            cols,
            stored: Stored::Dense(E4M3),
            bytes: Tensor::from_vec(bytes, len, device)?,
        });
    }
    let weight = joined(weights)?;
    let (stored, bytes) = match tiles(&weight, &kernels.pool)? {
        Some((format, bytes)) => (Stored::Tiles(format.into()), bytes),
        None => (Stored::Dense(F32), weight.to_f32()?.iter().flat_map(|value| value.to_le_bytes()).collect()),
    };
    let len = bytes.len();
    Ok(DeviceWeight { rows, cols, stored, bytes: Tensor::from_vec(bytes, len, device)? })
}

/// The bytes of `E4M3`.
fn scaled(weights: &[Weight], pool: &Pool) -> Vec<u8> {
    let (elements, _) = WeightKind::F8_E4M3.block();
    let (rows, cols) = (weights.iter().map(Weight::rows).sum::<usize>(), weights[0].cols());
    let row_scales = cols / elements * 4;
    let mut out = vec![0; rows * (cols + row_scales)];
    let (codes, scales) = out.split_at_mut(rows * cols);
    let (codes, scales) = (Disjoint::new(codes), Disjoint::new(scales));
    let mut first = 0;
    for weight in weights {
        for_rows(pool, weight.rows(), cols, |rows| {
            let blocks = &weight.bytes()[rows.start * weight.row_bytes()..rows.end * weight.row_bytes()];
            let (start, end) = (first + rows.start, first + rows.end);
            // SAFETY: a row is in one range of one weight.
            let codes = unsafe { codes.piece(start * cols..end * cols) };
            // SAFETY: as above.
            let scales = unsafe { scales.piece(start * row_scales..end * row_scales) };
            take_apart(blocks, codes, scales);
        });
        first += weight.rows();
    }
    out
}

/// Codes with the middle two of every four exchanged, as bf16.cu widens them, and scales.
fn take_apart(blocks: &[u8], codes: &mut [u8], scales: &mut [u8]) {
    let (elements, size) = WeightKind::F8_E4M3.block();
    let places = codes.chunks_exact_mut(elements).zip(scales.chunks_exact_mut(4));
    for (block, (codes, scale)) in blocks.chunks_exact(size).zip(places) {
        let (own_scale, own) = block.split_at(4);
        scale.copy_from_slice(own_scale);
        for (to, from) in codes.chunks_exact_mut(4).zip(own.chunks_exact(4)) {
            to.copy_from_slice(&[from[0], from[2], from[1], from[3]]);
        }
    }
}

pub(super) fn pack(kernels: &CudaKernels, weights: &[Weight], bias: Option<Tensor>) -> Result<Linear> {
    let (in_features, out_features) = stacked_shape(weights, bias.as_ref())?;
    let alike = weights.chunk_by(|a, b| a.kind() == b.kind());
    let part = |weights: &[Weight]| Ok(Part { packed: Packed::Device(upload(kernels, weights)?.into()) });
    let parts = alike.map(part).collect::<Result<_>>()?;
    Ok(Linear { in_features, out_features, parts, bias })
}

impl Part {
    /// The weight as the CUDA backend packs it.
    pub(super) fn on_device(&self) -> Result<&DeviceWeight> {
        match &self.packed {
            Packed::Device(weight) => Ok(weight),
            _ => bail!("a layer packed by another backend was handed to the CUDA backend"),
        }
    }
}
