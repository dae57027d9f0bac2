//! The way from a path to a decoder ready to run: find the format, read the checkpoint, pack every weight once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fastchat_kernels::Kernels;
use serde::Serialize;

use crate::checkpoint::{Checkpoint, EmbedderDescription, EncoderCheckpoint, GenerationDefaults, TokenizerSource};
use crate::decoder::one_device;
use crate::quantize::Quantize;
use crate::vision::VisionTower;
use crate::weights::TensorMap;
use crate::{Decoder, Embedder, LoadOptions, ModelError, gguf, hf};

/// A decoder and what its text side needs.
#[derive(Debug)]
pub struct LoadedModel {
    /// The decoder, weights packed.
    pub decoder: Decoder,
    /// The tower of a model that takes pictures.
    pub vision: Option<VisionTower>,
    /// `None` when a folder has no tokenizer.
    pub tokenizer: Option<TokenizerSource>,
    /// Jinja source.
    pub chat_template: Option<String>,
    /// The authors' sampling defaults.
    pub generation: GenerationDefaults,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// Token that begins a text.
    pub bos_token_id: Option<u32>,
    /// 16 hex digits that change when the spec or the weights do.
    pub fingerprint: String,
}

/// A model whose files are mapped and understood, and whose weights are not packed yet.
#[derive(Debug)]
pub struct OpenModel {
    checkpoint: Checkpoint,
    options: LoadOptions,
}

impl OpenModel {
    /// Opens a `*.gguf` file, a folder with config.json and safetensors, or a folder with one `*.gguf`.
    ///
    /// # Errors
    /// What is missing, malformed or not supported, in one line.
    pub fn new(path: &Path, options: LoadOptions) -> Result<Self, ModelError> {
        Ok(Self { checkpoint: open(path, &options)?, options })
    }

    /// Takes the tokenizer out, which can be built while the weights are packed.
    pub fn take_tokenizer(&mut self) -> Option<TokenizerSource> {
        self.checkpoint.text.tokenizer.take()
    }

    /// Packs every weight.
    ///
    /// # Errors
    /// What is missing, left over or malformed, in one line.
    pub fn pack(self, kernels: Arc<dyn Kernels>) -> Result<LoadedModel, ModelError> {
        pack(self.checkpoint, kernels, &self.options)
    }
}

/// Loads a `*.gguf` file, a folder with config.json and safetensors, or a folder with one `*.gguf`.
///
/// # Errors
/// What is missing, left over, malformed or not supported, in one line.
pub fn load(path: &Path, kernels: Arc<dyn Kernels>, options: &LoadOptions) -> Result<LoadedModel, ModelError> {
    pack(open(path, options)?, kernels, options)
}

fn pack(checkpoint: Checkpoint, kernels: Arc<dyn Kernels>, options: &LoadOptions) -> Result<LoadedModel, ModelError> {
    if options.ranks.is_some() && checkpoint.vision.is_some() {
        return Err(one_device());
    }
    let (spec, quantize) = (&checkpoint.description.spec, options.quantize.map(Quantize::name));
    let maps: Vec<_> = std::iter::once(&checkpoint.tensors).chain(&checkpoint.tower_tensors).collect();
    let fingerprint = match &checkpoint.vision {
        Some(vision) => fingerprint(&(spec, &vision.spec, quantize), &maps)?,
        None => fingerprint(&(spec, quantize), &maps)?,
    };
    let Checkpoint { description, vision, tower_tensors, tensors, text, .. } = checkpoint;
    let tower_tensors = tower_tensors.as_ref().unwrap_or(&tensors);
    let vision = vision.map(|vision| VisionTower::new(vision, tower_tensors, kernels.clone())).transpose()?;
    let decoder = Decoder::new(description, &tensors, kernels, options)?;
    Ok(LoadedModel {
        decoder,
        vision,
        tokenizer: text.tokenizer,
        chat_template: text.chat_template,
        generation: text.generation,
        eos_token_ids: text.eos_token_ids,
        bos_token_id: text.bos_token_id,
        fingerprint,
    })
}

/// An encoder and what its text side needs.
#[derive(Debug)]
pub struct LoadedEncoder {
    /// The encoder, weights packed.
    pub encoder: Embedder,
    /// `None` when a folder has no tokenizer.
    pub tokenizer: Option<TokenizerSource>,
    /// 16 hex digits that change when the spec, the pooling or the weights do.
    pub fingerprint: String,
}

/// Whether `path` holds what makes embeddings, an encoder or a decoder whose rows are pooled, and not what generates.
///
/// # Errors
/// A path that holds no model, or a config.json that cannot be read.
pub fn is_encoder(path: &Path) -> Result<bool, ModelError> {
    match locate(path)? {
        Source::Folder(folder) => hf::folder::is_encoder(&folder),
        Source::Gguf(file) => gguf::is_encoder(&file),
    }
}

