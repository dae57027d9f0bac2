//! A model in the layout of one file to write: what its keys are, which slots it has, and where they come from. Knows
//! no formats but GGUF's keys and names, which `gguf` made.

use std::collections::BTreeMap;
use std::path::Path;

use fastchat_kernels::WeightKind;
use serde::Serialize;

use super::kinds::{FileKind, file_type, le, written};
use super::plan::{Reader, Tensor, pairs, tensors};
use crate::ModelError;
use crate::gguf::{self, DecoderLayout, EncoderLayout, Entries, Entry, Factors, Planned};
use crate::names::Names;
use crate::slots::{Use, encoder_slots, slots};
use crate::weights::{TensorMap, Weights};

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
    pub left_out: Option<String>,
}

impl Converted {
    /// Of a file without gaps.
    pub(super) fn new(planned: &[Planned], bytes: u64) -> Self {
        let mut kinds = BTreeMap::new();
        for tensor in planned {
            *kinds.entry(format!("{:?}", tensor.kind)).or_default() += 1;
        }
        Self { tensors: planned.len(), bytes, kinds, left_out: None }
    }
}

/// A file to write.
pub struct Draft<'a> {
    path: &'a Path,
    stored: &'a TensorMap,
    arch: &'static str,
    /// All but the general ones.
    entries: Entries,
    /// Small tensors that belong to the keys.
    factors: Factors,
    uses: Vec<Use>,
    /// Of what is stored, and of the file.
    names: (Names, Names),
    /// By layer: (elements of a head, rotated ones) where rotated pairs must come to lie side by side.
    pairs: Vec<Option<(usize, usize)>>,
}

impl<'a> Draft<'a> {
    pub fn of_decoder(
        path: &'a Path,
        stored: &'a TensorMap,
        layout: DecoderLayout,
        text: Entries,
    ) -> Result<Self, ModelError> {
        let DecoderLayout { arch, mut entries, factors, source, target } = layout;
        entries.extend(text);
        Ok(Self {
            path,
            stored,
            arch,
            entries,
            factors,
            uses: slots(&target.spec),
            pairs: pairs(path, &source.spec, &target.spec)?,
            names: (source.names, target.names),
        })
    }

    pub fn of_encoder(path: &'a Path, stored: &'a TensorMap, layout: EncoderLayout, text: Entries) -> Self {
        let EncoderLayout { arch, mut entries, source, target } = layout;
        entries.extend(text);
        Self {
            path,
            stored,
            arch,
            entries,
            factors: Factors::new(),
            uses: encoder_slots(&target.spec),
            pairs: Vec::new(),
            names: (source.names, target.names),
        }
    }

    /// The same where rows become one vector.
    pub fn pooled(mut self, kind: usize) -> Self {
        self.entries.push((format!("{}.pooling_type", self.arch), kind.into()));
        self
    }

    pub fn write(self, out: &Path, kind: Option<FileKind>) -> Result<Converted, ModelError> {
        let weights = Weights::new(self.stored, &self.names.0, None);
        let reader = Reader::new(&weights, self.pairs);
        let tensors = tensors(self.path, &self.uses, &self.names.1)?;
        let mut planned = Vec::with_capacity(tensors.len() + self.factors.len());
        for (name, values) in &self.factors {
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
        let mut entries = general(self.path, self.arch, kind);
        entries.extend(self.entries);
        let by_name: BTreeMap<&str, &Tensor> = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        let mut left = planned.len();
        let bytes = gguf::write(out, &entries, &planned, |planned| {
            let bytes = match by_name.get(planned.name.as_str()) {
                Some(tensor) => reader.bytes(tensor, planned.kind)?,
                None => {
                    self.factors.iter().filter(|(name, _)| *name == planned.name).flat_map(|(_, v)| le(v)).collect()
                }
            };
            left -= 1;
            if left == 0 {
                weights.finish()?;
            }
            Ok(bytes)
        })?;
        Ok(Converted::new(&planned, bytes))
    }
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
