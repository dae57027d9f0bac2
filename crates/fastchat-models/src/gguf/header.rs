//! Reads the header of a mapped GGUF file, versions 2 and 3: metadata and tensors, zero-copy. Every count, length and
//! offset is checked against the file before anything is allocated. Knows no keys but `general.alignment`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fastchat_kernels::{Bytes, MappedFile, WeightKind};

use super::cursor::{Cursor, Problem};
use super::value::Value;
use crate::ModelError;
use crate::weights::{Stored, StoredKind, TensorMap};

/// More keys than any exporter writes.
const MAX_KEYS: u64 = 1 << 16;
/// Longest key; the longest in use have 60 bytes.
const MAX_KEY: u64 = 1024;
/// More tensors than the largest mixtures have with one tensor per expert.
const MAX_TENSORS: u64 = 1 << 18;
/// Four times the format's own limit on tensor names.
const MAX_NAME: u64 = 256;
/// Dimensions of a tensor, by the format.
const MAX_DIMS: u32 = 4;
/// Largest alignment taken for meant: a huge page.
const MAX_ALIGNMENT: i128 = 2 << 20;
/// Least bytes of a key with its value: an empty key, a type, a byte.
const LEAST_ENTRY: u64 = 8 + 4 + 1;
/// Least bytes of a tensor's description: an empty name, one dimension, type and offset.
const LEAST_TENSOR: u64 = 8 + 4 + 8 + 4 + 8;

/// Metadata by key.
pub type Metadata<'a> = BTreeMap<&'a str, Value<'a>>;

/// A header, read and checked.
#[derive(Debug)]
pub struct Header<'a> {
    pub metadata: Metadata<'a>,
    /// Keys in the order of the file, with type and value as stored.
    pub stored: Raw<'a>,
    pub tensors: TensorMap,
}

/// Reads the header of `file`.
pub fn read(file: &Arc<MappedFile>) -> Result<Header<'_>, ModelError> {
    let path = file.path();
    let bad = |field: &str, problem: Problem| ModelError::field(path, field, problem.value, problem.expected);
    let mut cursor = Cursor::new(file.as_slice());
    let magic = cursor.take(4).map_err(|problem| bad("magic", problem))?;
    if magic != b"GGUF" {
        return Err(bad("magic", Problem::new(format_args!("{magic:?}"), "the letters GGUF")));
    }
    let version = cursor.u32().map_err(|problem| bad("version", problem))?;
    match version {
        2 | 3 => {}
        _ if matches!(version.swap_bytes(), 1..=3) => {
            let value = format!("{} in big-endian order", version.swap_bytes());
            return Err(ModelError::unsupported(path, "version", value, "little-endian files are"));
        }
        _ => return Err(ModelError::unsupported(path, "version", version, "versions 2 and 3 are")),
    }
    let tensors = cursor.count(MAX_TENSORS, LEAST_TENSOR).map_err(|problem| bad("tensor count", problem))?;
    let keys = cursor.count(MAX_KEYS, LEAST_ENTRY).map_err(|problem| bad("key count", problem))?;
    let (metadata, stored) = metadata(&mut cursor, keys, path)?;
    let infos = (0..tensors).map(|index| Info::read(&mut cursor, index, path)).collect::<Result<Vec<_>, _>>()?;
    let alignment = alignment(&metadata, path)?;
    let start = cursor.position().next_multiple_of(alignment);
    let tensors = place(infos, file, start, alignment)?;
    Ok(Header { metadata, stored, tensors })
}

/// Keys and values as stored.
type Raw<'a> = Vec<(&'a str, &'a [u8])>;

/// Reads `count` keys with their values.
pub fn metadata<'a>(cursor: &mut Cursor<'a>, count: usize, path: &Path) -> Result<(Metadata<'a>, Raw<'a>), ModelError> {
    let (mut map, mut stored) = (Metadata::new(), Vec::new());
    for index in 0..count {
        let field = format!("key {index}");
        let bad = |field: &str, problem: Problem| ModelError::field(path, field, problem.value, problem.expected);
        let text = cursor.text(MAX_KEY).map_err(|problem| bad(&field, problem))?;
        // Keys stand in messages, so that they must not forge any.
        let printable = std::str::from_utf8(text).ok().filter(|key| key.bytes().all(|byte| byte.is_ascii_graphic()));
        let Some(key) = printable else {
            return Err(bad(&field, Problem::new(String::from_utf8_lossy(text), "printable ASCII")));
        };
        let mut from = cursor.clone();
        let value = cursor.u32().and_then(|kind| Value::read(kind, cursor)).map_err(|problem| bad(key, problem))?;
        let len = cursor.position() - from.position();
        stored.push((key, from.take(len as u64).map_err(|problem| bad(key, problem))?));
        if map.insert(key, value).is_some() {
            return Err(ModelError::field(path, key, "two values", "each key once"));
        }
    }
    Ok((map, stored))
}

fn alignment(metadata: &Metadata, path: &Path) -> Result<usize, ModelError> {
    const KEY: &str = "general.alignment";
    match metadata.get(KEY) {
        None => Ok(32),
        Some(Value::Whole(value)) if (1..=MAX_ALIGNMENT).contains(value) && (*value as usize).is_power_of_two() => {
            Ok(*value as usize)
        }
        Some(other) => Err(ModelError::field(path, KEY, other.show(), format!("a power of two up to {MAX_ALIGNMENT}"))),
    }
}

/// A tensor's description as stored.
struct Info<'a> {
    name: &'a str,
    /// Slowest dimension first.
    shape: Vec<usize>,
    kind: StoredKind,
    bytes: usize,
    offset: u64,
}

