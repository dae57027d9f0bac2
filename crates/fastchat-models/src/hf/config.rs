//! Typed, bounded access to the fields of a config.json. Every number is checked where it enters and every error names
//! file, field, value and limit. Knows no families.

use std::path::{Path, PathBuf};

use fastchat_kernels::Activation;
use serde_json::{Map, Value};

use crate::ModelError;
use crate::safetensors::read_json;

/// Above any width, head count or vocabulary in use; products of four such numbers still fit in 128 bits.
const MAX_SIZE: u64 = 1 << 26;
/// Above any layer count in use; layers are expanded in memory.
pub const MAX_LAYERS: usize = 1024;
/// Above any expert count in use.
pub const MAX_EXPERTS: usize = 4096;

/// One config.json, or a table inside it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it lies.
    pub file: PathBuf,
    prefix: String,
    fields: Map<String, Value>,
    /// Longest sequence to serve, where the caller limits it.
    pub max_model_len: Option<usize>,
    /// `model_type` of the whole where a part has its own.
    pub outer: Option<String>,
}

impl Config {
    /// Reads `config.json` of a folder. Fields of `text_config` replace those of the top.
    pub fn read(folder: &Path, max_model_len: Option<usize>) -> Result<Self, ModelError> {
        let file = folder.join("config.json");
        let mut fields = read_json(&file)?;
        let outer = fields.get("model_type").and_then(Value::as_str).map(str::to_owned);
        if let Some(Value::Object(text)) = fields.remove("text_config") {
            fields.extend(text);
        }
        Ok(Self { file, prefix: String::new(), fields, max_model_len, outer })
    }

    /// What another file says, in the words of config.json.
    pub fn from_fields(file: &Path, fields: Map<String, Value>) -> Self {
        let outer = fields.get("model_type").and_then(Value::as_str).map(str::to_owned);
        Self { file: file.to_owned(), prefix: String::new(), fields, max_model_len: None, outer }
    }

    /// A JSON file beside config.json.
    pub fn table_file(file: PathBuf) -> Result<Self, ModelError> {
        let fields = read_json(&file)?;
        Ok(Self { file, prefix: String::new(), fields, max_model_len: None, outer: None })
    }

