//! The functions a client offers, read from OpenAI's list.

use serde_json::{Value, json};

use crate::text::TextError;

/// A function the client offers.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolSpec {
    /// Its name.
    pub name: String,
    /// JSON schema of its arguments, an object.
    pub parameters: Value,
}

impl ToolSpec {
    /// Reads the JSON text of a list of `{"type": "function", "function": {"name", "parameters"}}`.
    ///
    /// # Errors
    /// The first field that is not as it must be.
    pub fn list(tools: &str) -> Result<Vec<Self>, TextError> {
        let failed = |message: String| TextError::Grammar { kind: "tools", message };
        let tools: Value = serde_json::from_str(tools).map_err(|error| failed(format!("is not JSON: {error}")))?;
        let tools = tools.as_array().ok_or_else(|| failed("must be a list".to_owned()))?;
        let read = |(index, tool): (usize, &Value)| {
            let function = tool["function"].as_object();
            let function = function.ok_or_else(|| failed(format!("[{index}].function must be an object")))?;
            let name = function.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| failed(format!("[{index}].function.name must be a string, not empty")))?;
            let parameters = match function.get("parameters") {
                None | Some(Value::Null) => json!({"type": "object", "properties": {}}),
                Some(schema) if schema.is_object() => schema.clone(),
                Some(_) => return Err(failed(format!("[{index}].function.parameters must be an object"))),
            };
            Ok(Self { name: name.to_owned(), parameters })
        };
        tools.iter().enumerate().map(read).collect()
    }
}
