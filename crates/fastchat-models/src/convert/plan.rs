//! Which slots make up a tensor of the file, and its bytes: the steps that a reader will take are undone row by row. Knows
//! no names of models or files.

use std::collections::BTreeMap;
use std::path::Path;

use fastchat_kernels::{RopeLayout, Weight, WeightKind};

use super::kinds::{le, recoded};
use crate::ModelError;
use crate::names::{Names, Slot, Step};
use crate::rearrange::{apply, paired};
use crate::slots::{Form, Use};
use crate::spec::{DecoderSpec, Mixer};
use crate::weights::{At, Weights};

/// A tensor of the file.
pub struct Tensor {
    pub name: String,
    pub slot: Slot,
    pub form: Form,
    /// Matrices on top of each other.
    stack: Option<usize>,
    /// Of one matrix of the stack.
    rows: usize,
    pub cols: usize,
    pieces: Vec<Piece>,
}

/// A part of a slot, and where its rows lie.
struct Piece {
    from: Use,
    part: usize,
    /// Row of the whole stack for each row of the slot.
    order: Vec<usize>,
}

impl Tensor {
    /// Slowest dimension first.
    pub fn shape(&self) -> Vec<usize> {
        let cols = (self.form == Form::Matrix).then_some(self.cols);
        self.stack.into_iter().chain([self.rows]).chain(cols).collect()
    }
}

/// The stored name of a part of a slot.
pub fn name(path: &Path, names: &Names, one: &Use, part: usize) -> Result<String, ModelError> {
    let unnamed = || ModelError::tensor(path, &format!("{:?}", one.slot), "the layout to write has no name for it");
    let source = names.sources.get(&one.slot).ok_or_else(unnamed)?;
    let pattern = if one.form == Form::Bias { &source.bias } else { &source.weight };
    Ok(pattern.replace("{l}", &one.layer.to_string()).replace("{e}", &part.to_string()))
}

/// All tensors that hold `uses` under the names of a layout, in the order of the slots.
pub fn tensors(path: &Path, uses: &[Use], names: &Names) -> Result<Vec<Tensor>, ModelError> {
    let mut tensors: Vec<Tensor> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for &from in uses {
        let steps = names.sources.get(&from.slot).map_or(&[][..], |source| &source.steps[..]);
        for part in 0..from.parts {
            let name = name(path, names, &from, part)?;
            let fail = |problem: String| ModelError::tensor(path, &name, problem);
            let stacked = steps.first() == Some(&Step::Pick);
            let steps = if stacked { &steps[1..] } else { steps };
            let rows = stored_rows(steps, from.rows).map_err(fail)?;
            let start = if stacked { part * rows } else { 0 };
            let order = order(steps, rows, part).map_err(fail)?.into_iter().map(|row| start + row).collect();
            let place = *places.entry(name.clone()).or_insert_with(|| {
                let (slot, form, cols) = (from.slot, from.form, from.cols);
                let stack = stacked.then_some(from.parts);
                tensors.push(Tensor { name, slot, form, stack, rows, cols, pieces: Vec::new() });
                tensors.len() - 1
            });
            tensors[place].pieces.push(Piece { from, part, order });
        }
    }
    Ok(tensors)
}

/// Rows that are stored so that the steps leave `rows` of them.
fn stored_rows(steps: &[Step], rows: usize) -> Result<usize, String> {
    steps.iter().rev().try_fold(rows, |rows, step| match step {
        Step::Range { total, .. } => Ok(*total),
        Step::Groups { stride, within } => Ok(rows / within.iter().map(ExactSizeIterator::len).sum::<usize>() * stride),
        Step::Unpair { .. } => Ok(rows),
        other => Err(format!("{other:?} cannot be undone")),
    })
}

/// The stored row of every row that the steps leave.
fn order(steps: &[Step], rows: usize, part: usize) -> Result<Vec<usize>, String> {
    // Whole numbers up to 2^24 are exact in f32; no matrix in use has as many rows.
    if rows >= 1 << 24 {
        return Err(format!("has {rows} rows, at most {} can be reordered", 1 << 24));
    }
    let bytes: Vec<u8> = (0..rows).flat_map(|row| (row as f32).to_le_bytes()).collect();
    let numbered = Weight::new(WeightKind::F32, rows, 1, bytes.into()).map_err(|error| error.to_string())?;
    let left = steps.iter().try_fold(numbered, |weight, step| apply(step, weight, part, true))?;
    Ok(left.to_f32().map_err(|error| error.to_string())?.into_iter().map(|row| row as usize).collect())
}

