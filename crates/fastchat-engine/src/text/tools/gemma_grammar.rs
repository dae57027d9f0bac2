//! Grammar of Gemma's notation for the values that a schema accepts. What the notation's grammar cannot enforce is
//! refused by keyword.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::gemma::{CALL, Syntax};
use crate::text::Tokenizer;
use crate::text::lark::{Length, json, marker, text, until};

/// Keywords that say nothing of which values are accepted, or are read wherever they may stand.
const ANNOTATIONS: [&str; 14] = [
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "nullable",
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "type",
];
const NUMBERS: [&str; 5] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];
const STRINGS: [&str; 2] = ["minLength", "maxLength"];
const LISTS: [&str; 3] = ["items", "minItems", "maxItems"];
const OBJECTS: [&str; 3] = ["properties", "required", "additionalProperties"];
const TYPES: [&str; 7] = ["object", "array", "string", "integer", "number", "boolean", "null"];

/// Writes the grammar of one function's calls.
pub(super) struct GemmaGrammar<'a> {
    syntax: &'static Syntax,
    tokenizer: &'a Tokenizer,
    /// Begins the name of every rule.
    prefix: String,
    root: &'a Value,
    /// Rules that the call refers to.
    pub rules: String,
    count: usize,
    /// The rules of references, so that schemas may refer to themselves.
    references: BTreeMap<String, String>,
    anything: Option<String>,
}

impl<'a> GemmaGrammar<'a> {
    pub fn new(syntax: &'static Syntax, tokenizer: &'a Tokenizer, prefix: String, schema: &'a Value) -> Self {
        let (rules, references) = (String::new(), BTreeMap::new());
        Self { syntax, tokenizer, prefix, root: schema, rules, count: 0, references, anything: None }
    }

    /// A call of the function `name`.
    ///
    /// # Errors
    /// The keyword that cannot be enforced.
    pub fn call(&mut self, name: &str) -> Result<String, String> {
        let arguments = self.object(self.root)?;
        let (open, close) = (marker(self.tokenizer, self.syntax.open), marker(self.tokenizer, self.syntax.close));
        Ok(format!("{open} {} {arguments} {close}", text(&format!("{CALL}{name}"))))
    }

    fn name(&mut self) -> String {
        self.count += 1;
        format!("{}_{}", self.prefix, self.count)
    }

    /// Adds a rule.
    fn rule(&mut self, body: &str) -> String {
        let name = self.name();
        let _ = writeln!(self.rules, "{name}: {body}");
        name
    }

    fn value(&mut self, schema: &Value) -> Result<String, String> {
        let Some(fields) = schema.as_object() else {
            return if schema == &Value::Bool(false) {
                Err("`false` accepts nothing".to_owned())
            } else {
                Ok(self.any())
            };
        };
        if let Some(reference) = schema["$ref"].as_str() {
            only(schema, &["$ref"])?;
            return self.reference(reference);
        }
        if let Some(options) = schema["enum"].as_array() {
            only(schema, &["enum"])?;
            return Ok(self.literals(options));
        }
        if let Some(value) = fields.get("const") {
            only(schema, &["const"])?;
            return Ok(self.literals(std::slice::from_ref(value)));
        }
        if let Some(options) = schema["anyOf"].as_array() {
            only(schema, &["anyOf"])?;
            let options = options.iter().map(|option| self.value(option)).collect::<Result<Vec<_>, _>>()?;
            return Ok(format!("({})", options.join(" | ")));
        }
        match &schema["type"] {
            Value::String(kind) => self.typed(kind, schema),
            Value::Array(kinds) => {
                let kinds: Vec<&str> = kinds.iter().filter_map(Value::as_str).collect();
                let options = kinds.iter().map(|kind| self.typed(kind, schema)).collect::<Result<Vec<_>, _>>()?;
                Ok(format!("({})", options.join(" | ")))
            }
            _ if fields.contains_key("properties") => self.typed("object", schema),
            _ if fields.contains_key("items") => self.typed("array", schema),
            _ => {
                only(schema, &[])?;
                Ok(self.any())
            }
        }
    }

    fn typed(&mut self, kind: &str, schema: &Value) -> Result<String, String> {
        only(schema, &[&NUMBERS[..], &STRINGS, &LISTS, &OBJECTS].concat())?;
        match kind {
            "object" => self.object(schema),
            "array" => self.list(schema),
            "string" => Ok(self.string(schema)),
            "integer" | "number" => {
                let bounds =
                    schema.as_object().into_iter().flatten().filter(|(key, _)| NUMBERS.contains(&key.as_str()));
                let mut number: serde_json::Map<_, _> =
                    bounds.map(|(key, value)| (key.clone(), value.clone())).collect();
                number.insert("type".to_owned(), kind.into());
                Ok(json(&Value::Object(number)))
            }
            "boolean" => Ok("(\"true\" | \"false\")".to_owned()),
            "null" => Ok("\"null\"".to_owned()),
            _ => Err(format!("`type` {kind:?} is none of {}", TYPES.join(", "))),
        }
    }