/// Loads a model that makes embeddings: a folder with an encoder's config.json and safetensors, one of a decoder with
/// sentence-transformers files, or a `*.gguf` of either.
///
/// # Errors
/// As `load`; also a `max_model_len` past the positions.
pub fn load_encoder(
    path: &Path,
    kernels: Arc<dyn Kernels>,
    options: &LoadOptions,
) -> Result<LoadedEncoder, ModelError> {
    let checkpoint = open_encoder(path, options.max_model_len)?;
    let reach = checkpoint.reach();
    let max_model_len = options.max_model_len.unwrap_or(checkpoint.longest());
    if max_model_len == 0 || max_model_len > reach {
        let limit = format!("the model's positions reach from 1 to {reach}");
        return Err(ModelError::request("max_model_len", max_model_len, limit));
    }
    let EncoderCheckpoint { description, pooling, tensors, text, .. } = checkpoint;
    let quantize = options.quantize.map(Quantize::name);
    let fingerprint = match &description {
        EmbedderDescription::Encoder(encoder) => fingerprint(&(&encoder.spec, pooling, quantize), &[&tensors])?,
        EmbedderDescription::Decoder(decoder) => fingerprint(&(&decoder.spec, pooling, quantize), &[&tensors])?,
    };
    let options =
        LoadOptions { max_model_len: Some(max_model_len), quantize: options.quantize, ..LoadOptions::default() };
    let encoder = Embedder::new(description, pooling, &tensors, kernels, &options)?;
    Ok(LoadedEncoder { encoder, tokenizer: text.tokenizer, fingerprint })
}

/// Reads all of what makes embeddings but packs nothing.
pub(crate) fn open_encoder(path: &Path, max_model_len: Option<usize>) -> Result<EncoderCheckpoint, ModelError> {
    match locate(path)? {
        Source::Folder(folder) => hf::folder::open_encoder(&folder, max_model_len),
        Source::Gguf(file) => gguf::open_encoder(&file, max_model_len),
    }
}

/// Reads everything but packs nothing.
pub(crate) fn open(path: &Path, options: &LoadOptions) -> Result<Checkpoint, ModelError> {
    match (locate(path)?, &options.mmproj) {
        (Source::Folder(folder), None) => hf::folder::open(&folder, options.max_model_len),
        (Source::Folder(_), Some(tower)) => {
            let limit = "only GGUF files have their tower in another file";
            Err(ModelError::request("mmproj", tower.display(), limit))
        }
        (Source::Gguf(file), tower) => {
            let tower = tower.clone().or_else(|| gguf::tower_beside(&file));
            gguf::open(&file, options.max_model_len, tower.as_deref())
        }
    }
}

/// Where a model is.
pub(crate) enum Source {
    Folder(PathBuf),
    Gguf(PathBuf),
}

pub(crate) fn locate(path: &Path) -> Result<Source, ModelError> {
    let is_gguf = |path: &Path| path.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("gguf"));
    let metadata = std::fs::metadata(path).map_err(|error| ModelError::io(path, error))?;
    if metadata.is_file() {
        return if is_gguf(path) {
            Ok(Source::Gguf(path.to_owned()))
        } else {
            Err(ModelError::unsupported(path, "format", "this file", "a *.gguf file or a folder is"))
        };
    }
    if path.join("config.json").is_file() {
        return Ok(Source::Folder(path.to_owned()));
    }
    let entries = std::fs::read_dir(path).map_err(|error| ModelError::io(path, error))?;
    let files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| is_gguf(path) && !gguf::is_tower(path)).collect();
    if let Some(file) = gguf::one_model(&files) {
        return Ok(Source::Gguf(file.clone()));
    }
    let expected = "config.json, or exactly one *.gguf file or model in several";
    Err(ModelError::field(path, "*.gguf", format!("{} files", files.len()), expected))
}

/// Bytes read at the start, the middle and the end of every tensor.
const SAMPLE: usize = 256;

fn fingerprint(spec: &impl Serialize, maps: &[&TensorMap]) -> Result<String, ModelError> {
    let spec = serde_json::to_vec(spec)
        .map_err(|error| ModelError::field(&maps[0].origin, "spec", error, "a serializable spec"))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&spec);
    for (name, stored) in maps.iter().flat_map(|map| &map.tensors) {
        hasher.update(name.as_bytes());
        hasher.update(stored.kind.name().as_bytes());
        for size in &stored.shape {
            hasher.update(&(*size as u64).to_le_bytes());
        }
        for bytes in stored.pieces() {
            for start in [0, bytes.len() / 2, bytes.len().saturating_sub(SAMPLE)] {
                hasher.update(&bytes[start..bytes.len().min(start + SAMPLE)]);
            }
        }
    }
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}
