//! Models cut into several GGUF files: the first holds the metadata, every one some of the tensors. Owns the names of the
//! files.

use std::path::{Path, PathBuf};

use fastchat_kernels::MappedFile;

use super::header::{self, Header};
use super::value::Value;
use crate::ModelError;

/// More files than any model is cut into.
const MAX_FILES: i128 = 1024;

/// (number, count) of the file among its like; `None` for a whole model.
pub fn place(header: &Header, path: &Path) -> Result<Option<(usize, usize)>, ModelError> {
    let whole = |key: &str, default, range: std::ops::RangeInclusive<i128>| match header.metadata.get(key) {
        None => Ok(default),
        Some(Value::Whole(n)) if range.contains(n) => Ok(*n as usize),
        Some(other) => {
            let expected = format!("a whole number from {} to {}", range.start(), range.end());
            Err(ModelError::field(path, key, other.show(), expected))
        }
    };
    let count = whole("split.count", 0, 0..=MAX_FILES)?;
    if count < 2 {
        return Ok(None);
    }
    Ok(Some((whole("split.no", 0, 0..=count as i128 - 1)?, count)))
}

/// The files of the model that `path` is one of `count` of: `NAME-00001-of-00003.gguf` and so on.
pub fn files(path: &Path, (number, count): (usize, usize)) -> Result<Vec<PathBuf>, ModelError> {
    let suffix = |number: usize| format!("-{:05}-of-{count:05}.gguf", number + 1);
    let name = path.file_name().and_then(|name| name.to_str());
    let Some(stem) = name.and_then(|name| name.strip_suffix(&suffix(number))) else {
        let expected = format!("a file name that ends in {}", suffix(number));
        return Err(ModelError::field(path, "split.no", number, expected));
    };
    Ok((0..count).map(|number| path.with_file_name(format!("{stem}{}", suffix(number)))).collect())
}

/// The file to open where `files` are those of one model.
pub fn one_model(files: &[PathBuf]) -> Option<&PathBuf> {
    let suffix = format!("-{:05}-of-{:05}.gguf", 1, files.len());
    let first = |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(&suffix));
    match files {
        [file] => Some(file),
        _ => files.iter().find(first),
    }
}

/// Adds the tensors of all files but the first to those of the first.
pub fn join(first: &mut Header, files: &[PathBuf]) -> Result<(), ModelError> {
    for (number, path) in files.iter().enumerate().skip(1) {
        let file = MappedFile::open(path).map_err(|error| ModelError::io(path, error))?;
        let part = header::read(&file)?;
        let expected = (number, files.len());
        if place(&part, path)? != Some(expected) {
            let value = part.metadata.get("split.no").map_or("nothing".to_owned(), Value::show);
            return Err(ModelError::field(path, "split.no", value, format!("{number} of {}", files.len())));
        }
        for (name, stored) in part.tensors.tensors {
            if first.tensors.tensors.contains_key(&name) {
                return Err(ModelError::tensor(path, &name, "is stored twice"));
            }
            first.tensors.tensors.insert(name, stored);
        }
    }
    Ok(())
}
