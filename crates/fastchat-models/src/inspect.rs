//! What a checkpoint is, without packing it: the resolved spec and what its tensors cost.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::load::{LoadOptions, open};
use crate::spec::DecoderSpec;
use crate::vision::VisionSpec;
use crate::{GenerationDefaults, ModelError};

/// A checkpoint's spec and sizes.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// File or folder.
    pub path: PathBuf,
    /// File format.
    pub format: &'static str,
    /// What the decoder computes.
    pub spec: DecoderSpec,
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
/// What `load` would say about the configuration and the headers.
pub fn inspect(path: &Path, mmproj: Option<&Path>) -> Result<Inspection, ModelError> {
    let options = LoadOptions { mmproj: mmproj.map(Path::to_owned), ..LoadOptions::default() };
    let checkpoint = open(path, &options)?;
    let mut kinds: BTreeMap<String, KindTotal> = BTreeMap::new();
    let mut total = KindTotal::default();
    let maps = std::iter::once(&checkpoint.tensors).chain(&checkpoint.tower_tensors);
    for stored in maps.flat_map(|map| map.tensors.values()) {
        let elements = stored.shape.iter().fold(1u64, |product, &size| product.saturating_mul(size as u64));
        for sum in [kinds.entry(stored.kind.name()).or_default(), &mut total] {
            sum.tensors += 1;
            sum.elements = sum.elements.saturating_add(elements);
            sum.bytes += stored.pieces().iter().map(|bytes| bytes.len() as u64).sum::<u64>();
        }
    }
    Ok(Inspection {
        path: path.to_owned(),
        format: checkpoint.format,
        spec: checkpoint.description.spec,
        vision: checkpoint.vision.map(|vision| vision.spec),
        mmproj: checkpoint.tower_tensors.map(|tensors| tensors.origin),
        kinds,
        total,
        generation: checkpoint.text.generation,
    })
}
