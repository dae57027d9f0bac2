//! Metadata values of a GGUF file, as ranges of the file: nothing is copied or decoded before somebody asks for it.

use super::cursor::{Cursor, Problem};

/// Longest list in the metadata; the largest vocabularies in use have 262,144 tokens and 600,000 merges.
const MAX_LIST: u64 = 1 << 23;
/// Longest single string; token lists are limited by their own users.
pub const MAX_TEXT: u64 = 16 << 20;

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Any integer type.
    Whole(i128),
    /// Any float type.
    Real(f64),
    /// Yes or no.
    Flag(bool),
    /// A string, perhaps not UTF-8.
    Text(&'a [u8]),
    /// A list of numbers, flags or strings, undecoded.
    List(List<'a>),
}

/// A list; its extent has been checked.
#[derive(Clone, Debug, PartialEq)]
pub struct List<'a> {
    kind: u32,
    count: usize,
    bytes: &'a [u8],
}

const TEXT: u32 = 8;
const LIST: u32 = 9;

/// Bytes of a number or flag of type `kind`.
fn size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

impl<'a> Value<'a> {
    /// A value of type `kind`.
    pub fn read(kind: u32, cursor: &mut Cursor<'a>) -> Result<Self, Problem> {
        match kind {
            TEXT => cursor.text(MAX_TEXT).map(Self::Text),
            LIST => List::read(cursor).map(Self::List),
            _ => {
                let size = size(kind).ok_or_else(|| unknown(kind))?;
                scalar(kind, cursor.take(size)?)
            }
        }
    }

    /// Short form for messages.
    pub fn show(&self) -> String {
        match self {
            Self::Whole(value) => value.to_string(),
            Self::Real(value) => value.to_string(),
            Self::Flag(value) => value.to_string(),
            Self::Text(bytes) => String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned(),
            Self::List(list) => format!("a list of {}", list.count),
        }
    }
}

fn unknown(kind: u32) -> Problem {
    Problem::new(format_args!("a value of type {kind}"), "a type from 0 to 12")
}

/// Decodes a number or flag; `bytes` is as long as its type asks for.
fn scalar<'a>(kind: u32, bytes: &[u8]) -> Result<Value<'a>, Problem> {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let raw = u64::from_le_bytes(wide);
    Ok(match kind {
        0 | 2 | 4 | 10 => Value::Whole(i128::from(raw)),
        1 => Value::Whole(i128::from(raw as i8)),
        3 => Value::Whole(i128::from(raw as i16)),
        5 => Value::Whole(i128::from(raw as i32)),
        11 => Value::Whole(i128::from(raw as i64)),
        6 => Value::Real(f64::from(f32::from_bits(raw as u32))),
        12 => Value::Real(f64::from_bits(raw)),
        7 if raw > 1 => return Err(Problem::new(format_args!("flag {raw}"), "0 or 1")),
        7 => Value::Flag(raw == 1),
        _ => return Err(unknown(kind)),
    })
}

impl<'a> List<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Problem> {
        let kind = cursor.u32()?;
        if kind == LIST {
            return Err(Problem::new("a list of lists", "a list of numbers, flags or strings"));
        }
        if kind == TEXT {
            let count = cursor.count(MAX_LIST, size_of::<u64>() as u64)?;
            let mut scan = cursor.clone();
            for _ in 0..count {
                scan.text(MAX_TEXT)?;
            }
            let bytes = cursor.take((scan.position() - cursor.position()) as u64)?;
            return Ok(Self { kind, count, bytes });
        }
        let size = size(kind).ok_or_else(|| unknown(kind))?;
        let count = cursor.count(MAX_LIST, size)?;
        Ok(Self { kind, count, bytes: cursor.take(count as u64 * size)? })
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.count
    }

    /// The entries as values, decoded one by one.
    pub fn values(&self) -> impl Iterator<Item = Result<Value<'a>, Problem>> {
        let (kind, mut cursor) = (self.kind, Cursor::new(self.bytes));
        (0..self.count).map(move |_| Value::read(kind, &mut cursor))
    }
}