/// By layer: (elements of a head, rotated ones) where rotated pairs must come to lie side by side.
pub fn pairs(
    origin: &Path,
    source: &DecoderSpec,
    target: &DecoderSpec,
) -> Result<Vec<Option<(usize, usize)>>, ModelError> {
    let mut pairs = Vec::with_capacity(source.layers.len());
    for (ours, theirs) in source.layers.iter().zip(&target.layers) {
        pairs.push(match (&ours.mixer, &theirs.mixer) {
            (Mixer::Attention(ours), Mixer::Attention(theirs)) => {
                // Layers without positions are stored in the same order as the others.
                let from = source.ropes.get(ours.rope.unwrap_or(0));
                match (from, target.ropes.get(theirs.rope.unwrap_or(0))) {
                    (Some(from), Some(to)) if from.layout != to.layout => {
                        only_pairing(origin, to.layout)?;
                        Some((ours.head_dim, 2 * from.inv_freq.len()))
                    }
                    _ => None,
                }
            }
            (Mixer::Mla(ours), Mixer::Mla(theirs))
                if source.ropes[ours.rope].layout != target.ropes[theirs.rope].layout =>
            {
                let expected = "latent attention is converted with the pairs side by side";
                return Err(ModelError::unsupported(origin, "rope_interleave", false, expected));
            }
            _ => None,
        });
    }
    Ok(pairs)
}

fn only_pairing(origin: &Path, to: RopeLayout) -> Result<(), ModelError> {
    match to {
        RopeLayout::Interleaved => Ok(()),
        RopeLayout::HalfSplit => {
            let expected = "the architecture has halves, which pairs side by side are not converted to";
            Err(ModelError::unsupported(origin, "rope layout", "interleaved", expected))
        }
    }
}

/// Reads slots of the source in the row order of the target.
pub struct Reader<'a> {
    weights: &'a Weights<'a>,
    /// By layer: (elements of a head, rotated ones) where rotated pairs must come to lie side by side.
    pairs: Vec<Option<(usize, usize)>>,
    origin: &'a Path,
}

impl<'a> Reader<'a> {
    /// `pairs` are those of the layers' heads.
    pub fn new(weights: &'a Weights<'a>, pairs: Vec<Option<(usize, usize)>>) -> Self {
        Self { weights, pairs, origin: weights.origin() }
    }

    /// The kind that the tensor's first piece is stored in.
    pub fn kind(&self, tensor: &Tensor) -> Result<WeightKind, ModelError> {
        match tensor.pieces.first() {
            Some(piece) if tensor.form == Form::Matrix => Ok(self.read(piece)?.kind()),
            _ => Ok(WeightKind::F32),
        }
    }

    /// The tensor's bytes, of kind `kind`.
    pub fn bytes(&self, tensor: &Tensor, kind: WeightKind) -> Result<Vec<u8>, ModelError> {
        let (elements, size) = kind.block();
        let row = tensor.cols / elements * size;
        let rows = tensor.stack.unwrap_or(1) * tensor.rows;
        let mut bytes = vec![0; rows * row];
        let mut written = vec![false; rows];
        for piece in &tensor.pieces {
            let fail = |problem: String| ModelError::tensor(self.origin, &tensor.name, problem);
            let weight = recoded(self.read(piece)?, kind).map_err(fail)?;
            for (from, &to) in weight.bytes().chunks_exact(row).zip(&piece.order) {
                bytes[to * row..(to + 1) * row].copy_from_slice(from);
                written[to] = true;
            }
        }
        match written.iter().position(|done| !done) {
            None => Ok(bytes),
            Some(row) => Err(ModelError::tensor(self.origin, &tensor.name, format!("no slot fills its row {row}"))),
        }
    }

    fn read(&self, piece: &Piece) -> Result<Weight, ModelError> {
        let Use { slot, form, layer, rows, cols, .. } = piece.from;
        let at = At { layer, part: piece.part };
        let weight = match form {
            Form::Matrix => self.weights.matrix(slot, at, rows, cols)?,
            Form::Vector => column(&self.weights.vector(slot, at, rows)?)?,
            Form::Bias => column(&self.weights.bias(slot, at, rows)?)?,
        };
        let rotated = matches!(slot, Slot::Q | Slot::K | Slot::QNorm | Slot::KNorm);
        match self.pairs.get(layer) {
            Some(Some((head_dim, rotary))) if rotated => Ok(weight.select_rows(&paired(rows, *head_dim, *rotary))?),
            _ => Ok(weight),
        }
    }
}

fn column(values: &[f32]) -> Result<Weight, ModelError> {
    let bytes: Vec<u8> = le(values).collect();
    Ok(Weight::new(WeightKind::F32, values.len(), 1, bytes.into())?)
}
