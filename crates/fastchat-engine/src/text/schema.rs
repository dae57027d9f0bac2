//! JSON Schemas made ready for the grammar compiler: what its reading would get wrong is rewritten to mean the same, or
//! refused by name, and its complaints are put in the words of the schema. Knows no tokens.

use serde_json::{Map, Value, json};

use super::schema_formats::patterns;

/// White space between JSON tokens: enough for deep indentation, but a weak model cannot stay in it for ever.
const JSON_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,64}";
/// What ECMA-262 calls white space.
const ECMA_SPACE: &str =
    r"\t\n\x0B\x0C\r \x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}\x{FEFF}";

/// Versions of JSON Schema, as `$schema` names them without scheme and trailing `#`.
const DRAFTS: [(&str, Draft); 6] = [
    ("json-schema.org/draft-04/schema", Draft::V4),
    ("json-schema.org/draft-06/schema", Draft::V6),
    ("json-schema.org/draft-07/schema", Draft::V7),
    ("json-schema.org/draft/2019-09/schema", Draft::V2019),
    ("json-schema.org/draft/2020-12/schema", Draft::V2020),
    ("json-schema.org/schema", Draft::V2020),
];

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Draft {
    V4,
    V6,
    V7,
    V2019,
    V2020,
}

/// Keywords that hold a schema, several, or several by name.
const ONE: [&str; 12] = [
    "items",
    "additionalItems",
    "additionalProperties",
    "contains",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
];
const MANY: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
const NAMED: [&str; 6] =
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];
/// Keywords that count; `2.0` is as good as 2.
const COUNTS: [&str; 6] = ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];

/// Keywords that the compiler must see side by side to read one in the light of another.
const TOGETHER: [&str; 9] = [
    "patternProperties",
    "additionalProperties",
    "prefixItems",
    "items",
    "additionalItems",
    "minimum",
    "exclusiveMinimum",
    "maximum",
    "exclusiveMaximum",
];

/// `schema` as the compiler has to see it, with bounded white space between JSON tokens.
///
/// # Errors
/// The keyword that cannot be honoured, in backticks, and why.
pub(crate) fn prepare(schema: &Value) -> Result<Value, String> {
    let draft = draft(schema)?;
    let mut schema = if schema.is_object() { schema.clone() } else { json!({"allOf": [schema]}) };
    if let Some(fields) = schema.as_object_mut() {
        // Options of the compiler, which would let it ignore what it does not know.
        fields.shift_remove("x-guidance");
        fields.shift_remove("$schema");
        rewrite(fields, draft, true)?;
        if draft != Draft::V2020 {
            let name = DRAFTS.iter().find(|known| known.1 == draft).map_or("", |known| known.0);
            let scheme = if draft == Draft::V2019 { "https" } else { "http" };
            fields.insert("$schema".to_owned(), Value::from(format!("{scheme}://{name}")));
        }
        fields.insert("x-guidance".to_owned(), json!({"whitespace_pattern": JSON_SPACE}));
    }
    Ok(schema)
}

fn draft(schema: &Value) -> Result<Draft, String> {
    let Some(given) = schema.get("$schema") else { return Ok(Draft::V2020) };
    let text = given.as_str().unwrap_or_default();
    let name = text.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('#');
    let known = DRAFTS.iter().find(|known| known.0 == name).map(|known| known.1);
    known.ok_or_else(|| format!("`$schema` {given} is not known; JSON Schema drafts 4 to 2020-12 are"))
}