impl<'a> Info<'a> {
    fn read(cursor: &mut Cursor<'a>, index: usize, path: &Path) -> Result<Self, ModelError> {
        let field = format!("name of tensor {index}");
        let text = cursor
            .text(MAX_NAME)
            .map_err(|problem| ModelError::field(path, &field, problem.value, problem.expected))?;
        let name = std::str::from_utf8(text).map_err(|error| ModelError::field(path, &field, error, "UTF-8 text"))?;
        Self::describe(name, cursor).map_err(|problem| {
            ModelError::tensor(path, name, format!("has {}: expected {}", problem.value, problem.expected))
        })
    }

    fn describe(name: &'a str, cursor: &mut Cursor<'a>) -> Result<Self, Problem> {
        let dims = cursor.u32()?;
        if !(1..=MAX_DIMS).contains(&dims) {
            return Err(Problem::new(format_args!("{dims} dimensions"), format_args!("from 1 to {MAX_DIMS}")));
        }
        let mut shape = (0..dims).map(|_| cursor.u64()).collect::<Result<Vec<_>, _>>()?;
        let (kind, elements, size) = cursor.u32().and_then(kind)?;
        let columns = shape[0];
        if !columns.is_multiple_of(elements) {
            let value = format!("rows of {columns} elements of kind {}", kind.name());
            return Err(Problem::new(value, format_args!("a multiple of {elements}")));
        }
        let product = shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim).filter(|&all| all > 0));
        let bytes =
            product.and_then(|all| (all / elements).checked_mul(size)).and_then(|all| usize::try_from(all).ok());
        let Some(bytes) = bytes else {
            return Err(Problem::new(format_args!("shape {shape:?}"), "sizes above 0 whose product fits a file"));
        };
        shape.reverse();
        let shape = shape.into_iter().map(|dim| dim as usize).collect();
        Ok(Self { name, shape, kind, bytes, offset: cursor.u64()? })
    }
}

/// Gives every tensor its bytes: inside the file, aligned, under one name, and not over another's.
fn place(
    mut infos: Vec<Info>,
    file: &Arc<MappedFile>,
    start: usize,
    alignment: usize,
) -> Result<TensorMap, ModelError> {
    let path: Arc<Path> = file.path().into();
    let mut map = TensorMap { origin: path.to_path_buf(), ..TensorMap::default() };
    infos.sort_by_key(|info| info.offset);
    let mut end = start;
    let mut before = "the header";
    for info in infos {
        let bad = |problem: String| Err(ModelError::tensor(&path, info.name, problem));
        let Some(from) = usize::try_from(info.offset).ok().and_then(|offset| start.checked_add(offset)) else {
            return bad(format!("has offset {}: expected one inside the file of {} bytes", info.offset, file.len()));
        };
        if !from.is_multiple_of(alignment) {
            return bad(format!("has offset {}: expected a multiple of {alignment}", info.offset));
        }
        let range = from.checked_add(info.bytes).map(|to| from..to);
        let Some(bytes) = range.and_then(|range| Bytes::mapped(file, range)) else {
            let room = file.len().saturating_sub(from);
            return bad(format!("has {} bytes at offset {}: the file has {room} there", info.bytes, info.offset));
        };
        if from < end {
            return bad(format!("has offset {}: its bytes overlap those of {before}", info.offset));
        }
        (end, before) = (from + info.bytes, info.name);
        let stored = Stored { shape: info.shape, kind: info.kind, bytes, file: path.clone() };
        if map.tensors.insert(info.name.to_owned(), stored).is_some() {
            return bad("is stored twice".to_owned());
        }
    }
    Ok(map)
}

/// GGML's numbers for the kinds that layers are packed from.
const KINDS: [(u32, WeightKind); 24] = {
    use WeightKind as W;
    [
        (0, W::F32),
        (1, W::F16),
        (2, W::Q4_0),
        (3, W::Q4_1),
        (6, W::Q5_0),
        (7, W::Q5_1),
        (8, W::Q8_0),
        (10, W::Q2_K),
        (11, W::Q3_K),
        (12, W::Q4_K),
        (13, W::Q5_K),
        (14, W::Q6_K),
        (15, W::Q8_K),
        (16, W::IQ2_XXS),
        (17, W::IQ2_XS),
        (18, W::IQ3_XXS),
        (19, W::IQ1_S),
        (20, W::IQ4_NL),
        (21, W::IQ3_S),
        (22, W::IQ2_S),
        (23, W::IQ4_XS),
        (29, W::IQ1_M),
        (30, W::BF16),
        (39, W::MXFP4),
    ]
};

/// GGML's number of a kind.
pub fn number(kind: WeightKind) -> Option<u32> {
    KINDS.iter().find(|(_, known)| *known == kind).map(|(number, _)| *number)
}

/// Element kind by GGML's number: (kind, elements of a block, bytes of a block).
fn kind(number: u32) -> Result<(StoredKind, u64, u64), Problem> {
    let Some((_, weight)) = KINDS.iter().find(|(known, _)| *known == number) else { return other(number) };
    let (elements, bytes) = weight.block();
    Ok((StoredKind::Weight(*weight), elements as u64, bytes as u64))
}

/// Kinds of known size that no layer is packed from.
fn other(number: u32) -> Result<(StoredKind, u64, u64), Problem> {
    let (name, elements, bytes) = match number {
        9 => ("Q8_1", 32, 36),
        24 => ("I8", 1, 1),
        25 => ("I16", 1, 2),
        26 => ("I32", 1, 4),
        27 => ("I64", 1, 8),
        28 => ("F64", 1, 8),
        34 => ("TQ1_0", 256, 54),
        35 => ("TQ2_0", 256, 66),
        _ => return Err(Problem::new(format_args!("element type {number}"), "a type of this version of GGUF")),
    };
    Ok((StoredKind::Other(name.to_owned()), elements, bytes))
}
