//! Grammars that force calls: what `tool_choice` asks for, written as the model's family writes it, with the schemas of
//! the tools. Whatever such a grammar allows, the parser of the same format understands.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::families::{self, Tags};
use super::gemma::{FUNCTION_GEMMA, GEMMA_4, Syntax};
use super::gemma_grammar::GemmaGrammar;
use super::{ToolFormat, ToolSpec};
use crate::text::lark::{Length, json, marker, text, until};
use crate::text::schema::prepare;
use crate::text::{GrammarSpec, ReasoningMarkers, TextError, Tokenizer};

/// Most calls of one forced answer.
const MAX_CALLS: usize = 32;

/// Which tools may be called; one call at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// Any of them.
    Required,
    /// This one, once.
    Named(String),
}

/// What is forced, and how it is written.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolConstraint {
    /// How the model writes calls.
    pub format: ToolFormat,
    /// Which tools may be called.
    pub choice: ToolChoice,
    /// Several calls are allowed.
    pub parallel: bool,
    /// The model may think first; the flag says that the prompt already opened the block.
    pub thinking: Option<(ReasoningMarkers, bool)>,
}

/// Grammar of an answer that is calls of `tools`.
pub fn tool_grammar(
    constraint: &ToolConstraint,
    tools: &[ToolSpec],
    tokenizer: &Tokenizer,
) -> Result<GrammarSpec, TextError> {
    let chosen: Vec<&ToolSpec> = match &constraint.choice {
        ToolChoice::Required => tools.iter().collect(),
        ToolChoice::Named(name) => tools.iter().filter(|tool| tool.name == *name).collect(),
    };
    if chosen.is_empty() {
        let message = match &constraint.choice {
            ToolChoice::Required => "needs at least one tool".to_owned(),
            ToolChoice::Named(name) => format!("names '{name}', which is not among the {} tools", tools.len()),
        };
        return Err(TextError::Grammar { kind: "tool_choice", message });
    }
    let refused =
        |tool: &ToolSpec, says: &str| TextError::Grammar { kind: "tools", message: format!("'{}': {says}", tool.name) };
    for tool in &chosen {
        prepare(&tool.parameters).map_err(|says| refused(tool, &says))?;
    }
    let single = !constraint.parallel || matches!(constraint.choice, ToolChoice::Named(_));
    let mut writer = Writer { format: constraint.format, tokenizer, rules: String::new(), count: 0 };
    let mut calls = Vec::with_capacity(chosen.len());
    for tool in &chosen {
        calls.push(writer.call(tool).map_err(|says| refused(tool, &says))?);
    }
    let names: Vec<String> = (0..calls.len()).map(|index| format!("call_{index}")).collect();
    let mut grammar = String::new();
    let answer = writer.answer(if single { 1 } else { MAX_CALLS });
    let _ = writeln!(grammar, "start: {answer}");
    let _ = writeln!(grammar, "call: {}", names.join(" | "));
    for (name, call) in names.iter().zip(&calls) {
        let _ = writeln!(grammar, "{name}: {call}");
    }
    grammar.push_str(&writer.rules);
    let grammar = GrammarSpec::Lark(grammar);
    Ok(match constraint.thinking {
        Some((markers, opened)) => grammar.after_thinking(markers, opened, tokenizer),
        None => grammar,
    })
}

/// Harmony's reasoning in its own channel, where its end is a control token.
pub(crate) fn analysis(tokenizer: &Tokenizer) -> String {
    let marker = |name| marker(tokenizer, name);
    let end = marker("<|end|>");
    if !end.starts_with("<[") {
        return String::new();
    }
    let (channel, message, start) = (marker("<|channel|>"), marker("<|message|>"), marker("<|start|>"));
    format!("({channel} \"analysis\" {message} /(?s:.*)/ {end} {start} \"assistant\")?")
}

struct Writer<'a> {
    format: ToolFormat,
    tokenizer: &'a Tokenizer,
    /// Rules the calls refer to.
    rules: String,
    count: usize,
}

