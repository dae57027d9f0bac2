//! Calls as tags: a function, and a tag per parameter whose text is the value (Qwen3-Coder).

use serde_json::Value;

use super::events::Events;
use super::json_call::MAX_NAME_BYTES;
use super::tags::TagFinder;
use super::{Format, ToolSpec};

const CALL: &str = "<tool_call>";
const CALL_END: &str = "</tool_call>";
const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Content,
    /// Behind `<tool_call>`: a function must follow.
    Opened,
    FunctionName,
    /// Between parameters.
    Inside,
    ParameterName,
    ParameterText,
}

/// Reads functions; their schemas tell text from numbers.
#[derive(Debug)]
pub(super) struct QwenXml {
    tools: Vec<ToolSpec>,
    place: Place,
    outside: TagFinder,
    inside: TagFinder,
    function: String,
    parameter: String,
    text: String,
    count: usize,
    raw: String,
}

impl QwenXml {
    pub(super) fn new(tools: &[ToolSpec]) -> Self {
        Self {
            tools: tools.to_vec(),
            place: Place::Content,
            outside: TagFinder::new(&[&[CALL, CALL_END, FUNCTION]]),
            inside: TagFinder::new(&[&[PARAMETER, PARAMETER_END, FUNCTION_END, CALL_END]]),
            function: String::new(),
            parameter: String::new(),
            text: String::new(),
            count: 0,
            raw: String::new(),
        }
    }

    fn feed_outside(&mut self, letter: char, out: &mut Events) {
        let opened = self.place == Place::Opened;
        let mut stray = false;
        let raw = &mut self.raw;
        let tag = self.outside.feed(letter, |letter| {
            if opened {
                raw.push(letter);
                stray |= !letter.is_whitespace();
            } else {
                out.content(letter);
            }
        });
        if stray {
            self.place = Place::Content;
            out.content_all(&std::mem::take(&mut self.raw));
        }
        match tag {
            Some(FUNCTION) => {
                self.raw.push_str(FUNCTION);
                self.function.clear();
                self.place = Place::FunctionName;
            }
            Some(CALL) => {
                out.content_all(&std::mem::take(&mut self.raw));
                CALL.clone_into(&mut self.raw);
                self.place = Place::Opened;
            }
            Some(tag) => {
                out.content_all(&std::mem::take(&mut self.raw));
                if self.place == Place::Opened || out.calls() == 0 || !out.at_start() {
                    out.content_all(tag);
                }
                self.place = Place::Content;
            }
            None => {}
        }
    }

    /// Reads a name up to `>`; false if it is none.
    fn feed_name(name: &mut String, letter: char) -> bool {
        name.push(letter);
        name.len() <= MAX_NAME_BYTES && !letter.is_whitespace() && letter != '<'
    }

    fn end_parameter(&mut self, out: &mut Events) {
        let text = std::mem::take(&mut self.text);
        let text = text.strip_prefix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\n').unwrap_or(text);
        let tool = self.tools.iter().find(|tool| tool.name == self.function);
        let schema = tool.and_then(|tool| tool.parameters["properties"].get(&self.parameter));
        let value = typed(text, schema);
        let lead = if self.count == 0 { "{" } else { ", " };
        self.count += 1;
        out.arguments(&format!("{lead}{}: {value}", Value::from(self.parameter.as_str())));
    }

    fn end_function(&mut self, out: &mut Events) {
        out.arguments(if self.count == 0 { "{}" } else { "}" });
        self.place = Place::Content;
    }

    fn feed_inside(&mut self, letter: char, out: &mut Events) {
        let in_text = self.place == Place::ParameterText;
        let text = &mut self.text;
        let Some(tag) = self.inside.feed(letter, |letter| text.push(letter)) else { return };
        if in_text && tag == CALL_END {
            // A value may contain anything but its own end.
            self.text.push_str(tag);
            return;
        }
        if in_text {
            self.end_parameter(out);
        }
        self.text.clear();
        match tag {
            PARAMETER => {
                self.parameter.clear();
                self.place = Place::ParameterName;
            }
            PARAMETER_END => self.place = Place::Inside,
            _ => self.end_function(out),
        }
    }
}

/// The value of a parameter: text where the schema says so, else JSON if it is JSON.
pub(super) fn typed(text: &str, schema: Option<&Value>) -> Value {
    let kind = schema.map(|schema| &schema["type"]);
    let is_text = kind.is_some_and(|kind| kind == "string");
    let parsed = if is_text { None } else { serde_json::from_str(text.trim()).ok() };
    let python = || match text.trim() {
        "True" => Some(Value::Bool(true)),
        "False" => Some(Value::Bool(false)),
        "None" => Some(Value::Null),
        _ => None,
    };
    let parsed = if is_text { None } else { parsed.or_else(python) };
    parsed.unwrap_or_else(|| Value::from(text))
}

impl Format for QwenXml {
    fn feed(&mut self, letter: char, out: &mut Events) {
        match self.place {
            Place::Content | Place::Opened => self.feed_outside(letter, out),
            Place::FunctionName if letter == '>' && !self.function.is_empty() => {
                out.start(&self.function);
                self.raw.clear();
                self.count = 0;
                self.text.clear();
                self.place = Place::Inside;
            }
            Place::FunctionName => {
                self.raw.push(letter);
                if !Self::feed_name(&mut self.function, letter) {
                    self.place = Place::Content;
                    out.content_all(&std::mem::take(&mut self.raw));
                }
            }
            Place::ParameterName if letter == '>' => self.place = Place::ParameterText,
            Place::ParameterName => {
                if !Self::feed_name(&mut self.parameter, letter) {
                    self.place = Place::Inside;
                }
            }
            Place::Inside | Place::ParameterText => self.feed_inside(letter, out),
        }
    }

    fn finish(&mut self, out: &mut Events) {
        out.content_all(&std::mem::take(&mut self.raw));
        match self.place {
            Place::Content | Place::Opened => out.content_all(&self.outside.take()),
            Place::FunctionName => {}
            // The output was cut off: what is complete makes valid JSON.
            Place::Inside | Place::ParameterName | Place::ParameterText => self.end_function(out),
        }
    }
}
