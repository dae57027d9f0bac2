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

/// Describes the checkpoint at `path`.
///
/// # Errors
/// What `load` would say about the configuration and the headers.
pub fn inspect(path: &Path) -> Result<Inspection, ModelError> {
    let checkpoint = open(path, &LoadOptions::default())?;
    let mut kinds: BTreeMap<String, KindTotal> = BTreeMap::new();
    let mut total = KindTotal::default();
    for stored in checkpoint.tensors.tensors.values() {
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
        kinds,
        total,
        generation: checkpoint.text.generation,
    })
}