impl Writer<'_> {
    fn marker(&self, name: &str) -> String {
        marker(self.tokenizer, name)
    }

    /// Up to `most` calls with what stands around and between them.
    fn answer(&self, most: usize) -> String {
        let more = |between: &str| match most - 1 {
            0 => "call".to_owned(),
            more if between.is_empty() => format!("call (call){{0,{more}}}"),
            more => format!("call ({} call){{0,{more}}}", text(between)),
        };
        match self.format {
            ToolFormat::Hermes | ToolFormat::Glm => more("\n"),
            ToolFormat::QwenXml => self.blocks(&families::QWEN, &more),
            ToolFormat::Seed => self.blocks(&families::SEED, &more),
            ToolFormat::MiniMaxM2 => self.blocks(&families::MINIMAX_M2, &more),
            ToolFormat::Muse => self.blocks(&families::MUSE, &more),
            ToolFormat::DeepSeekV32 => self.blocks(&families::DEEPSEEK_V32, &more),
            ToolFormat::DeepSeekV4 => self.blocks(&families::DEEPSEEK_V4, &more),
            ToolFormat::MistralNamed | ToolFormat::Functionary | ToolFormat::FunctionGemma | ToolFormat::Gemma4 => {
                more("")
            }
            ToolFormat::MiniMaxM1 => {
                let (open, close) = (self.marker("<tool_calls>"), self.marker("</tool_calls>"));
                format!("{open} \"\\n\" {} \"\\n\" {close}", more("\n"))
            }
            ToolFormat::Apriel => {
                format!("{} \"[\" {} \"]\" {}", self.marker("<tool_calls>"), more(", "), self.marker("</tool_calls>"))
            }
            ToolFormat::Lfm2 => {
                let (open, close) = (self.marker("<|tool_call_start|>"), self.marker("<|tool_call_end|>"));
                format!("{open} \"[\" {} \"]\" {close}", more(", "))
            }
            ToolFormat::Llama3 => more("; "),
            ToolFormat::MistralList => format!("{} \"[\" {} \"]\"", self.marker("[TOOL_CALLS]"), more(", ")),
            ToolFormat::Granite => format!("{} \"[\" {} \"]\"", self.marker("<|tool_call|>"), more(", ")),
            ToolFormat::Phi4 => {
                let (open, close) = (self.marker("<|tool_call|>"), self.marker("<|/tool_call|>"));
                format!("{open} \"[\" {} \"]\" {close}", more(", "))
            }
            ToolFormat::Nemotron => {
                let (open, close) = (self.marker("<TOOLCALL>"), self.marker("</TOOLCALL>"));
                format!("{open} \"[\" {} \"]\" {close}", more(", "))
            }
            ToolFormat::Pythonic => format!("\"[\" {} \"]\"", more(", ")),
            ToolFormat::DeepSeekV3 | ToolFormat::DeepSeekV31 => {
                let (open, close) = (self.marker("<｜tool▁calls▁begin｜>"), self.marker("<｜tool▁calls▁end｜>"));
                let between = if self.format == ToolFormat::DeepSeekV3 { "\n" } else { "" };
                format!("{open} {} {close}", more(between))
            }
            ToolFormat::KimiK2 => {
                let open = self.marker("<|tool_calls_section_begin|>");
                format!("{open} {} {}", more(""), self.marker("<|tool_calls_section_end|>"))
            }
            // A call ends the model's turn.
            ToolFormat::Harmony => analysis(self.tokenizer) + " call",
        }
    }

    fn call(&mut self, tool: &ToolSpec) -> Result<String, String> {
        let name = &tool.name;
        let schema = if tool.parameters.is_object() { tool.parameters.clone() } else { json!({"type": "object"}) };
        let schema = if schema["type"].is_null() { with_field(&schema, "type", json!("object")) } else { schema };
        let object = |key: &str| {
            let head = format!("{{\"name\": {}, \"{key}\": ", Value::from(name.as_str()));
            format!("{} {} \"}}\"", text(&head), json(&schema))
        };
        Ok(match self.format {
            ToolFormat::Hermes => {
                let (open, close) = (self.marker("<tool_call>"), self.marker("</tool_call>"));
                format!("{open} \"\\n\" {} \"\\n\" {close}", object("arguments"))
            }
            ToolFormat::Llama3 => object("parameters"),
            ToolFormat::MistralList
            | ToolFormat::Granite
            | ToolFormat::Phi4
            | ToolFormat::Nemotron
            | ToolFormat::Apriel
            | ToolFormat::MiniMaxM1 => object("arguments"),
            ToolFormat::Functionary => {
                let head = format!("{} {}", self.marker("<function="), text(&format!("{name}>")));
                format!("{head} {} {}", json(&schema), self.marker("</function>"))
            }
            ToolFormat::FunctionGemma => self.gemma(&FUNCTION_GEMMA, name, &schema)?,
            ToolFormat::Gemma4 => self.gemma(&GEMMA_4, name, &schema)?,
            ToolFormat::MistralNamed => {
                format!("{} {} {} {}", self.marker("[TOOL_CALLS]"), text(name), self.marker("[ARGS]"), json(&schema))
            }
            ToolFormat::DeepSeekV3 => {
                let (open, separator) = (self.marker("<｜tool▁call▁begin｜>"), self.marker("<｜tool▁sep｜>"));
                let (head, close) = (text(&format!("{name}\n```json\n")), self.marker("<｜tool▁call▁end｜>"));
                format!("{open} \"function\" {separator} {head} {} \"\\n```\" {close}", json(&schema))
            }
            ToolFormat::DeepSeekV31 => {
                let (open, separator) = (self.marker("<｜tool▁call▁begin｜>"), self.marker("<｜tool▁sep｜>"));
                format!("{open} {} {separator} {} {}", text(name), json(&schema), self.marker("<｜tool▁call▁end｜>"))
            }
            ToolFormat::KimiK2 => {
                let (open, separator) =
                    (self.marker("<|tool_call_begin|>"), self.marker("<|tool_call_argument_begin|>"));
                let head = text(&format!("functions.{name}:"));
                let close = self.marker("<|tool_call_end|>");
                format!("{open} {head} /[0-9]{{1,3}}/ {separator} {} {close}", json(&schema))
            }
            ToolFormat::Harmony => {
                let (channel, message) = (self.marker("<|channel|>"), self.marker("<|message|>"));
                let head = text(&format!("commentary to=functions.{name} "));
                format!("{channel} {head} {} \"json\" {message} {}", self.marker("<|constrain|>"), json(&schema))
            }
            ToolFormat::Pythonic | ToolFormat::Lfm2 => python_call(name, &schema),
            ToolFormat::QwenXml => self.function(&families::QWEN, name, &schema),
            ToolFormat::Seed => self.function(&families::SEED, name, &schema),
            ToolFormat::MiniMaxM2 => self.function(&families::MINIMAX_M2, name, &schema),
            ToolFormat::Muse => self.function(&families::MUSE, name, &schema),
            ToolFormat::DeepSeekV32 => self.function(&families::DEEPSEEK_V32, name, &schema),
            ToolFormat::DeepSeekV4 => self.function(&families::DEEPSEEK_V4, name, &schema),
            ToolFormat::Glm => {
                let (open, close) = (self.marker("<tool_call>"), self.marker("</tool_call>"));
                let key = |writer: &Self, name: &str, _| {
                    let (open, close) = (writer.marker("<arg_key>"), writer.marker("</arg_key>"));
                    format!("{open} {} {close} \"\\n\" {}", text(name), writer.marker("<arg_value>"))
                };
                let fields = self.tagged_fields(&schema, key, "</arg_value>");
                format!("{open} {} {fields} {close}", text(&format!("{name}\n")))
            }
        })
    }

    /// Calls in their family's block, or each in one.
    fn blocks(&self, tags: &Tags, more: &dyn Fn(&str) -> String) -> String {
        if !tags.shared {
            return more("\n");
        }
        format!("{} {} {} {}", self.marker(tags.call), text("\n"), more(""), self.marker(tags.call_end))
    }

    /// A function and its parameters as tags.
    fn function(&mut self, tags: &Tags, name: &str, schema: &Value) -> String {
        let pad = if tags.padded { "\n" } else { "" };
        let head = |writer: &Self, name: &str, is_text| {
            let end = text(&format!("{name}{}{pad}", tags.name_end(Some(is_text))));
            format!("{} {end}", writer.marker(tags.parameter))
        };
        let fields = self.tagged_fields(schema, head, &format!("{pad}{}\n", tags.parameter_end));
        let open = format!("{} {}", self.marker(tags.function), text(&format!("{name}{}\n", tags.name_end(None))));
        let function = format!("{open} {fields} {} {}", self.marker(tags.function_end), text("\n"));
        if tags.shared {
            return function;
        }
        format!("{} {} {function} {}", self.marker(tags.call), text("\n"), self.marker(tags.call_end))
    }

    fn gemma(&mut self, syntax: &'static Syntax, name: &str, schema: &Value) -> Result<String, String> {
        let prefix = format!("gemma_{}", self.count);
        self.count += 1;
        let mut grammar = GemmaGrammar::new(syntax, self.tokenizer, prefix, schema);
        let call = grammar.call(name)?;
        self.rules.push_str(&grammar.rules);
        Ok(call)
    }

    /// Any text and the marker that ends it.
    fn text_until(&mut self, end: &str, schema: &Value) -> String {
        let length = Length { least: schema["minLength"].as_u64().unwrap_or(0), most: schema["maxLength"].as_u64() };
        let name = format!("text_{}", self.count);
        self.count += 1;
        let (body, rule) = until(self.tokenizer, &name, end, length);
        self.rules.push_str(&rule);
        body
    }

    /// Parameters as tags: text stands as it is, everything else as JSON. `head` is told which it is.
    fn tagged_fields(&mut self, schema: &Value, head: impl Fn(&Self, &str, bool) -> String, end: &str) -> String {
        let mut fields = String::new();
        for field in properties(schema) {
            let options = field.schema["enum"].as_array().filter(|options| options.iter().all(Value::is_string));
            let is_text = options.is_some() || field.schema["type"] == "string";
            let value = if let Some(options) = options {
                let options: Vec<String> = options.iter().filter_map(Value::as_str).map(text).collect();
                format!("({}) {}", options.join(" | "), self.marker(end))
            } else if is_text {
                self.text_until(end, &field.schema)
            } else {
                format!("{} {}", json(&field.schema), self.marker(end))
            };
            let optional = if field.required { "" } else { "?" };
            let _ = write!(fields, " ({} {value}){optional}", head(self, &field.name, is_text));
        }
        fields
    }
}

