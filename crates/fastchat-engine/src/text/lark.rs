//! Pieces of grammar text in llguidance's dialect of Lark, quoted so that no name or schema can break out of its place.

use serde_json::Value;

use super::Tokenizer;
use super::schema::prepare;

/// A string, as itself.
pub(crate) fn text(text: &str) -> String {
    if text.is_empty() { "\"\"".to_owned() } else { Value::from(text).to_string() }
}

/// A marker of a chat format: its control token where the vocabulary has one, its letters otherwise.
pub(crate) fn marker(tokenizer: &Tokenizer, marker: &str) -> String {
    match tokenizer.token_to_id(marker).filter(|&id| tokenizer.is_special(id)) {
        Some(id) => format!("<[{id}]>"),
        None => text(marker),
    }
}

/// JSON that `schema` accepts; none for a schema that cannot be prepared, which its owner has refused before.
pub(crate) fn json(schema: &Value) -> String {
    format!("%json {}", prepare(schema).unwrap_or(Value::Bool(false)))
}

/// Any text up to and including `end`.
pub(crate) fn rule_until(name: &str, end: &str, longest: Option<u64>) -> String {
    let body = longest.map_or_else(|| "(?s:.*)".to_owned(), |longest| format!("(?s:.{{0,{longest}}})"));
    format!("{name}[suffix={}]: /{body}/\n", text(end))
}
