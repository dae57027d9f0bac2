//! From any checkpoint that loads to one GGUF file, its matrices as stored or of another kind. Knows slots and files; which
//! keys and names an architecture has is known in `gguf`.

mod plan;

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use fastchat_kernels::{Weight, WeightKind};
use half::{bf16, f16};
use serde::Serialize;

use crate::ModelError;
use crate::gguf::{self, Entries, Entry, Planned};
use crate::hf;
use crate::load::{Source, locate};
use crate::quantize::{Quantize, encode, is_large};
use crate::slots::{Form, slots};
use crate::weights::{Stored, StoredKind, TensorMap, Weights};
use plan::Tensor;

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

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Converted {
    /// Tensors.
    pub tensors: usize,
    /// Bytes of the file.
    pub bytes: u64,
    /// Element kind to number of tensors.
    pub kinds: BTreeMap<String, usize>,
    /// What the model has and the file has not.
    pub left_out: Option<&'static str>,
}

/// GGUF has towers in a file of their own.
const TOWER: &str = "the tower for pictures";

/// Writes the model at `path` to the file `out`; `None` keeps the kinds that are stored.
///
/// # Errors
/// What `load` would say, and what GGUF has no keys, names or kinds for.
pub fn convert(path: &Path, out: &Path, kind: Option<FileKind>) -> Result<Converted, ModelError> {
    if out.extension().is_none_or(|extension| extension != "gguf") {
        return Err(ModelError::request("out", out.display(), "the name of a file ends in .gguf"));
    }
    match locate(path)? {
        Source::Folder(folder) => from_folder(&folder, out, kind),
        Source::Gguf(file) => from_gguf(&file, out, kind),
    }
}

fn from_folder(folder: &Path, out: &Path, kind: Option<FileKind>) -> Result<Converted, ModelError> {
    let checkpoint = hf::folder::open(folder, None)?;
    let text = gguf::text_entries(folder, &checkpoint.text, checkpoint.description.spec.vocab_size)?;
    let layout = gguf::layout(folder, &checkpoint.family, checkpoint.description)?;
    let weights = Weights::new(&checkpoint.tensors, &layout.source.names, None);
    let reader = plan::Reader::new(&weights, &layout.source.spec, &layout.target.spec)?;
    let tensors = plan::tensors(folder, &layout.target)?;
    let mut planned = Vec::with_capacity(tensors.len() + layout.factors.len());
    for (name, values) in &layout.factors {
        planned.push(Planned { name: (*name).to_owned(), shape: vec![values.len()], kind: WeightKind::F32 });
    }
    for tensor in &tensors {
        let stored = reader.kind(tensor)?;
        planned.push(Planned {
            name: tensor.name.clone(),
            shape: tensor.shape(),
            kind: written(kind, stored, tensor.form, tensor.slot, tensor.cols),
        });
    }
    let mut entries = general(folder, layout.arch, kind);
    entries.extend(layout.entries);
    entries.extend(text);
    let by_name: BTreeMap<&str, &Tensor> = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let mut left = planned.len();
    let bytes = gguf::write(out, &entries, &planned, |planned| {
        let bytes = match by_name.get(planned.name.as_str()) {
            Some(tensor) => reader.bytes(tensor, planned.kind)?,
            None => layout.factors.iter().filter(|(name, _)| *name == planned.name).flat_map(|(_, v)| le(v)).collect(),
        };
        left -= 1;
        if left == 0 {
            weights.finish()?;
        }
        Ok(bytes)
    })?;
    Ok(Converted { left_out: checkpoint.vision.map(|_| TOWER), ..summary(&planned, bytes) })
}