fn python_call(name: &str, schema: &Value) -> String {
    let (required, optional): (Vec<_>, Vec<_>) = properties(schema).into_iter().partition(|field| field.required);
    let write = |field: &Field| format!("{} {}", text(&format!("{}=", field.name)), json(&field.schema));
    let after = |fields: &[Field]| -> String {
        fields.iter().fold(String::new(), |rest, field| rest + &format!(" (\", \" {})?", write(field)))
    };
    let arguments = if required.is_empty() {
        // Any of the optional ones may come first.
        let firsts = (0..optional.len()).map(|at| write(&optional[at]) + &after(&optional[at + 1..]));
        let firsts: Vec<String> = firsts.collect();
        if firsts.is_empty() { String::new() } else { format!("({})?", firsts.join(" | ")) }
    } else {
        let required: Vec<String> = required.iter().map(write).collect();
        required.join(" \", \" ") + &after(&optional)
    };
    format!("{} {arguments} \")\"", text(&format!("{name}(")))
}

struct Field {
    name: String,
    schema: Value,
    required: bool,
}

/// The properties of an object's schema, each with the definitions its references need.
fn properties(schema: &Value) -> Vec<Field> {
    let required = |name: &str| schema["required"].as_array().is_some_and(|names| names.iter().any(|n| n == name));
    let fields = schema["properties"].as_object().into_iter().flatten();
    fields
        .map(|(name, field)| {
            let mut field = field.clone();
            for key in ["$defs", "definitions"] {
                if !schema[key].is_null() && field.is_object() {
                    field = with_field(&field, key, schema[key].clone());
                }
            }
            Field { name: name.clone(), schema: field, required: required(name) }
        })
        .collect()
}

