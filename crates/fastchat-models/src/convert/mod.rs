//! From any checkpoint that loads to one GGUF file, its matrices as stored or of another kind. Knows slots and files; which
//! keys and names an architecture has is known in `gguf`.

mod draft;
mod kinds;
mod plan;

use std::collections::BTreeMap;
use std::path::Path;

use crate::ModelError;
use crate::checkpoint::{Checkpoint, EmbedderDescription, EncoderCheckpoint};
use crate::gguf::{self, Planned};
use crate::hf;
use crate::load::{Source, locate};
use crate::names::Names;
use crate::slots::{Form, Use, encoder_slots, slots};
use crate::weights::{StoredKind, TensorMap};
pub use draft::Converted;
use draft::Draft;
pub use kinds::FileKind;
use kinds::{file_type, recoded, whole, written};

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
    if hf::folder::is_encoder(folder)? {
        return vectors_from_folder(folder, out, kind);
    }
    let checkpoint = hf::folder::open(folder, None)?;
    let text = gguf::text_entries(folder, &checkpoint.text, checkpoint.description.spec.vocab_size)?;
    let layout = gguf::layout(folder, &checkpoint.family, checkpoint.description)?;
    let written = Draft::of_decoder(folder, &checkpoint.tensors, layout, text)?.write(out, kind)?;
    Ok(Converted { left_out: checkpoint.vision.map(|_| TOWER.to_owned()), ..written })
}

/// What makes vectors: an encoder, or a decoder whose rows are pooled.
fn vectors_from_folder(folder: &Path, out: &Path, kind: Option<FileKind>) -> Result<Converted, ModelError> {
    let checkpoint = hf::folder::open_encoder(folder, None)?;
    let (longest, reach) = (checkpoint.longest(), checkpoint.reach());
    let EncoderCheckpoint { family, description, pooling, tensors, mut text, .. } = checkpoint;
    // Nothing is generated: the only end is the tokenizer's.
    text.eos_token_ids.clear();
    let pooling = gguf::pooling_type(folder, pooling);
    let draft = match description {
        EmbedderDescription::Encoder(description) => {
            let text = gguf::text_entries(folder, &text, description.spec.vocab_size)?;
            let layout = gguf::encoder_layout(folder, &family, description)?;
            Draft::of_encoder(folder, &tensors, layout, text)
        }
        EmbedderDescription::Decoder(description) => {
            let text = gguf::text_entries(folder, &text, description.spec.vocab_size)?;
            Draft::of_decoder(folder, &tensors, gguf::layout(folder, &family, description)?, text)?
        }
    };
    let written = draft.pooled(pooling?).write(out, kind)?;
    // The format has one length, that of the positions.
    let left_out =
        (longest < reach).then(|| format!("the longest text of {longest} tokens, where positions reach {reach}"));
    Ok(Converted { left_out, ..written })
}

/// The same keys and names; only kinds change.
fn from_gguf(file: &Path, out: &Path, kind: Option<FileKind>) -> Result<Converted, ModelError> {
    let same = |path: &Path| path.canonicalize().ok();
    if same(out).is_some() && same(out) == same(file) {
        return Err(ModelError::request("out", out.display(), "a file cannot be converted into itself"));
    }
    let (uses, names, TensorMap { tensors, .. }) = stored(file)?;
    let mut entries = gguf::stored_entries(file)?;
    entries.extend(file_type(kind));
    let mut slots_by_name = BTreeMap::new();
    for one in &uses {
        for part in 0..one.parts {
            slots_by_name.insert(plan::name(file, &names, one, part)?, (one.slot, one.form));
        }
    }
    let mut planned = Vec::with_capacity(tensors.len());
    for (name, stored) in &tensors {
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
    Ok(Converted::new(&planned, bytes))
}

/// Slots, names and tensors of a file; the output matrix of a decoder that makes vectors is kept too.
fn stored(file: &Path) -> Result<(Vec<Use>, Names, TensorMap), ModelError> {
    if gguf::is_encoder(file)? {
        let EncoderCheckpoint { description, tensors, .. } = gguf::open_encoder(file, None)?;
        if let EmbedderDescription::Encoder(encoder) = description {
            return Ok((encoder_slots(&encoder.spec), encoder.names, tensors));
        }
    }
    let Checkpoint { description, tensors, .. } = gguf::open(file, None, None)?;
    Ok((slots(&description.spec), description.names, tensors))
}