/// The same keys and names; only kinds change.
fn from_gguf(file: &Path, out: &Path, kind: Option<FileKind>) -> Result<Converted, ModelError> {
    let same = |path: &Path| path.canonicalize().ok();
    if same(out).is_some() && same(out) == same(file) {
        return Err(ModelError::request("out", out.display(), "a file cannot be converted into itself"));
    }
    let checkpoint = gguf::open(file, None, None)?;
    let mut entries = gguf::stored_entries(file)?;
    entries.extend(file_type(kind));
    let mut slots_by_name = BTreeMap::new();
    for one in slots(&checkpoint.description.spec) {
        for part in 0..one.parts {
            let name = plan::name(file, &checkpoint.description.names, &one, part)?;
            slots_by_name.insert(name, (one.slot, one.form));
        }
    }
    let TensorMap { tensors, .. } = &checkpoint.tensors;
    let mut planned = Vec::with_capacity(tensors.len());
    for (name, stored) in tensors {
        let StoredKind::Weight(from) = stored.kind else {
            let problem = format!("element type {} cannot be written", stored.kind.name());
            return Err(ModelError::tensor(file, name, problem));
        };
        let cols = stored.shape.last().copied().unwrap_or(1);
        let to = match slots_by_name.get(name) {
            Some((slot, Form::Matrix)) if stored.shape.len() > 1 => written(kind, from, Form::Matrix, *slot, cols),
            _ => from,
        };
        planned.push(Planned { name: name.clone(), shape: stored.shape.clone(), kind: to });
    }
    let bytes = gguf::write(out, &entries, &planned, |planned| {
        let fail = |problem: String| ModelError::tensor(file, &planned.name, problem);
        let stored = tensors.get(&planned.name).ok_or_else(|| fail("is missing".to_owned()))?;
        whole(stored).and_then(|weight| recoded(weight, planned.kind)).map(|w| w.bytes().to_vec()).map_err(fail)
    })?;
    Ok(summary(&planned, bytes))
}

/// A stored tensor as one matrix of all its rows.
fn whole(stored: &Stored) -> Result<Weight, String> {
    let StoredKind::Weight(kind) = stored.kind else { return Err("is of another kind".to_owned()) };
    let cols = stored.shape.last().copied().unwrap_or(1);
    let rows = stored.shape.iter().product::<usize>() / cols.max(1);
    Weight::new(kind, rows, cols, stored.bytes.clone()).map_err(|error| error.to_string())
}

/// The kind of a tensor in the file.
fn written(
    kind: Option<FileKind>,
    stored: WeightKind,
    form: Form,
    slot: crate::names::Slot,
    cols: usize,
) -> WeightKind {
    match kind {
        _ if form != Form::Matrix || !is_large(slot) => WeightKind::F32,
        Some(FileKind::Dense(kind)) => kind,
        Some(FileKind::Blocks(blocks)) if stored.is_dense() => blocks.kind_for(slot, cols).unwrap_or(stored),
        _ => stored,
    }
}

/// `weight` in another kind.
fn recoded(weight: Weight, kind: WeightKind) -> Result<Weight, String> {
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

fn le(values: &[f32]) -> impl Iterator<Item = u8> {
    values.iter().flat_map(|value| value.to_le_bytes())
}

fn general(path: &Path, arch: &str, kind: Option<FileKind>) -> Entries {
    let name = path.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let mut entries: Entries = vec![
        ("general.architecture".to_owned(), arch.into()),
        ("general.type".to_owned(), "model".into()),
        ("general.name".to_owned(), Entry::Text(name.unwrap_or_default())),
    ];
    entries.extend(file_type(kind));
    entries
}

/// What most tensors are, in llama.cpp's numbers; readers show it and decide nothing by it.
fn file_type(kind: Option<FileKind>) -> Entries {
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

fn summary(planned: &[Planned], bytes: u64) -> Converted {
    let mut kinds = BTreeMap::new();
    for tensor in planned {
        *kinds.entry(format!("{:?}", tensor.kind)).or_default() += 1;
    }
    Converted { tensors: planned.len(), bytes, kinds, left_out: None }
}
