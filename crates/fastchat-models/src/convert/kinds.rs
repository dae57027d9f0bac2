//! What the matrices of a file become: which kind a slot's matrix gets, and the bytes of that kind. Knows no names.

use std::str::FromStr;

use fastchat_kernels::{Weight, WeightKind};
use half::{bf16, f16};

use crate::gguf::{Entries, Entry};
use crate::names::Slot;
use crate::quantize::{Quantize, encode, is_large};
use crate::slots::Form;
use crate::weights::{Stored, StoredKind};

/// What matrices become; vectors, and matrices too small to matter, are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// One float kind for all.
    Dense(WeightKind),
    /// Blocks, for what is stored as floats.
    Blocks(Quantize),
}

impl FromStr for FileKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name.to_ascii_lowercase().as_str() {
            "f32" => Ok(Self::Dense(WeightKind::F32)),
            "f16" => Ok(Self::Dense(WeightKind::F16)),
            "bf16" => Ok(Self::Dense(WeightKind::BF16)),
            other => other.parse().map(Self::Blocks).map_err(|error: String| format!("{error}, f16, bf16, f32")),
        }
    }
}

/// A stored tensor as one matrix of all its rows.
pub fn whole(stored: &Stored) -> Result<Weight, String> {
    let StoredKind::Weight(kind) = stored.kind else { return Err("is of another kind".to_owned()) };
    let cols = stored.shape.last().copied().unwrap_or(1);
    let rows = stored.shape.iter().product::<usize>() / cols.max(1);
    Weight::new(kind, rows, cols, stored.bytes.clone()).map_err(|error| error.to_string())
}

/// The kind of a tensor in the file.
pub fn written(kind: Option<FileKind>, stored: WeightKind, form: Form, slot: Slot, cols: usize) -> WeightKind {
    match kind {
        _ if form != Form::Matrix || !is_large(slot) => WeightKind::F32,
        Some(FileKind::Dense(kind)) => kind,
        Some(FileKind::Blocks(blocks)) if stored.is_float() => blocks.kind_for(slot, cols).unwrap_or(in_file(stored)),
        _ => in_file(stored),
    }
}

/// What holds a kind that GGUF does not have.
fn in_file(stored: WeightKind) -> WeightKind {
    if stored == WeightKind::F8_E4M3 { WeightKind::F16 } else { stored }
}

/// `weight` in another kind.
pub fn recoded(weight: Weight, kind: WeightKind) -> Result<Weight, String> {
    if weight.kind() == kind {
        return Ok(weight);
    }
    if !kind.is_dense() {
        return encode(kind, &weight);
    }
    let values = weight.to_f32().map_err(|error| error.to_string())?;
    let bytes: Vec<u8> = match kind {
        WeightKind::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        WeightKind::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => le(&values).collect(),
    };
    if kind == WeightKind::F16
        && let Some(large) = values.iter().find(|x| x.is_finite() && !f16::from_f32(**x).is_finite())
    {
        return Err(format!("holds {large}, which f16 cannot; bf16 and f32 can"));
    }
    Weight::new(kind, weight.rows(), weight.cols(), bytes.into()).map_err(|error| error.to_string())
}

/// As a file holds them.
pub fn le(values: &[f32]) -> impl Iterator<Item = u8> {
    values.iter().flat_map(|value| value.to_le_bytes())
}

/// What most tensors are, in llama.cpp's numbers; readers show it and decide nothing by it.
pub fn file_type(kind: Option<FileKind>) -> Entries {
    use WeightKind as W;
    let kind = match kind {
        None => return Vec::new(),
        Some(FileKind::Dense(kind)) => kind,
        Some(FileKind::Blocks(blocks)) => blocks.kind(),
    };
    let number = match kind {
        W::F32 => 0,
        W::F16 => 1,
        W::Q4_0 => 2,
        W::Q4_1 => 3,
        W::Q8_0 => 7,
        W::Q5_0 => 8,
        W::Q5_1 => 9,
        W::Q4_K => 15,
        W::Q5_K => 17,
        W::Q6_K => 18,
        W::BF16 => 32,
        _ => return Vec::new(),
    };
    let mut entries = vec![("general.file_type".to_owned(), Entry::Whole(number))];
    if !kind.is_dense() {
        entries.push(("general.quantization_version".to_owned(), Entry::Whole(2)));
    }
    entries
}