    /// A nested table, if there is one.
    pub fn table(&self, field: &str) -> Result<Option<Self>, ModelError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Self {
                file: self.file.clone(),
                prefix: format!("{}{field}.", self.prefix),
                fields: fields.clone(),
                max_model_len: self.max_model_len,
                outer: None,
            })),
            Some(other) => Err(self.bad(field, other, "a table")),
        }
    }

    /// The same config with the fields of `defaults` that it leaves out, for families whose published configs do.
    pub fn with_defaults(&self, defaults: Value) -> Self {
        let Value::Object(mut fields) = defaults else { return self.clone() };
        fields.extend(self.fields.iter().filter(|(_, value)| !value.is_null()).map(|(k, v)| (k.clone(), v.clone())));
        Self { fields, ..self.clone() }
    }

    /// The same file with no fields.
    pub fn empty(&self) -> Self {
        Self { fields: Map::new(), ..self.clone() }
    }

    /// The value of a field that is there and not null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// An error about a field's value.
    pub fn bad(&self, field: &str, value: impl ToString, expected: impl ToString) -> ModelError {
        ModelError::field(&self.file, &format!("{}{field}", self.prefix), value, expected)
    }

    /// An error about something this engine does not do.
    pub fn unsupported(&self, field: &str, value: impl ToString, expected: impl ToString) -> ModelError {
        ModelError::unsupported(&self.file, &format!("{}{field}", self.prefix), value, expected)
    }

    fn required<T>(&self, field: &str, value: Option<T>, expected: &str) -> Result<T, ModelError> {
        value.ok_or_else(|| self.bad(field, "nothing", expected))
    }

    /// A size from 1 to 2^26.
    pub fn size(&self, field: &str) -> Result<usize, ModelError> {
        self.required(field, self.size_opt(field)?, "a whole number from 1 to 67108864")
    }

    /// A size, or a default.
    pub fn size_or(&self, field: &str, default: usize) -> Result<usize, ModelError> {
        Ok(self.size_opt(field)?.unwrap_or(default))
    }

    /// A size that may be absent.
    pub fn size_opt(&self, field: &str) -> Result<Option<usize>, ModelError> {
        self.get(field).map_or(Ok(None), |value| self.whole(field, value, 1).map(Some))
    }

    /// A count that may be 0.
    pub fn count_or(&self, field: &str, default: usize) -> Result<usize, ModelError> {
        self.get(field).map_or(Ok(default), |value| self.whole(field, value, 0))
    }

    fn whole(&self, field: &str, value: &Value, least: u64) -> Result<usize, ModelError> {
        // Some exporters write whole numbers as floats.
        let number =
            value.as_u64().or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && *x >= 0.0).map(|x| x as u64));
        match number {
            Some(n) if (least..=MAX_SIZE).contains(&n) => Ok(n as usize),
            _ => Err(self.bad(field, value, format!("a whole number from {least} to {MAX_SIZE}"))),
        }
    }

    /// Token ids: one, a list, or none.
    pub fn token_ids(&self, field: &str) -> Result<Vec<u32>, ModelError> {
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(|id| self.whole(field, id, 0).map(|id| id as u32)).collect(),
            Some(id) => Ok(vec![self.whole(field, id, 0)? as u32]),
        }
    }

    /// A finite number.
    pub fn float(&self, field: &str) -> Result<f32, ModelError> {
        self.required(field, self.float_opt(field)?, "a number")
    }

    /// A finite number, or a default.
    pub fn float_or(&self, field: &str, default: f32) -> Result<f32, ModelError> {
        Ok(self.float_opt(field)?.unwrap_or(default))
    }

    /// A finite number that may be absent.
    pub fn float_opt(&self, field: &str) -> Result<Option<f32>, ModelError> {
        self.get(field).map_or(Ok(None), |value| self.finite(field, value).map(Some))
    }

    fn finite(&self, field: &str, value: &Value) -> Result<f32, ModelError> {
        let number = value.as_f64().map(|x| x as f32).filter(|x| x.is_finite());
        number.ok_or_else(|| self.bad(field, value, "a finite number"))
    }

    /// A number above 0, or a default.
    pub fn positive_or(&self, field: &str, default: f32) -> Result<f32, ModelError> {
        let value = self.float_or(field, default)?;
        if value > 0.0 { Ok(value) } else { Err(self.bad(field, value, "a number above 0")) }
    }

    /// A list of finite numbers above 0.
    pub fn floats(&self, field: &str) -> Result<Vec<f32>, ModelError> {
        let list = self.list(field)?;
        let list = self.required(field, list, "a list of numbers")?;
        let number = |value| {
            self.finite(field, value)
                .and_then(|x| if x > 0.0 { Ok(x) } else { Err(self.bad(field, x, "numbers above 0")) })
        };
        list.iter().map(number).collect()
    }

    /// A list that may be absent.
    pub fn list(&self, field: &str) -> Result<Option<&[Value]>, ModelError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(self.bad(field, other, "a list")),
        }
    }

    /// A list of whole numbers, empty when absent.
    pub fn counts(&self, field: &str) -> Result<Vec<usize>, ModelError> {
        self.list(field)?.unwrap_or_default().iter().map(|value| self.whole(field, value, 0)).collect()
    }

    /// Yes or no, or a default.
    pub fn flag_or(&self, field: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.bad(field, other, "true or false")),
        }
    }

    /// A string that may be absent.
    pub fn text(&self, field: &str) -> Result<Option<&str>, ModelError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.bad(field, other, "a string")),
        }
    }

    /// Refuses a field unless it is absent or equals what the mapping assumes.
    pub fn only(&self, field: &str, assumed: &Value) -> Result<(), ModelError> {
        match self.get(field) {
            Some(value) if value != assumed => Err(self.unsupported(field, value, format!("{assumed} is"))),
            _ => Ok(()),
        }
    }

    /// A named activation.
    pub fn activation(&self, field: &str) -> Result<Activation, ModelError> {
        let name = self.required(field, self.text(field)?, "the name of an activation")?;
        match name {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(Activation::GeluTanh),
            "quick_gelu" => Ok(Activation::QuickGelu),
            "relu2" => Ok(Activation::Relu2),
            _ => Err(self.unsupported(field, name, "silu, gelu, gelu_pytorch_tanh, quick_gelu and relu2 are")),
        }
    }

    /// Number of layers.
    pub fn layers(&self) -> Result<usize, ModelError> {
        match self.size("num_hidden_layers")? {
            n if n <= MAX_LAYERS => Ok(n),
            n => Err(self.bad("num_hidden_layers", n, format!("at most {MAX_LAYERS}"))),
        }
    }

    /// Number of experts under any of the names in use.
    pub fn experts(&self, fields: &[&str]) -> Result<usize, ModelError> {
        let field = fields.iter().copied().find(|field| self.get(field).is_some()).unwrap_or(fields[0]);
        match self.size(field)? {
            n if n <= MAX_EXPERTS => Ok(n),
            n => Err(self.bad(field, n, format!("at most {MAX_EXPERTS}"))),
        }
    }

    /// `layer_types`, one per layer, or what `default` says; each must be one of `known`.
    pub fn layer_types(
        &self,
        known: &[&'static str],
        default: impl Fn(usize) -> &'static str,
    ) -> Result<Vec<&'static str>, ModelError> {
        let layers = self.layers()?;
        let Some(list) = self.list("layer_types")? else { return Ok((0..layers).map(default).collect()) };
        if list.len() < layers {
            return Err(self.bad("layer_types", format!("{} entries", list.len()), format!("{layers} entries")));
        }
        let find = |(i, value): (usize, &Value)| {
            let name = known.iter().copied().find(|name| value == name);
            name.ok_or_else(|| {
                self.unsupported(&format!("layer_types[{i}]"), value, format!("{} are", known.join(", ")))
            })
        };
        list[..layers].iter().enumerate().map(find).collect()
    }
}
