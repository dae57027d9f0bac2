//! Typed, bounded access to the metadata of a GGUF file. Every error names file, key, value and limit. Knows the
//! architecture's prefix, no architectures.

use std::path::Path;

use fastchat_kernels::WeightKind;

use super::header::{Header, Metadata};
use super::value::{List, Value};
use crate::ModelError;
use crate::weights::{Stored, StoredKind, TensorMap};

/// Above any width, head count or vocabulary in use; products of four such numbers still fit in 128 bits.
const MAX_SIZE: usize = 1 << 26;
/// Above any layer count in use; layers are expanded in memory.
const MAX_LAYERS: usize = 1024;
/// Above any expert count in use.
const MAX_EXPERTS: usize = 4096;

/// Metadata and tensors of one file, seen by an architecture.
#[derive(Debug)]
pub struct Meta<'a> {
    pub file: &'a Path,
    /// Value of `general.architecture`.
    pub arch: &'a str,
    /// Longest sequence to serve, where the caller limits it.
    pub max_model_len: Option<usize>,
    values: &'a Metadata<'a>,
    tensors: &'a TensorMap,
}

impl<'a> Meta<'a> {
    pub fn new(header: &'a Header<'a>, file: &'a Path, max_model_len: Option<usize>) -> Result<Self, ModelError> {
        let values = &header.metadata;
        let mut meta = Self { file, arch: "", max_model_len, values, tensors: &header.tensors };
        meta.arch = meta
            .text("general.architecture")?
            .ok_or_else(|| ModelError::field(file, "general.architecture", "nothing", "the name of an architecture"))?;
        Ok(meta)
    }

    /// The full name of a key: those without a dot in front belong to the architecture only when they are written `.key`.
    fn key(&self, key: &str) -> String {
        if key.starts_with('.') { format!("{}{key}", self.arch) } else { key.to_owned() }
    }

    /// The value of a key; `.key` is the architecture's own.
    pub fn get(&self, key: &str) -> Option<&'a Value<'a>> {
        self.values.get(self.key(key).as_str())
    }

    /// An error about a value.
    pub fn bad(&self, key: &str, value: impl ToString, expected: impl ToString) -> ModelError {
        ModelError::field(self.file, &self.key(key), value, expected)
    }

    /// An error about something this engine does not do.
    pub fn unsupported(&self, key: &str, value: impl ToString, expected: impl ToString) -> ModelError {
        ModelError::unsupported(self.file, &self.key(key), value, expected)
    }

