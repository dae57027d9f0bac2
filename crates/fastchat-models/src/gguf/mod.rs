//! From a GGUF file to a checkpoint: header, metadata and tensor names become a [`Description`]. The only place, with
//! `hf`, that knows models by name: one file per architecture.

mod architectures;
mod base;
mod cursor;
mod encoder_base;
mod export;
mod export_encoder;
mod export_pieces;
mod export_text;
mod header;
mod keys;
mod meta;
mod mmproj;
mod projectors;
mod rope;
mod shards;
mod tower;
mod value;
mod vocab;
mod writer;

mod bert;
mod cohere2;
mod deepseek2;
mod exaone4;
mod gemma2;
mod gemma3;
mod glm4;
mod glm4moe;
mod gpt_oss;
mod granite;
mod llama;
mod modern_bert;
mod nomic_bert;
mod olmo2;
mod olmoe;
mod phi3;
mod qwen2;
mod qwen2moe;
mod qwen2vl;
mod qwen3;
mod qwen35;
mod qwen3moe;
mod qwen3next;
mod qwen3vl;
mod seed_oss;
mod smollm3;
mod starcoder2;

use std::path::Path;

use fastchat_kernels::MappedFile;

use crate::ModelError;
use crate::checkpoint::{Checkpoint, EmbedderDescription, EncoderCheckpoint};
use crate::encoder_spec::{Pooling, PoolingMode};
use architectures::{ARCHITECTURES, ENCODERS};
pub(crate) use encoder_base::pooling_type;
pub(crate) use export::{DecoderLayout, layout};
pub(crate) use export_encoder::{EncoderLayout, layout as encoder_layout};
pub(crate) use export_text::entries as text_entries;
pub(crate) use keys::Factors;
use meta::Meta;
pub(crate) use mmproj::{beside as tower_beside, is_named as is_tower};
pub(crate) use shards::one_model;
pub(crate) use writer::{Entries, Entry, Planned, write};

/// Name of the format.
const FORMAT: &str = "gguf";

/// Whether a file makes embeddings: an encoder, or a decoder that says how its rows are pooled.
pub(crate) fn is_encoder(path: &Path) -> Result<bool, ModelError> {
    let file = MappedFile::open(path).map_err(|error| ModelError::io(path, error))?;
    let header = header::read(&file)?;
    if shards::place(&header, path)?.is_some_and(|place| place.0 > 0) {
        return Ok(false);
    }
    let meta = Meta::new(&header, path, None)?;
    Ok(ENCODERS.iter().any(|(known, _)| *known == meta.arch) || encoder_base::pooling(&meta)?.is_some())
}

/// Reads a file that makes embeddings.
pub(crate) fn open_encoder(path: &Path, max_model_len: Option<usize>) -> Result<EncoderCheckpoint, ModelError> {
    let file = MappedFile::open(path).map_err(|error| ModelError::io(path, error))?;
    let header = header::read(&file)?;
    let meta = Meta::new(&header, path, max_model_len)?;
    let pooling = encoder_base::pooling(&meta)?;
    if let Some((_, describe)) = ENCODERS.iter().find(|(known, _)| *known == meta.arch) {
        let description = describe(&meta)?;
        let text = vocab::read(&meta, description.spec.vocab_size)?;
        return Ok(EncoderCheckpoint {
            format: FORMAT,
            family: meta.arch.to_owned(),
            description: EmbedderDescription::Encoder(description),
            pooling: pooling.unwrap_or(Pooling { mode: PoolingMode::Mean, normalize: true }),
            max_seq_length: None,
            tensors: header.tensors,
            text,
        });
    }
    let Some(pooling) = pooling else {
        let known: Vec<_> = ENCODERS.iter().map(|(known, _)| *known).collect();
        let known = format!("for embeddings {}, and what has a pooling_type are", known.join(", "));
        return Err(meta.unsupported("general.architecture", meta.arch, known));
    };
    let Checkpoint { format, family, description, tensors, text, .. } = open(path, max_model_len, None)?;
    Ok(EncoderCheckpoint {
        format,
        family,
        description: EmbedderDescription::Decoder(description.without_head("output")),
        pooling,
        max_seq_length: None,
        tensors,
        text,
    })
}

/// Reads a file, or all files of a model cut into several, and the one that holds its tower: headers are checked, tensors
/// stay mapped.
pub(crate) fn open(path: &Path, max_model_len: Option<usize>, tower: Option<&Path>) -> Result<Checkpoint, ModelError> {
    let file = MappedFile::open(path).map_err(|error| ModelError::io(path, error))?;
    let mut header = header::read(&file)?;
    if let Some(place) = shards::place(&header, path)? {
        let files = shards::files(path, place)?;
        if place.0 > 0 {
            return open(&files[0], max_model_len, tower);
        }
        shards::join(&mut header, &files)?;
    }
    let meta = Meta::new(&header, path, max_model_len)?;
    if meta.arch == "clip" {
        let expected = "it is a tower for pictures, which belongs beside its model (mmproj)";
        return Err(meta.unsupported("general.architecture", meta.arch, expected));
    }
    let Some((_, describe)) = ARCHITECTURES.iter().find(|(known, _)| *known == meta.arch) else {
        let known: Vec<_> = ARCHITECTURES.iter().map(|(known, _)| *known).collect();
        return Err(meta.unsupported("general.architecture", meta.arch, format!("{} are", known.join(", "))));
    };
    let description = describe(&meta)?;
    let text = vocab::read(&meta, description.spec.vocab_size)?;
    let family = meta.arch.to_owned();
    let tower = tower.map(|tower| mmproj::open(tower, &description.spec, &text)).transpose()?;
    let (vision, tower_tensors) = tower.unzip();
    Ok(Checkpoint { format: FORMAT, family, description, vision, tower_tensors, tensors: header.tensors, text })
}

/// The metadata of a file as stored, without what is said of its kinds and its parts.
pub(crate) fn stored_entries(path: &Path) -> Result<Entries, ModelError> {
    let file = MappedFile::open(path).map_err(|error| ModelError::io(path, error))?;
    let header = header::read(&file)?;
    let first = match shards::place(&header, path)? {
        Some(place) if place.0 > 0 => return stored_entries(&shards::files(path, place)?[0]),
        _ => header,
    };
    let dropped = ["general.file_type", "general.quantization_version", "general.alignment"];
    let kept = first.stored.iter().filter(|(key, _)| !dropped.contains(key) && !key.starts_with("split."));
    Ok(kept.map(|(key, value)| ((*key).to_owned(), Entry::Raw(value.to_vec()))).collect())
}