fn rewrite(fields: &mut Map<String, Value>, draft: Draft, root: bool) -> Result<(), String> {
    if !root && fields.contains_key("$schema") {
        return Err("`$schema` is supported at the root only".to_owned());
    }
    let id = if draft == Draft::V4 { "id" } else { "$id" };
    if fields.get(id).is_some_and(Value::is_string) && !root && fields.values().any(has_reference) {
        return Err(format!("`{id}` below the root would change what its `$ref` means; that is not supported"));
    }
    if let Some(reference) = fields.get_mut("$ref") {
        if let Some(text) = reference.as_str() {
            *reference = Value::from(plain_reference(text)?);
        }
        if draft <= Draft::V7 {
            // Up to draft 7 nothing beside a reference counts.
            fields.retain(|name, _| matches!(name.as_str(), "$ref" | "$defs" | "definitions"));
        }
    }
    if draft <= Draft::V7 {
        for name in ["contentEncoding", "contentMediaType"] {
            if fields.contains_key(name) {
                return Err(format!("`{name}` is not supported"));
            }
        }
    }
    for name in COUNTS {
        if let Some(count) = fields.get_mut(name)
            && let Some(number) = count.as_f64().filter(|number| number.fract() == 0.0 && (0.0..1e15).contains(number))
        {
            *count = Value::from(number as u64);
        }
    }
    if let Some(Value::String(pattern)) = fields.get_mut("pattern") {
        *pattern = ecma_spaces(pattern);
    }
    if let Some(Value::Object(named)) = fields.get_mut("patternProperties") {
        *named = std::mem::take(named).into_iter().map(|(name, value)| (ecma_spaces(&name), value)).collect();
    }
    if let Some(all) = fields.get("format").and_then(Value::as_str).and_then(patterns) {
        fields.shift_remove("format");
        let mut conditions: Vec<Value> = all.into_iter().map(|pattern| json!({"pattern": pattern})).collect();
        match fields.get_mut("allOf") {
            Some(Value::Array(present)) => present.append(&mut conditions),
            _ => drop(fields.insert("allOf".to_owned(), Value::Array(conditions))),
        }
    }
    for name in TOGETHER {
        if let Some(value) = fields.shift_remove(name) {
            fields.insert(name.to_owned(), value);
        }
    }
    for (name, value) in fields.iter_mut() {
        let name = name.as_str();
        match value {
            Value::Object(inner) if NAMED.contains(&name) => {
                inner.values_mut().filter_map(Value::as_object_mut).try_for_each(|one| rewrite(one, draft, false))?;
            }
            Value::Object(inner) if ONE.contains(&name) => rewrite(inner, draft, false)?,
            Value::Array(inner) if MANY.contains(&name) => {
                inner.iter_mut().filter_map(Value::as_object_mut).try_for_each(|one| rewrite(one, draft, false))?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn has_reference(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(has_reference),
        Value::Object(fields) => fields.contains_key("$ref") || fields.values().any(has_reference),
        _ => false,
    }
}

/// A pointer into the schema without the escapes of URIs and JSON pointers, which the compiler takes literally.
fn plain_reference(reference: &str) -> Result<String, String> {
    let Some(pointer) = reference.strip_prefix("#/") else {
        return if matches!(reference, "#") { Ok(reference.to_owned()) } else { Err(remote(reference)) };
    };
    let segments: Option<Vec<String>> = pointer.split('/').map(plain_segment).collect();
    let segments = segments.ok_or_else(|| format!("`$ref` {reference:?} has an escape that is not supported"))?;
    Ok(format!("#/{}", segments.join("/")))
}

fn remote(reference: &str) -> String {
    format!("`$ref` {reference:?} is not supported; references are `#` or begin with `#/`")
}

/// `None` for a broken escape, and for a name with a slash.
fn plain_segment(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    let plain = text.replace("~0", "~");
    (!text.contains("~1") && !plain.contains('/')).then_some(plain)
}

/// `\s` and `\S` of ECMA-262, which JSON Schema's patterns follow.
fn ecma_spaces(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut letters = pattern.chars();
    let mut in_class = false;
    while let Some(letter) = letters.next() {
        match (letter, in_class) {
            ('\\', _) => match (letters.next(), in_class) {
                (Some('s'), true) => out.push_str(ECMA_SPACE),
                (Some('s'), false) => out.extend(["[", ECMA_SPACE, "]"]),
                (Some('S'), _) => out.extend(["[^", ECMA_SPACE, "]"]),
                (Some(other), _) => out.extend(['\\', other]),
                (None, _) => out.push('\\'),
            },
            ('[', false) => {
                in_class = true;
                out.push('[');
            }
            (']', true) => {
                in_class = false;
                out.push(']');
            }
            _ => out.push(letter),
        }
    }
    out
}

/// The compiler's complaint in the words of the schema: the keyword in backticks.
pub(crate) fn complaint(message: &str) -> String {
    let quoted = || message.split('\'').nth(1).unwrap_or_default();
    if let Some(keys) = message.strip_prefix("Unimplemented keys: ") {
        let keys: Vec<String> = serde_json::from_str(keys).unwrap_or_default();
        return format!("`{}` is not supported", keys.join("`, `"));
    }
    let (keyword, says) = if message.starts_with("oneOf constraints") {
        ("oneOf", "has options that may hold together; only such as exclude each other are supported, or `anyOf`")
    } else if message.starts_with("Reference segment") || message.starts_with("Only absolute $ref") {
        ("$ref", "leads nowhere within the schema")
    } else if message.contains("circular reference") {
        ("$ref", "leads in a circle with keywords beside it; that is not supported")
    } else if message.starts_with("patternProperty") || message.contains("patternProperty regexes") {
        ("patternProperties", "has patterns that may match the same name; that is not supported")
    } else if message.starts_with("Unknown format") {
        ("format", message.split_once(": ").map_or("", |parts| parts.1))
    } else if message.starts_with("regex parse error") {
        ("pattern", "has a part that is no regular expression or not supported")
    } else if message.starts_with("Failed to generate regex for") {
        let min = message.contains("min=Some");
        let keyword = if min { "minimum` or `exclusiveMinimum" } else { "maximum` or `exclusiveMaximum" };
        (keyword, "is beyond the numbers that can be bounded")
    } else if message.starts_with("Value for '") || message.starts_with("Expected ") {
        (quoted(), message)
    } else {
        return message.to_owned();
    };
    format!("`{keyword}`: {says}")
}