    fn string(&mut self, schema: &Value) -> String {
        let length = Length { least: schema["minLength"].as_u64().unwrap_or(0), most: schema["maxLength"].as_u64() };
        let name = self.name();
        let (body, rule) = until(self.tokenizer, &name, self.syntax.quote, length);
        self.rules.push_str(&rule);
        format!("{} {body}", marker(self.tokenizer, self.syntax.quote))
    }

    fn list(&mut self, schema: &Value) -> Result<String, String> {
        let (least, most) = (schema["minItems"].as_u64().unwrap_or(0), schema["maxItems"].as_u64());
        if most.is_some_and(|most| most < least) {
            return Err(format!("`maxItems` is below `minItems`, {least}"));
        }
        if most == Some(0) {
            return Ok("\"[]\"".to_owned());
        }
        let item = self.value(schema.get("items").unwrap_or(&Value::Bool(true)))?;
        let item = self.rule(&item);
        let more = most.map_or_else(String::new, |most| (most - 1).to_string());
        let items = format!("{item} (\",\" {item}){{{},{more}}}", least.saturating_sub(1));
        Ok(if least == 0 { format!("\"[\" ({items})? \"]\"") } else { format!("\"[\" {items} \"]\"") })
    }

    /// Fields by name, as the templates sort them.
    fn object(&mut self, schema: &Value) -> Result<String, String> {
        only(schema, &OBJECTS)?;
        let properties = schema["properties"].as_object();
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if let Some(name) = required.iter().find(|name| properties.is_none_or(|known| !known.contains_key(**name))) {
            return Err(format!("`required` names {name:?}, which is not among the `properties`"));
        }
        let Some(properties) = properties else {
            return Ok(match schema.get("additionalProperties") {
                Some(Value::Bool(false)) => "\"{}\"".to_owned(),
                None | Some(Value::Bool(true)) => self.any_object(),
                Some(_) => return Err("`additionalProperties` cannot be enforced in this model's notation".to_owned()),
            });
        };
        let mut names: Vec<&String> = properties.keys().collect();
        names.sort_by_cached_key(|name| name.to_lowercase());
        // From the last to the first: what may follow a field, and what may begin the list there.
        let (mut tail, mut first) = ("\"\"".to_owned(), vec!["\"\"".to_owned()]);
        for name in names.into_iter().rev() {
            if name.is_empty() || name.contains(['{', '}', '[', ']', ',', ':', '"', '<']) || name.trim() != name {
                return Err(format!("`properties` has {name:?}, a name that this model's notation cannot write"));
            }
            let value = self.value(&properties[name])?;
            let field = self.rule(&format!("{} {value}", text(&format!("{name}:"))));
            let (is_required, begun) = (required.contains(&name.as_str()), format!("{field} {tail}"));
            if is_required {
                first.clear();
            }
            first.push(begun);
            let after = if is_required { format!("\",\" {field} {tail}") } else { format!("(\",\" {field})? {tail}") };
            tail = self.rule(&after);
        }
        Ok(format!("\"{{\" ({}) \"}}\"", first.join(" | ")))
    }

    fn literals(&self, values: &[Value]) -> String {
        let values: Vec<String> = values.iter().map(|value| self.literal(value)).collect();
        format!("({})", values.join(" | "))
    }

    fn literal(&self, value: &Value) -> String {
        let quote = marker(self.tokenizer, self.syntax.quote);
        match value {
            Value::String(string) => format!("{quote} {} {quote}", text(string)),
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(|item| self.literal(item)).collect();
                format!("\"[\" {} \"]\"", items.join(" \",\" "))
            }
            Value::Object(fields) => {
                let field =
                    |(key, value): (&String, &Value)| format!("{} {}", text(&format!("{key}:")), self.literal(value));
                let fields: Vec<String> = fields.iter().map(field).collect();
                format!("\"{{\" {} \"}}\"", fields.join(" \",\" "))
            }
            other => text(&other.to_string()),
        }
    }

    fn reference(&mut self, reference: &str) -> Result<String, String> {
        if let Some(name) = self.references.get(reference) {
            return Ok(name.clone());
        }
        let root = self.root;
        let target = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
        let target = target.ok_or_else(|| format!("`$ref` {reference:?} leads nowhere in the schema"))?;
        let name = self.name();
        self.references.insert(reference.to_owned(), name.clone());
        let body = self.value(target)?;
        let _ = writeln!(self.rules, "{name}: {body}");
        Ok(name)
    }

    /// Any value.
    fn any(&mut self) -> String {
        if let Some(name) = &self.anything {
            return name.clone();
        }
        let name = self.name();
        self.anything = Some(name.clone());
        let string = self.string(&Value::Null);
        let (object, number) = (self.any_object(), json(&serde_json::json!({"type": "number"})));
        let list = format!("\"[\" ({name} (\",\" {name})*)? \"]\"");
        let _ =
            writeln!(self.rules, "{name}: {string} | {number} | \"true\" | \"false\" | \"null\" | {list} | {object}");
        name
    }

    fn any_object(&mut self) -> String {
        let value = self.any();
        let field = self.rule(&format!("/[A-Za-z_][A-Za-z0-9_]{{0,63}}/ \":\" {value}"));
        format!("\"{{\" ({field} (\",\" {field})*)? \"}}\"")
    }
}

