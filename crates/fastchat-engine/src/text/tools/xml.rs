//! Calls as tags: a function, and a tag per parameter whose text is the value (Qwen3-Coder, MiniMax M2, DeepSeek V3.2).

use serde_json::Value;

use super::events::Events;
use super::families::{Names, Tags};
use super::json_call::MAX_NAME_BYTES;
use super::tags::TagFinder;
use super::{Format, ToolSpec};

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
pub(super) struct Xml {
    tags: &'static Tags,
    tools: Vec<ToolSpec>,
    place: Place,
    outside: TagFinder,
    inside: TagFinder,
    function: String,
    /// Text between a tag's beginning and its end.
    header: String,
    parameter: String,
    /// What a parameter's own tag says of its value.
    is_text: Option<bool>,
    text: String,
    count: usize,
    raw: String,
}

impl Xml {
    pub(super) fn new(tags: &'static Tags, tools: &[ToolSpec]) -> Self {
        Self {
            tags,
            tools: tools.to_vec(),
            place: Place::Content,
            outside: TagFinder::new(&[&[tags.call, tags.call_end, tags.function]]),
            inside: TagFinder::new(&[&[tags.parameter, tags.parameter_end, tags.function_end, tags.call_end]]),
            function: String::new(),
            header: String::new(),
            parameter: String::new(),
            is_text: None,
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
            Some(tag) if tag == self.tags.function => {
                self.raw.push_str(tag);
                self.header.clear();
                self.place = Place::FunctionName;
            }
            Some(tag) if tag == self.tags.call => {
                out.content_all(&std::mem::take(&mut self.raw));
                tag.clone_into(&mut self.raw);
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

    /// Reads a tag up to its `>`; false if it is none.
    fn feed_header(&mut self, letter: char) -> bool {
        self.header.push(letter);
        let blank = letter.is_whitespace() && !(self.tags.names != Names::Bare && letter == ' ');
        self.header.len() <= MAX_NAME_BYTES && !blank && letter != '<'
    }

    fn start_function(&mut self, out: &mut Events) {
        if let Some((name, None)) = self.tags.header(&self.header) {
            out.start(name);
            name.clone_into(&mut self.function);
            self.raw.clear();
            self.count = 0;
            self.text.clear();
            self.place = Place::Inside;
        } else {
            self.raw.push('>');
            self.give_up(out);
        }
    }

    fn give_up(&mut self, out: &mut Events) {
        self.place = Place::Content;
        out.content_all(&std::mem::take(&mut self.raw));
    }

    fn end_parameter(&mut self, out: &mut Events) {
        let text = std::mem::take(&mut self.text);
        let bare = |text: &str| text.strip_suffix('\n').unwrap_or(text).to_owned();
        let text = if self.tags.padded { bare(text.strip_prefix('\n').unwrap_or(&text)) } else { text };
        let tool = self.tools.iter().find(|tool| tool.name == self.function);
        let schema = tool.and_then(|tool| tool.parameters["properties"].get(&self.parameter));
        let value = match self.is_text {
            Some(true) => Value::String(text),
            Some(false) => typed(&text, None),
            None => typed(&text, schema),
        };
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
        if in_text && tag == self.tags.call_end {
            // A value may contain anything but its own end.
            self.text.push_str(tag);
            return;
        }
        if in_text {
            self.end_parameter(out);
        }
        self.text.clear();
        if tag == self.tags.parameter {
            self.header.clear();
            self.place = Place::ParameterName;
        } else if tag == self.tags.parameter_end {
            self.place = Place::Inside;
        } else {
            self.end_function(out);
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

impl Format for Xml {
    fn feed(&mut self, letter: char, out: &mut Events) {
        match self.place {
            Place::Content | Place::Opened => self.feed_outside(letter, out),
            Place::FunctionName if letter == '>' => self.start_function(out),
            Place::FunctionName => {
                self.raw.push(letter);
                if !self.feed_header(letter) {
                    self.give_up(out);
                }
            }
            Place::ParameterName if letter == '>' => {
                if let Some((name, is_text)) = self.tags.header(&self.header) {
                    (self.parameter, self.is_text) = (name.to_owned(), is_text);
                    self.place = Place::ParameterText;
                } else {
                    self.place = Place::Inside;
                }
            }
            Place::ParameterName => {
                if !self.feed_header(letter) {
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
