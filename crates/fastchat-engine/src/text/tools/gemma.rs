//! Calls as Gemma writes them: a name and a value in its own notation, whose strings stand between markers.

use serde_json::Value;

use super::events::Events;
use super::gemma_value::arguments;
use super::json_call::MAX_NAME_BYTES;
use super::tags::TagFinder;
use super::{Format, ToolSpec};

/// Comes before a name.
pub(super) const CALL: &str = "call:";
/// Longest text of one call; a call leaves whole.
const MAX_CALL_BYTES: usize = 1 << 20;

/// Markers of one generation.
#[derive(Debug)]
pub(super) struct Syntax {
    pub open: &'static str,
    pub close: &'static str,
    /// On either side of a string.
    pub quote: &'static str,
    /// The model hands over with it after its calls.
    pub response: &'static str,
}

pub(super) static FUNCTION_GEMMA: Syntax = Syntax {
    open: "<start_function_call>",
    close: "<end_function_call>",
    quote: "<escape>",
    response: "<start_function_response>",
};
pub(super) static GEMMA_4: Syntax =
    Syntax { open: "<|tool_call>", close: "<tool_call|>", quote: "<|\"|>", response: "<|tool_response>" };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Content,
    /// Before the first brace.
    Name,
    /// Inside the braces.
    Inside,
}

/// Reads calls; their schemas tell text from numbers.
#[derive(Debug)]
pub(super) struct Gemma {
    syntax: &'static Syntax,
    tools: Vec<ToolSpec>,
    place: Place,
    outside: TagFinder,
    inside: TagFinder,
    name: String,
    /// What stands between the braces.
    text: String,
    depth: usize,
    /// Between two markers of a string.
    quoted: bool,
    /// Inside JSON's quotes, which some models write instead; behind a backslash there.
    plain: Option<bool>,
    raw: String,
}

impl Gemma {
    pub(super) fn new(syntax: &'static Syntax, tools: &[ToolSpec]) -> Self {
        Self {
            syntax,
            tools: tools.to_vec(),
            place: Place::Content,
            outside: TagFinder::new(&[&[syntax.open, syntax.close, syntax.response]]),
            inside: TagFinder::new(&[&[syntax.quote, syntax.close]]),
            name: String::new(),
            text: String::new(),
            depth: 0,
            quoted: false,
            plain: None,
            raw: String::new(),
        }
    }

    fn give_up(&mut self, out: &mut Events) {
        self.place = Place::Content;
        out.content_all(&std::mem::take(&mut self.raw));
    }

    fn feed_name(&mut self, letter: char, out: &mut Events) {
        self.raw.push(letter);
        if letter == '{' && self.name.len() > CALL.len() && self.name.starts_with(CALL) {
            self.name.drain(..CALL.len());
            self.text.clear();
            (self.depth, self.quoted, self.plain) = (1, false, None);
            self.place = Place::Inside;
            return;
        }
        if letter.is_whitespace() && self.name.is_empty() {
            return;
        }
        self.name.push(letter);
        let rest = self.name.strip_prefix(CALL);
        let fits = rest.map_or(CALL.starts_with(&self.name), |name| {
            name.chars().all(|c| c.is_alphanumeric() || "_-./".contains(c)) && name.len() <= MAX_NAME_BYTES
        });
        if !fits {
            self.give_up(out);
        }
    }

    fn feed_inside(&mut self, letter: char, out: &mut Events) {
        self.raw.push(letter);
        let mut letters = String::new();
        let tag = self.inside.feed(letter, |letter| letters.push(letter));
        for letter in letters.chars() {
            if self.place == Place::Inside {
                self.feed_value(letter, out);
            }
        }
        match tag {
            Some(tag) if tag == self.syntax.quote => {
                self.quoted = !self.quoted;
                self.text.push_str(tag);
            }
            // A string may contain anything but its own end.
            Some(tag) if self.quoted => self.text.push_str(tag),
            Some(_) => self.give_up(out),
            None => {}
        }
        if self.text.len() > MAX_CALL_BYTES {
            self.give_up(out);
        }
    }

    fn feed_value(&mut self, letter: char, out: &mut Events) {
        if let Some(escaped) = self.plain.filter(|_| !self.quoted) {
            let ends = letter == '"' && !escaped;
            self.plain = (!ends).then_some(letter == '\\' && !escaped);
        } else if !self.quoted {
            match letter {
                '"' => self.plain = Some(false),
                '{' | '[' => self.depth += 1,
                '}' | ']' => self.depth -= 1,
                _ => {}
            }
            if self.depth == 0 {
                self.end_call(out);
                return;
            }
        }
        self.text.push(letter);
    }

    fn end_call(&mut self, out: &mut Events) {
        let schema = self.tools.iter().find(|tool| tool.name == self.name).map(|tool| &tool.parameters);
        let Some(fields) = arguments(&self.text, self.syntax.quote, schema) else { return self.give_up(out) };
        out.start(&self.name);
        out.arguments(&Value::Object(fields).to_string());
        self.raw.clear();
        self.place = Place::Content;
    }
}

impl Format for Gemma {
    fn feed(&mut self, letter: char, out: &mut Events) {
        match self.place {
            Place::Name => self.feed_name(letter, out),
            Place::Inside => self.feed_inside(letter, out),
            Place::Content => match self.outside.feed(letter, |letter| out.content(letter)) {
                Some(tag) if tag == self.syntax.open => {
                    self.name.clear();
                    tag.clone_into(&mut self.raw);
                    self.place = Place::Name;
                }
                Some(tag) if out.calls() == 0 || !out.at_start() => out.content_all(tag),
                _ => {}
            },
        }
    }

    fn finish(&mut self, out: &mut Events) {
        out.content_all(&std::mem::take(&mut self.raw));
        out.content_all(&self.outside.take());
    }
}
