//! Reads safetensors files without copying: the header is checked against the mapped file, tensors are ranges of it.
//! Owns the names of a shard index; knows no models.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use fastchat_kernels::{Bytes, MappedFile, WeightKind};
use safetensors::{Dtype, SafeTensors};

use crate::ModelError;
use crate::weights::{Stored, StoredKind, TensorMap};

/// Largest JSON file that is read whole; the index of a model of 100,000 tensors has about 10 MB.
pub(crate) const MAX_JSON: u64 = 64 << 20;

const INDEX: &str = "model.safetensors.index.json";

/// The weight files of a folder: those of the index, else `model.safetensors`, else the only one there is.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let index = folder.join(INDEX);
    if index.is_file() {
        return indexed(folder, &index);
    }
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let entries = std::fs::read_dir(folder).map_err(|error| ModelError::io(folder, error))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.extension().is_some_and(|ext| ext == "safetensors"));
    match found.len() {
        1 => Ok(found),
        n => Err(ModelError::field(folder, "*.safetensors", format!("{n} files"), format!("{INDEX} or one file"))),
    }
}

fn indexed(folder: &Path, index: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let json = read_json(index)?;
    let bad = |value: &dyn std::fmt::Display, expected| ModelError::field(index, "weight_map", value, expected);
    let Some(map) = json.get("weight_map").and_then(serde_json::Value::as_object) else {
        return Err(bad(&"nothing", "a table of tensor name to file name"));
    };
    let mut names = BTreeSet::new();
    for value in map.values() {
        let name = value.as_str().ok_or_else(|| bad(value, "a file name"))?;
        // A plain name: an index must not reach outside its folder.
        let mut parts = Path::new(name).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) || name.contains(['/', '\\']) {
            return Err(bad(&name, "a file name without folders"));
        }
        names.insert(name);
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// A JSON object from a file of bounded size.
pub(crate) fn read_json(path: &Path) -> Result<serde_json::Map<String, serde_json::Value>, ModelError> {
    let size = std::fs::metadata(path).map_err(|error| ModelError::io(path, error))?.len();
    if size > MAX_JSON {
        return Err(ModelError::field(path, "file size", size, format!("at most {MAX_JSON} bytes")));
    }
    let text = std::fs::read(path).map_err(|error| ModelError::io(path, error))?;
    serde_json::from_slice(&text).map_err(|error| ModelError::field(path, "json", error, "an object"))
}

/// Maps `files` and collects their tensors; a name in two files is an error.
pub fn open(origin: &Path, files: &[PathBuf]) -> Result<TensorMap, ModelError> {
    let mut map = TensorMap { origin: origin.to_owned(), ..TensorMap::default() };
    for path in files {
        let file = MappedFile::open(path).map_err(|error| ModelError::io(path, error))?;
        read(&file, &mut map)?;
    }
    Ok(map)
}

fn read(file: &Arc<MappedFile>, map: &mut TensorMap) -> Result<(), ModelError> {
    let path: Arc<Path> = file.path().into();
    let bad = |error: safetensors::SafeTensorError| ModelError::field(&path, "header", error, "a safetensors header");
    let (header, metadata) = SafeTensors::read_metadata(file.as_slice()).map_err(bad)?;
    let start = header + size_of::<u64>();
    for (name, info) in metadata.tensors() {
        let (from, to) = info.data_offsets;
        let range = start.checked_add(from).zip(start.checked_add(to));
        let bytes = range.and_then(|(from, to)| Bytes::mapped(file, from..to));
        let Some(bytes) = bytes else {
            return Err(ModelError::tensor(&path, &name, format!("its bytes {from}..{to} leave the file")));
        };
        let shape = if info.shape.is_empty() { vec![1] } else { info.shape.clone() };
        let stored = Stored { shape, kind: kind(info.dtype), bytes, file: path.clone() };
        if map.tensors.insert(name.clone(), stored).is_some() {
            return Err(ModelError::tensor(&path, &name, "is stored twice"));
        }
    }
    Ok(())
}

fn kind(dtype: Dtype) -> StoredKind {
    match dtype {
        Dtype::F32 => StoredKind::Weight(WeightKind::F32),
        Dtype::F16 => StoredKind::Weight(WeightKind::F16),
        Dtype::BF16 => StoredKind::Weight(WeightKind::BF16),
        other => StoredKind::Other(format!("{other:?}")),
    }
}
