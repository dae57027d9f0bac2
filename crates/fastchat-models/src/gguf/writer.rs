//! Writes a GGUF file, version 3: metadata, descriptions of tensors, then their bytes one tensor after another, so that no
//! more than one is in memory. Knows no keys and no names.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use fastchat_kernels::WeightKind;

use super::header;
use crate::ModelError;

/// The alignment that readers assume of files that name none.
const ALIGNMENT: usize = 32;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    Whole(u32),
    Real(f32),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Wholes(Vec<u32>),
    Signed(Vec<i32>),
    Reals(Vec<f32>),
    Flags(Vec<bool>),
    Bytes(Vec<u8>),
    /// Type and value as another file holds them.
    Raw(Vec<u8>),
}

/// Metadata in the order of the file.
pub type Entries = Vec<(String, Entry)>;

/// A tensor to write.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub name: String,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    pub kind: WeightKind,
}

impl Planned {
    pub fn bytes(&self) -> usize {
        let (elements, size) = self.kind.block();
        self.shape.iter().product::<usize>() / elements * size
    }
}

impl From<&str> for Entry {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<usize> for Entry {
    fn from(value: usize) -> Self {
        // Sizes are bounded far below by the readers of configurations.
        Self::Whole(u32::try_from(value).unwrap_or(u32::MAX))
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn list<T>(out: &mut Vec<u8>, kind: u32, values: &[T], each: impl Fn(&mut Vec<u8>, &T)) {
    out.extend(9u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((values.len() as u64).to_le_bytes());
    for value in values {
        each(out, value);
    }
}

fn value(out: &mut Vec<u8>, entry: &Entry) {
    let mut scalar = |kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match entry {
        Entry::Whole(value) => scalar(4, &value.to_le_bytes()),
        Entry::Real(value) => scalar(6, &value.to_le_bytes()),
        Entry::Flag(value) => scalar(7, &[u8::from(*value)]),
        Entry::Text(value) => {
            scalar(8, &[]);
            text(out, value);
        }
        Entry::Texts(values) => list(out, 8, values, |out, value| text(out, value)),
        Entry::Wholes(values) => list(out, 4, values, |out, value| out.extend(value.to_le_bytes())),
        Entry::Signed(values) => list(out, 5, values, |out, value| out.extend(value.to_le_bytes())),
        Entry::Reals(values) => list(out, 6, values, |out, value| out.extend(value.to_le_bytes())),
        Entry::Flags(values) => list(out, 7, values, |out, value| out.push(u8::from(*value))),
        Entry::Bytes(values) => list(out, 0, values, |out, value| out.push(*value)),
        Entry::Raw(bytes) => out.extend(bytes),
    }
}

/// The metadata as a file holds it.
pub fn metadata(entries: &[(String, Entry)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, entry) in entries {
        text(&mut out, key);
        value(&mut out, entry);
    }
    out
}

/// Writes `path`, whose bytes appear under that name only when they are complete; `data` makes those of a tensor.
pub fn write(
    path: &Path,
    entries: &[(String, Entry)],
    tensors: &[Planned],
    mut data: impl FnMut(&Planned) -> Result<Vec<u8>, ModelError>,
) -> Result<u64, ModelError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let io = |error| ModelError::io(partial, error);
    let mut out = BufWriter::new(File::create(partial).map_err(io)?);
    let header = head(entries, tensors)?;
    out.write_all(&header).map_err(io)?;
    let mut written = header.len() as u64;
    let outcome = tensors.iter().try_for_each(|tensor| {
        let mut bytes = data(tensor)?;
        if bytes.len() != tensor.bytes() {
            let problem = format!("has {} bytes, its shape asks for {}: this is a bug", bytes.len(), tensor.bytes());
            return Err(ModelError::tensor(path, &tensor.name, problem));
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        written += bytes.len() as u64;
        out.write_all(&bytes).map_err(io)
    });
    let outcome = outcome.and_then(|()| out.flush().map_err(io));
    drop(out);
    match outcome.and_then(|()| std::fs::rename(partial, path).map_err(|error| ModelError::io(path, error))) {
        Ok(()) => Ok(written),
        Err(error) => {
            // The first error is the one to report.
            let _ = std::fs::remove_file(partial);
            Err(error)
        }
    }
}

fn head(entries: &[(String, Entry)], tensors: &[Planned]) -> Result<Vec<u8>, ModelError> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((entries.len() as u64).to_le_bytes());
    out.extend(metadata(entries));
    let mut offset = 0;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for size in tensor.shape.iter().rev() {
            out.extend((*size as u64).to_le_bytes());
        }
        let number = header::number(tensor.kind).ok_or_else(|| {
            ModelError::tensor(Path::new(""), &tensor.name, format!("{:?} has no number in GGUF", tensor.kind))
        })?;
        out.extend(number.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    Ok(out)
}
