//! What a checkpoint is, without packing it: the resolved spec and what its tensors cost.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::checkpoint::{EmbedderDescription, EncoderCheckpoint};
use crate::encoder_spec::{EncoderSpec, Pooling};
use crate::load::{is_encoder, open, open_encoder};
use crate::options::LoadOptions;
use crate::spec::DecoderSpec;
use crate::vision::VisionSpec;
use crate::weights::TensorMap;
use crate::{GenerationDefaults, ModelError};

/// A checkpoint's spec and sizes.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// File or folder.
    pub path: PathBuf,
    /// File format.
    pub format: &'static str,
    /// What is computed.
    pub spec: ModelSpec,
    /// How the rows of a model that makes vectors become one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// Longest text, in tokens, of a model that makes vectors or scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest: Option<usize>,
    /// What the tower of a model that takes pictures computes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vision: Option<VisionSpec>,
    /// File of its own that the tower lies in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mmproj: Option<PathBuf>,
    /// Element kind to number of tensors, elements and bytes.
    pub kinds: BTreeMap<String, KindTotal>,
    /// All of `kinds` together.
    pub total: KindTotal,
    /// Sampling defaults.
    pub generation: GenerationDefaults,
}

/// What is computed; in JSON the fields of either alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ModelSpec {
    /// Tokens see those before them.
    Decoder(DecoderSpec),
    /// Tokens see both directions.
    Encoder(EncoderSpec),
}

impl ModelSpec {
    /// The decoder, if it is one.
    pub fn decoder(&self) -> Option<&DecoderSpec> {
        match self {
            Self::Decoder(spec) => Some(spec),
            Self::Encoder(_) => None,
        }
    }
}

/// Sums over tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KindTotal {
    /// Tensors.
    pub tensors: u64,
    /// Elements as the shapes count them.
    pub elements: u64,
    /// Stored bytes.
    pub bytes: u64,
}

/// Describes the checkpoint at `path`, with the tower in the file `mmproj` (`None`: as `load` finds it).
///
/// # Errors
/// What `load` or `load_encoder`, whichever is for this model, would say about the configuration and the headers.
pub fn inspect(path: &Path, mmproj: Option<&Path>) -> Result<Inspection, ModelError> {
    if is_encoder(path)? {
        return match mmproj {
            None => Ok(vectors(path, open_encoder(path, None)?)),
            Some(tower) => {
                let limit = "models that make vectors take no pictures";
                Err(ModelError::request("mmproj", tower.display(), limit))
            }
        };
    }
    let options = LoadOptions { mmproj: mmproj.map(Path::to_owned), ..LoadOptions::default() };
    let checkpoint = open(path, &options)?;
    let (kinds, total) = sums(std::iter::once(&checkpoint.tensors).chain(&checkpoint.tower_tensors));
    Ok(Inspection {
        path: path.to_owned(),
        format: checkpoint.format,
        spec: ModelSpec::Decoder(checkpoint.description.spec),
        pooling: None,
        longest: None,
        vision: checkpoint.vision.map(|vision| vision.spec),
        mmproj: checkpoint.tower_tensors.map(|tensors| tensors.origin),
        kinds,
        total,
        generation: checkpoint.text.generation,
    })
}

fn vectors(path: &Path, checkpoint: EncoderCheckpoint) -> Inspection {
    let (kinds, total) = sums(std::iter::once(&checkpoint.tensors));
    let longest = checkpoint.longest();
    let (spec, pooling) = match checkpoint.description {
        EmbedderDescription::Encoder(encoder) => {
            let pooling = encoder.spec.scorer.is_none().then_some(checkpoint.pooling);
            (ModelSpec::Encoder(encoder.spec), pooling)
        }
        EmbedderDescription::Decoder(decoder) => (ModelSpec::Decoder(decoder.spec), Some(checkpoint.pooling)),
    };
    Inspection {
        path: path.to_owned(),
        format: checkpoint.format,
        spec,
        pooling,
        longest: Some(longest),
        vision: None,
        mmproj: None,
        kinds,
        total,
        generation: checkpoint.text.generation,
    }
}

/// By kind, and together.
fn sums<'a>(maps: impl Iterator<Item = &'a TensorMap>) -> (BTreeMap<String, KindTotal>, KindTotal) {
    let mut kinds: BTreeMap<String, KindTotal> = BTreeMap::new();
    let mut total = KindTotal::default();
    for stored in maps.flat_map(|map| map.tensors.values()) {
        let elements = stored.shape.iter().fold(1u64, |product, &size| product.saturating_mul(size as u64));
        for sum in [kinds.entry(stored.kind.name()).or_default(), &mut total] {
            sum.tensors += 1;
            sum.elements = sum.elements.saturating_add(elements);
            sum.bytes += stored.pieces().iter().map(|bytes| bytes.len() as u64).sum::<u64>();
        }
    }
    (kinds, total)
}