    /// A size from 1 to 2^26.
    pub fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.size_opt(key)?.ok_or_else(|| self.bad(key, "nothing", format!("a whole number from 1 to {MAX_SIZE}")))
    }

    /// A size, or a default.
    pub fn size_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        Ok(self.size_opt(key)?.unwrap_or(default))
    }

    /// A size that may be absent.
    pub fn size_opt(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.get(key).map(|value| self.whole(key, value, (1, MAX_SIZE))).transpose()
    }

    /// A count that may be 0.
    pub fn count_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        self.get(key).map_or(Ok(default), |value| self.whole(key, value, (0, MAX_SIZE)))
    }

    fn whole(&self, key: &str, value: &Value, (least, most): (usize, usize)) -> Result<usize, ModelError> {
        match value {
            Value::Whole(n) if (least as i128..=most as i128).contains(n) => Ok(*n as usize),
            other => Err(self.bad(key, other.show(), format!("a whole number from {least} to {most}"))),
        }
    }

    /// One size for all layers, or a list with one per layer.
    pub fn per_layer(&self, key: &str, layers: usize) -> Result<Option<Vec<usize>>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::List(list)) => {
                if list.len() < layers {
                    return Err(self.bad(key, format!("{} entries", list.len()), format!("{layers} entries")));
                }
                let size = |entry| self.whole(key, &self.entry(key, entry)?, (1, MAX_SIZE));
                list.values().take(layers).map(size).collect::<Result<_, _>>().map(Some)
            }
            Some(value) => Ok(Some(vec![self.whole(key, value, (1, MAX_SIZE))?; layers])),
        }
    }

    fn entry(&self, key: &str, entry: Result<Value<'a>, super::cursor::Problem>) -> Result<Value<'a>, ModelError> {
        entry.map_err(|problem| self.bad(key, problem.value, problem.expected))
    }

    /// A token id that may be absent.
    pub fn token_id(&self, key: &str) -> Result<Option<u32>, ModelError> {
        self.get(key).map(|value| Ok(self.whole(key, value, (0, MAX_SIZE))? as u32)).transpose()
    }

    /// A finite number that may be absent.
    pub fn float_opt(&self, key: &str) -> Result<Option<f32>, ModelError> {
        let number = |value: &Value| match value {
            Value::Real(x) if (*x as f32).is_finite() => Ok(*x as f32),
            Value::Whole(n) => Ok(*n as f32),
            other => Err(self.bad(key, other.show(), "a finite number")),
        };
        self.get(key).map(number).transpose()
    }

    /// A number above 0 that may be absent.
    pub fn positive_opt(&self, key: &str) -> Result<Option<f32>, ModelError> {
        match self.float_opt(key)? {
            Some(x) if x <= 0.0 => Err(self.bad(key, x, "a number above 0")),
            other => Ok(other),
        }
    }

    /// A number above 0, or a default.
    pub fn positive_or(&self, key: &str, default: f32) -> Result<f32, ModelError> {
        Ok(self.positive_opt(key)?.unwrap_or(default))
    }

    /// Yes or no, or a default.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Flag(flag)) => Ok(*flag),
            Some(other) => Err(self.bad(key, other.show(), "true or false")),
        }
    }

    /// A string that may be absent.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.get(key).map(|value| self.string(key, value)).transpose()
    }

    fn string(&self, key: &str, value: &Value<'a>) -> Result<&'a str, ModelError> {
        match value {
            Value::Text(bytes) => std::str::from_utf8(bytes).map_err(|error| self.bad(key, error, "UTF-8 text")),
            other => Err(self.bad(key, other.show(), "a string")),
        }
    }

    /// A list that may be absent.
    pub fn list(&self, key: &str) -> Result<Option<&'a List<'a>>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::List(list)) => Ok(Some(list)),
            Some(other) => Err(self.bad(key, other.show(), "a list")),
        }
    }

    /// Every entry of a list, empty when it is absent; more than `limit` entries are an error.
    fn entries<T>(
        &self,
        key: &str,
        limit: usize,
        decode: impl Fn(&Value<'a>) -> Result<T, ModelError>,
    ) -> Result<Vec<T>, ModelError> {
        let Some(list) = self.list(key)? else { return Ok(Vec::new()) };
        if list.len() > limit {
            return Err(self.bad(key, format!("{} entries", list.len()), format!("at most {limit} entries")));
        }
        list.values().map(|entry| decode(&self.entry(key, entry)?)).collect()
    }

    /// A list of strings of at most `longest` bytes each.
    pub fn texts(&self, key: &str, limit: usize, longest: usize) -> Result<Vec<String>, ModelError> {
        self.entries(key, limit, |value| match self.string(key, value)? {
            text if text.len() <= longest => Ok(text.to_owned()),
            text => Err(self.bad(key, format!("{} bytes", text.len()), format!("entries of at most {longest} bytes"))),
        })
    }

    /// A list of numbers.
    pub fn floats(&self, key: &str, limit: usize) -> Result<Vec<f32>, ModelError> {
        self.entries(key, limit, |value| match value {
            Value::Real(x) if !x.is_nan() => Ok(*x as f32),
            other => Err(self.bad(key, other.show(), "numbers")),
        })
    }

    /// A list of whole numbers of 32 bits.
    pub fn wholes(&self, key: &str, limit: usize) -> Result<Vec<i32>, ModelError> {
        self.entries(key, limit, |value| match value {
            Value::Whole(n) => i32::try_from(*n).map_err(|_| self.bad(key, n, "numbers of 32 bits")),
            Value::Flag(flag) => Ok(i32::from(*flag)),
            other => Err(self.bad(key, other.show(), "whole numbers")),
        })
    }

    /// Layers that predict the next token; draft layers past them are not run.
    pub fn layers(&self) -> Result<usize, ModelError> {
        let (all, drafts) = (self.size(".block_count")?, self.count_or(".nextn_predict_layers", 0)?);
        match all.checked_sub(drafts) {
            Some(n @ 1..=MAX_LAYERS) => Ok(n),
            _ => Err(self.bad(".block_count", all, format!("{drafts} draft layers and from 1 to {MAX_LAYERS} others"))),
        }
    }

    /// Experts in all and per token.
    pub fn experts(&self) -> Result<(usize, usize), ModelError> {
        let (experts, used) = (self.size(".expert_count")?, self.size(".expert_used_count")?);
        match (experts, used) {
            _ if experts > MAX_EXPERTS => Err(self.bad(".expert_count", experts, format!("at most {MAX_EXPERTS}"))),
            _ if used > experts => Err(self.bad(".expert_used_count", used, format!("at most the {experts} experts"))),
            both => Ok(both),
        }
    }

    /// A stored tensor.
    pub fn tensor(&self, name: &str) -> Option<&'a Stored> {
        self.tensors.tensors.get(name)
    }

    /// Whether a tensor is stored.
    pub fn has(&self, name: &str) -> bool {
        self.tensor(name).is_some()
    }

    /// A short stored vector of numbers above 0, such as rope factors, which become part of the spec.
    pub fn factors(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>, ModelError> {
        let Some(stored) = self.tensor(name) else { return Ok(None) };
        let bad = |problem: String| ModelError::tensor(self.file, name, problem);
        if !matches!(stored.kind, StoredKind::Weight(WeightKind::F32)) || stored.shape[..] != [len] {
            let (kind, shape) = (stored.kind.name(), &stored.shape);
            return Err(bad(format!("is {kind} of shape {shape:?}: expected F32 of shape [{len}]")));
        }
        let (chunks, _) = stored.bytes.as_chunks();
        let values: Vec<f32> = chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        match values.iter().find(|x| !(x.is_finite() && **x > 0.0)) {
            Some(value) => Err(bad(format!("holds {value}: expected numbers above 0"))),
            None => Ok(Some(values)),
        }
    }
}
