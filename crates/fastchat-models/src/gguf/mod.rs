//! From a GGUF file to a checkpoint: header, metadata and tensor names become a [`Description`]. The only place, with
//! `hf`, that knows models by name: one file per architecture.

mod base;
mod cursor;
mod header;
mod meta;
mod rope;
mod value;
mod vocab;

mod gemma2;
mod gemma3;
mod llama;
mod qwen2;
mod qwen3;

use std::path::Path;

use fastchat_kernels::MappedFile;

use crate::ModelError;
use crate::checkpoint::Checkpoint;
use crate::description::Description;
use meta::Meta;

type Architecture = fn(&Meta) -> Result<Description, ModelError>;

/// `general.architecture` to mapping.
const ARCHITECTURES: &[(&str, Architecture)] = &[
    ("gemma2", gemma2::describe),
    ("gemma3", gemma3::describe),
    ("llama", llama::describe),
    ("qwen2", qwen2::describe),
    ("qwen3", qwen3::describe),
];

/// Reads a file: its header is checked, its tensors stay mapped.
pub(crate) fn open(path: &Path, max_model_len: Option<usize>) -> Result<Checkpoint, ModelError> {
    let file = MappedFile::open(path).map_err(|error| ModelError::io(path, error))?;
    let header = header::read(&file)?;
    let meta = Meta::new(&header, path, max_model_len)?;
    let Some((_, describe)) = ARCHITECTURES.iter().find(|(known, _)| *known == meta.arch) else {
        let known: Vec<_> = ARCHITECTURES.iter().map(|(known, _)| *known).collect();
        return Err(meta.unsupported("general.architecture", meta.arch, format!("{} are", known.join(", "))));
    };
    if let Some(parts) = Some(meta.count_or("split.count", 1)?).filter(|&parts| parts > 1) {
        return Err(meta.unsupported("split.count", parts, "whole files are"));
    }
    let description = describe(&meta)?;
    let text = vocab::read(&meta, description.spec.vocab_size)?;
    Ok(Checkpoint { format: "gguf", description, tensors: header.tensors, text })
}