fn with_field(object: &Value, key: &str, value: Value) -> Value {
    let mut fields: Map<String, Value> = object.as_object().cloned().unwrap_or_default();
    fields.insert(key.to_owned(), value);
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::run;
    use super::{ToolChoice, ToolConstraint, ToolFormat, tool_grammar};
    use crate::text::grammar_tests::{END, random, walk};
    use crate::text::test_vocabulary::byte_level;
    use crate::text::tools::ToolSpec;
    use crate::text::{GrammarCompiler, REASONING_MARKERS};

    fn tools() -> Vec<ToolSpec> {
        let weather = json!({"type": "object", "properties": {
            "city": {"type": "string", "maxLength": 5}, "days": {"$ref": "#/$defs/days"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city"], "additionalProperties": false,
            "$defs": {"days": {"type": "integer", "minimum": 0, "maximum": 20}}});
        let empty = json!({"type": "object", "properties": {}, "additionalProperties": false});
        vec![
            ToolSpec { name: "weather".into(), parameters: weather },
            ToolSpec { name: "now".into(), parameters: empty },
        ]
    }

    fn constraint(format: ToolFormat, choice: ToolChoice) -> ToolConstraint {
        ToolConstraint { format, choice, parallel: true, thinking: None }
    }

    fn valid(name: &str, arguments: &str) -> bool {
        let value: Value = serde_json::from_str(arguments).unwrap();
        let fields = value.as_object().unwrap();
        match name {
            "now" => fields.is_empty(),
            _ => {
                fields["city"].as_str().unwrap().chars().count() <= 5
                    && fields.get("days").is_none_or(|days| (0..=20).contains(&days.as_i64().unwrap()))
                    && fields.get("unit").is_none_or(|unit| unit == "C" || unit == "F")
                    && fields.keys().all(|key| ["city", "days", "unit"].contains(&key.as_str()))
            }
        }
    }

    #[test]
    fn what_a_grammar_allows_its_parser_understands() {
        let tokenizer = byte_level();
        let compiler = GrammarCompiler::new(&tokenizer, &[END]).unwrap();
        for format in ToolFormat::ALL {
            let spec = tool_grammar(&constraint(format, ToolChoice::Required), &tools(), &tokenizer).unwrap();
            let (mut finished, mut seen) = (0, [false; 2]);
            for seed in 0..24 {
                let mut matcher = compiler.compile(&spec).unwrap();
                let Some(bytes) = walk(&tokenizer, &mut matcher, &mut random(seed), &mut |_, _| ()) else { continue };
                let text = String::from_utf8(bytes).unwrap();
                let outcome = run(format, &[&text]);
                assert!(!outcome.calls.is_empty() && outcome.is_calls_only(), "{format:?}: {text}\n{outcome:?}");
                for (name, arguments) in &outcome.calls {
                    assert!(valid(name, arguments), "{format:?}: {text}");
                    seen[usize::from(name == "now")] = true;
                }
                finished += 1;
            }
            assert!(finished >= 8 && seen == [true; 2], "{format:?}: {finished} walks ended, {seen:?}");
        }
    }

    #[test]
    fn a_named_tool_is_called_once() {
        let tokenizer = byte_level();
        let compiler = GrammarCompiler::new(&tokenizer, &[END]).unwrap();
        for format in ToolFormat::ALL {
            let named = constraint(format, ToolChoice::Named("now".into()));
            let spec = tool_grammar(&named, &tools(), &tokenizer).unwrap();
            let mut matcher = compiler.compile(&spec).unwrap();
            let bytes = walk(&tokenizer, &mut matcher, &mut random(1), &mut |_, _| ()).unwrap();
            let outcome = run(format, &[&String::from_utf8(bytes).unwrap()]);
            assert_eq!(outcome.calls.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["now"], "{format:?}");
        }
        let unknown = constraint(ToolFormat::Hermes, ToolChoice::Named("x\ny".into()));
        let error = tool_grammar(&unknown, &tools(), &tokenizer).unwrap_err().to_string();
        assert!(error.contains("tool_choice") && error.contains("2 tools"), "{error}");
    }

    #[test]
    fn thoughts_may_come_first() {
        let tokenizer = byte_level();
        let compiler = GrammarCompiler::new(&tokenizer, &[END]).unwrap();
        for (opened, text) in [(true, "so\n</think>\n\n"), (false, "<think>a</think>"), (false, "")] {
            let thinking = Some((REASONING_MARKERS[0], opened));
            let constraint =
                ToolConstraint { thinking, ..constraint(ToolFormat::Hermes, ToolChoice::Named("now".into())) };
            let spec = tool_grammar(&constraint, &tools(), &tokenizer).unwrap();
            let mut matcher = compiler.compile(&spec).unwrap();
            let text = format!("{text}<tool_call>\n{{\"name\": \"now\", \"arguments\": {{}}}}\n</tool_call>");
            for id in tokenizer.encode(&text, false, false).unwrap() {
                matcher.accept(id).unwrap_or_else(|e| panic!("{text:?}: {e}"));
            }
            assert!(matcher.can_stop().unwrap());
        }
    }
}
