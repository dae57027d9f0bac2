//! Calls as Python: the whole output is a list of function calls with keyword arguments.

use serde_json::Value;

use super::Format;
use super::events::Events;
use super::json_call::MAX_NAME_BYTES;
use super::python_value::keyword_arguments;
use super::tags::TagFinder;

/// Longest text of one call; a call leaves whole.
const MAX_CALL_BYTES: usize = 1 << 20;

#[derive(Debug, PartialEq, Eq)]
enum Place {
    Content,
    /// Behind the marker: the list must follow.
    Opened,
    /// Behind `[` or `,`.
    Name,
    /// Inside the parentheses.
    Inside,
    Between,
}

/// Reads `[name(key=value), ..]`, at the beginning or behind a marker.
#[derive(Debug)]
pub(super) struct Pythonic {
    place: Place,
    open: &'static str,
    finder: TagFinder,
    name: String,
    text: String,
    depth: usize,
    quote: Option<char>,
    escaped: bool,
    raw: String,
}

impl Pythonic {
    pub(super) fn new(open: &'static str, close: &'static str) -> Self {
        Self {
            place: Place::Content,
            open,
            finder: TagFinder::new(&[&[open, close]]),
            name: String::new(),
            text: String::new(),
            depth: 0,
            quote: None,
            escaped: false,
            raw: String::new(),
        }
    }

    fn give_up(&mut self, out: &mut Events) {
        out.content_all(&std::mem::take(&mut self.raw));
        self.place = Place::Content;
    }

    fn feed_name(&mut self, letter: char, out: &mut Events) {
        if letter == '(' && !self.name.is_empty() {
            self.text.clear();
            self.depth = 0;
            self.place = Place::Inside;
        } else if letter == ']' && self.name.is_empty() && self.raw.is_empty() {
            self.place = Place::Content;
        } else if letter.is_alphanumeric() && !(self.name.is_empty() && letter.is_ascii_digit())
            || "_.".contains(letter)
        {
            self.name.push(letter);
            self.raw.push(letter);
            if self.name.len() > MAX_NAME_BYTES {
                self.give_up(out);
            }
            return;
        } else if !(letter.is_whitespace() && self.name.is_empty()) {
            self.raw.push(letter);
            self.give_up(out);
            return;
        }
        self.raw.push(letter);
        if self.place == Place::Content {
            self.raw.clear();
        }
    }

    fn feed_inside(&mut self, letter: char, out: &mut Events) {
        self.raw.push(letter);
        if let Some(quote) = self.quote {
            if self.escaped {
                self.escaped = false;
            } else if letter == '\\' {
                self.escaped = true;
            } else if letter == quote {
                self.quote = None;
            }
        } else {
            match letter {
                '"' | '\'' => self.quote = Some(letter),
                '(' | '[' | '{' => self.depth += 1,
                ')' if self.depth == 0 => {
                    self.end_call(out);
                    return;
                }
                ')' | ']' | '}' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        self.text.push(letter);
        if self.text.len() > MAX_CALL_BYTES {
            self.give_up(out);
        }
    }

    fn end_call(&mut self, out: &mut Events) {
        let Some(fields) = keyword_arguments(&self.text) else { return self.give_up(out) };
        out.start(&self.name);
        out.arguments(&Value::Object(fields).to_string());
        self.raw.clear();
        self.place = Place::Between;
    }
}

impl Format for Pythonic {
    fn feed(&mut self, letter: char, out: &mut Events) {
        match self.place {
            Place::Content if letter == '[' && out.at_start() && !self.finder.is_holding() => {
                self.place = Place::Name;
                self.name.clear();
                self.raw.push(letter);
            }
            Place::Content => match self.finder.feed(letter, |letter| out.content(letter)) {
                Some(tag) if tag == self.open => {
                    self.raw.push_str(tag);
                    self.place = Place::Opened;
                }
                Some(tag) if out.calls() == 0 || !out.at_start() => out.content_all(tag),
                _ => {}
            },
            Place::Opened if letter == '[' => {
                self.place = Place::Name;
                self.name.clear();
                self.raw.push(letter);
            }
            Place::Opened if letter.is_whitespace() => self.raw.push(letter),
            Place::Opened => {
                self.give_up(out);
                self.feed(letter, out);
            }
            Place::Name => self.feed_name(letter, out),
            Place::Inside => self.feed_inside(letter, out),
            Place::Between if letter.is_whitespace() => {}
            Place::Between if letter == ',' => {
                self.name.clear();
                self.place = Place::Name;
            }
            Place::Between => {
                self.place = Place::Content;
                if letter != ']' {
                    self.feed(letter, out);
                }
            }
        }
    }

    fn finish(&mut self, out: &mut Events) {
        out.content_all(&std::mem::take(&mut self.raw));
        out.content_all(&self.finder.take());
    }
}
