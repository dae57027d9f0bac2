//! Stored matrices on their way into slots: rows cut, picked and reordered, rows and columns exchanged, a function of every
//! element. Knows no names and no files.

use std::ops::Range;

use fastchat_kernels::{Weight, WeightKind};

use crate::names::Step;

/// Row order that brings interleaved pairs back to halves, for `rows` rows of whole heads.
fn unpaired(rows: usize, head_dim: usize, rotary_dim: usize) -> Vec<usize> {
    let half = rotary_dim / 2;
    let within = |i: usize| match i {
        i if i < half => 2 * i,
        i if i < rotary_dim => 2 * (i - half) + 1,
        i => i,
    };
    (0..rows).map(|row| row / head_dim * head_dim + within(row % head_dim)).collect()
}

/// The other way: halves become interleaved pairs.
pub(crate) fn paired(rows: usize, head_dim: usize, rotary_dim: usize) -> Vec<usize> {
    let within = |i: usize| match i {
        i if i < rotary_dim => i / 2 + i % 2 * (rotary_dim / 2),
        i => i,
    };
    (0..rows).map(|row| row / head_dim * head_dim + within(row % head_dim)).collect()
}

/// Row order that takes `within` from every block of `stride` rows.
fn grouped(rows: usize, stride: usize, within: &[Range<usize>]) -> Vec<usize> {
    let blocks = || (0..rows / stride).map(|block| block * stride);
    within.iter().flat_map(|range| blocks().flat_map(move |at| at + range.start..at + range.end)).collect()
}

/// Applies one step to a matrix; `part` is the expert or head asked for, `vector` whether it is a bias.
pub(crate) fn apply(step: &Step, weight: Weight, part: usize, vector: bool) -> Result<Weight, String> {
    let rows = weight.rows();
    let text = |error: candle_core::Error| error.to_string();
    match step {
        Step::Pick => Err("is not a stack of matrices".to_owned()),
        Step::Block { stride, within } => {
            weight.narrow(part.saturating_mul(*stride).saturating_add(within.start), within.len()).map_err(text)
        }
        Step::Range { total, .. } if *total != rows => Err(format!("has {rows} rows, expected {total}")),
        Step::Range { rows, .. } => weight.narrow(rows.start, rows.len()).map_err(text),
        Step::Groups { stride: block, .. } | Step::Unpair { head_dim: block, .. } if !rows.is_multiple_of(*block) => {
            Err(format!("has {rows} rows, expected a multiple of {block}"))
        }
        Step::Groups { stride, within } => weight.select_rows(&grouped(rows, *stride, within)).map_err(text),
        Step::Unpair { head_dim, rotary_dim } => {
            weight.select_rows(&unpaired(rows, *head_dim, *rotary_dim)).map_err(text)
        }
        Step::Transpose if vector => Ok(weight),
        Step::Transpose => transpose(&weight),
        Step::AddOne => map_f32(&weight, |x| x + 1.0),
        Step::NegExp => map_f32(&weight, |x| -x.exp()),
        Step::Tanh => map_f32(&weight, f32::tanh),
        Step::Flatten => Ok(weight),
    }
}

/// Rows and columns exchanged; quantised kinds become f32.
pub(crate) fn transpose(weight: &Weight) -> Result<Weight, String> {
    let (rows, cols) = (weight.rows(), weight.cols());
    let make = |kind, bytes: Vec<u8>| Weight::new(kind, cols, rows, bytes.into()).map_err(|error| error.to_string());
    if !weight.kind().is_dense() {
        let dense = f32_weight(rows, cols, &weight.to_f32().map_err(|error| error.to_string())?)?;
        return transpose(&dense);
    }
    let size = weight.kind().block().1;
    let bytes = weight.bytes();
    let mut out = Vec::with_capacity(bytes.len());
    for col in 0..cols {
        for row in 0..rows {
            let at = (row * cols + col) * size;
            out.extend_from_slice(&bytes[at..at + size]);
        }
    }
    make(weight.kind(), out)
}

/// `f` of every element, as f32.
fn map_f32(weight: &Weight, f: impl Fn(f32) -> f32) -> Result<Weight, String> {
    let values: Vec<f32> = weight.to_f32().map_err(|error| error.to_string())?.into_iter().map(f).collect();
    f32_weight(weight.rows(), weight.cols(), &values)
}

fn f32_weight(rows: usize, cols: usize, values: &[f32]) -> Result<Weight, String> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Weight::new(WeightKind::F32, rows, cols, bytes.into()).map_err(|error| error.to_string())
}