/// Refuses every keyword that is no annotation and not among `known`.
fn only(schema: &Value, known: &[&str]) -> Result<(), String> {
    let mut keys = schema.as_object().into_iter().flat_map(|fields| fields.keys());
    match keys.find(|key| !ANNOTATIONS.contains(&key.as_str()) && !known.contains(&key.as_str())) {
        Some(key) => Err(format!("`{key}` cannot be enforced in this model's notation of calls")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::{ToolChoice, ToolConstraint, ToolEvent, ToolFormat, ToolParser, ToolSpec, tool_grammar};
    use crate::text::grammar_tests::{END, accepts, random, schemas, walk};
    use crate::text::test_vocabulary::byte_level;
    use crate::text::{GrammarCompiler, GrammarSpec, TextError};

    fn grammar(format: ToolFormat, schema: &Value) -> Result<GrammarSpec, TextError> {
        let tools = [ToolSpec { name: "f".into(), parameters: schema.clone() }];
        let constraint = ToolConstraint { format, choice: ToolChoice::Required, parallel: false, thinking: None };
        tool_grammar(&constraint, &tools, &byte_level())
    }

    /// The arguments of a random call that the grammar allows; none if it did not end.
    fn written(format: ToolFormat, schema: &Value, seed: u64) -> Option<Value> {
        let tokenizer = byte_level();
        let compiler = GrammarCompiler::new(&tokenizer, &[END]).unwrap();
        let mut matcher = compiler.compile(&grammar(format, schema).unwrap()).unwrap();
        let text = String::from_utf8(walk(&tokenizer, &mut matcher, &mut random(seed), &mut |_, _| ())?).unwrap();
        let mut parser = ToolParser::new(format, &[ToolSpec { name: "f".into(), parameters: schema.clone() }]);
        let mut events = parser.push(&text);
        events.extend(parser.finish());
        let [ToolEvent::Start { .. }, ToolEvent::Arguments { delta, .. }] = events.as_slice() else { panic!("{text}") };
        Some(serde_json::from_str(delta).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_it_allows_the_schema_accepts(schema in schemas(), seed in any::<u64>()) {
            let schema = json!({"type": "object", "properties": {"b": schema, "a": {"type": "null"}}, "required": ["b"]});
            if schema.to_string().contains("pattern") {
                let error = grammar(ToolFormat::Gemma4, &schema).unwrap_err().to_string();
                prop_assert!(error.contains("`pattern`"), "{}", error);
                return Ok(());
            }
            for format in [ToolFormat::Gemma4, ToolFormat::FunctionGemma] {
                let Some(value) = written(format, &schema, seed) else { continue };
                prop_assert!(accepts(&schema["properties"]["b"], &value["b"]), "{}: {}", schema, value);
            }
        }
    }

    #[test]
    fn schemas_may_refer_to_themselves() {
        let schema = json!({"type": "object", "properties": {"tree": {"$ref": "#/$defs/tree"}, "x": true}, "required": ["tree"],
            "$defs": {"tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"},
                "leaf": {"type": ["string", "null"], "maxLength": 2}}, "required": ["leaf"]}}});
        let values: Vec<Value> = (0..24).filter_map(|seed| written(ToolFormat::Gemma4, &schema, seed)).collect();
        assert!(
            values.len() > 8
                && values.iter().all(|value| value["tree"]["leaf"].is_string() || value["tree"]["leaf"].is_null())
        );
        assert!(values.iter().any(|value| value["tree"]["left"].is_object()), "{values:?}");
    }

    #[test]
    fn what_cannot_be_enforced_is_refused_by_keyword() {
        let field = |schema: Value| json!({"type": "object", "properties": {"a": schema}});
        for (schema, says) in [
            (field(json!({"type": "string", "format": "date"})), "`format`"),
            (field(json!({"type": "array", "uniqueItems": true})), "`uniqueItems`"),
            (field(json!({"allOf": [{"type": "string"}]})), "`allOf`"),
            (field(json!({"oneOf": [{"type": "string"}]})), "`oneOf`"),
            (json!({"type": "object", "required": ["a"]}), "`required`"),
            (json!({"type": "object", "properties": {"a:b": {}}}), "`properties`"),
            (json!({"type": "object", "properties": {}, "minProperties": 1}), "`minProperties`"),
            (json!({"type": "object", "additionalProperties": {"type": "string"}}), "`additionalProperties`"),
        ] {
            let error = grammar(ToolFormat::Gemma4, &schema).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("tools"), "{error}");
        }
    }
}
