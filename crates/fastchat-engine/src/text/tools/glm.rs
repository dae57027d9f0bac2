//! Calls as a name and pairs of key and value tags (GLM 4.5 and its kin).

use serde_json::Value;

use super::events::Events;
use super::json_call::MAX_NAME_BYTES;
use super::tags::TagFinder;
use super::xml::typed;
use super::{Format, ToolSpec};

const CALL: &str = "<tool_call>";
const CALL_END: &str = "</tool_call>";
const KEY: &str = "<arg_key>";
const KEY_END: &str = "</arg_key>";
const VALUE: &str = "<arg_value>";
const VALUE_END: &str = "</arg_value>";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Content,
    Name,
    /// Between tags; text here means nothing.
    Inside,
    Key,
    Value,
}

/// Reads calls; their schemas tell text from numbers.
#[derive(Debug)]
pub(super) struct Glm {
    tools: Vec<ToolSpec>,
    place: Place,
    outside: TagFinder,
    inside: TagFinder,
    name: String,
    key: String,
    text: String,
    count: usize,
}

impl Glm {
    pub(super) fn new(tools: &[ToolSpec]) -> Self {
        Self {
            tools: tools.to_vec(),
            place: Place::Content,
            outside: TagFinder::new(&[&[CALL]]),
            inside: TagFinder::new(&[&[KEY, KEY_END, VALUE, VALUE_END, CALL_END]]),
            name: String::new(),
            key: String::new(),
            text: String::new(),
            count: 0,
        }
    }

    /// The name has ended, by a tag or by the end of its line; false if it is no name.
    fn end_name(&mut self, out: &mut Events) -> bool {
        let name = std::mem::take(&mut self.text);
        let fits = |c: char| c.is_alphanumeric() || "_-./".contains(c);
        if name.trim().is_empty() || !name.trim().chars().all(fits) {
            self.place = Place::Content;
            out.content_all(CALL);
            out.content_all(&name);
            return false;
        }
        name.trim().clone_into(&mut self.name);
        out.start(&self.name);
        self.count = 0;
        self.place = Place::Inside;
        true
    }

    fn end_value(&mut self, out: &mut Events) {
        let text = std::mem::take(&mut self.text);
        let tool = self.tools.iter().find(|tool| tool.name == self.name);
        let value = typed(&text, tool.and_then(|tool| tool.parameters["properties"].get(&self.key)));
        let lead = if self.count == 0 { "{" } else { ", " };
        self.count += 1;
        out.arguments(&format!("{lead}{}: {value}", Value::from(self.key.as_str())));
    }

    fn end_call(&mut self, out: &mut Events) {
        out.arguments(if self.count == 0 { "{}" } else { "}" });
        self.place = Place::Content;
    }

    fn feed_tag(&mut self, tag: &'static str, out: &mut Events) {
        match (self.place, tag) {
            (Place::Name, _) => {
                if self.end_name(out) {
                    self.feed_tag(tag, out);
                } else {
                    out.content_all(tag);
                }
            }
            (Place::Key, KEY_END) => {
                std::mem::take(&mut self.text).trim().clone_into(&mut self.key);
                self.place = Place::Inside;
            }
            (Place::Value, VALUE_END) => {
                self.end_value(out);
                self.place = Place::Inside;
            }
            // A value may contain anything but its own end.
            (Place::Value | Place::Key, _) => self.text.push_str(tag),
            (_, CALL_END) => self.end_call(out),
            (_, KEY | VALUE) => {
                self.text.clear();
                self.place = if tag == KEY { Place::Key } else { Place::Value };
            }
            _ => {}
        }
    }
}

impl Format for Glm {
    fn feed(&mut self, letter: char, out: &mut Events) {
        if self.place == Place::Content {
            if self.outside.feed(letter, |letter| out.content(letter)).is_some() {
                self.text.clear();
                self.place = Place::Name;
            }
            return;
        }
        let keeps = self.place != Place::Inside;
        let text = &mut self.text;
        let tag = self.inside.feed(letter, |letter| text.extend(keeps.then_some(letter)));
        if let Some(tag) = tag {
            self.feed_tag(tag, out);
        } else if self.place == Place::Name
            && !self.inside.is_holding()
            && (self.text.len() > MAX_NAME_BYTES || (letter == '\n' && !self.text.trim().is_empty()))
        {
            self.end_name(out);
        }
    }

    fn finish(&mut self, out: &mut Events) {
        match self.place {
            Place::Content => out.content_all(&self.outside.take()),
            Place::Name => {
                out.content_all(CALL);
                out.content_all(&std::mem::take(&mut self.text));
                out.content_all(&self.inside.take());
            }
            // The output was cut off: what is complete makes valid JSON.
            Place::Inside | Place::Key | Place::Value => self.end_call(out),
        }
    }
}
