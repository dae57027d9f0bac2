//! One call written as a JSON object: the name under one key, the arguments under another, in any order.

use serde_json::Value;

use super::events::Events;
use super::json_value::{Scan, ValueScanner};

/// Longest name of a function.
pub(super) const MAX_NAME_BYTES: usize = 256;

const NAME_KEYS: [&str; 2] = ["name", "function"];
const ARGUMENT_KEYS: [&str; 2] = ["arguments", "parameters"];

/// How far an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Done,
    /// It is no call.
    Malformed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Open,
    KeyOrEnd,
    Key,
    Colon,
    Before,
    Value,
    CommaOrEnd,
}

/// Reads one object; arguments leave as they come once the name is known.
#[derive(Debug)]
pub(super) struct CallReader {
    place: Place,
    scanner: ValueScanner,
    key: String,
    raw: String,
    name: Option<String>,
    arguments: Option<String>,
    started: bool,
    streaming: bool,
}

impl CallReader {
    pub(super) fn new() -> Self {
        Self {
            place: Place::Open,
            scanner: ValueScanner::default(),
            key: String::new(),
            raw: String::new(),
            name: None,
            arguments: None,
            started: false,
            streaming: false,
        }
    }

    /// Whether the call was announced; before that it can still turn out to be none.
    pub(super) fn started(&self) -> bool {
        self.started
    }

    /// `known` lists the names that make the object a call; `None` takes any.
    pub(super) fn feed(&mut self, letter: char, known: Option<&[String]>, out: &mut Events) -> Progress {
        match self.place {
            Place::Key => self.feed_key(letter, known),
            Place::Value => self.feed_value(letter, known, out),
            _ if letter.is_whitespace() => Progress::More,
            Place::Open if letter == '{' => self.go(Place::KeyOrEnd),
            Place::KeyOrEnd if letter == '"' => {
                self.raw.clear();
                self.scanner = ValueScanner::default();
                self.place = Place::Key;
                self.feed_key(letter, known)
            }
            Place::Colon if letter == ':' => self.go(Place::Before),
            Place::Before => {
                self.raw.clear();
                self.scanner = ValueScanner::default();
                self.place = Place::Value;
                self.streaming = letter == '{' && !self.started && ARGUMENT_KEYS.contains(&self.key.as_str());
                if let Some(name) = self.name.as_deref().filter(|_| self.streaming) {
                    out.start(name);
                    self.started = true;
                } else {
                    self.streaming = false;
                }
                self.feed_value(letter, known, out)
            }
            Place::CommaOrEnd if letter == ',' => self.go(Place::KeyOrEnd),
            Place::KeyOrEnd | Place::CommaOrEnd if letter == '}' => self.finish(out),
            _ => Progress::Malformed,
        }
    }

    fn go(&mut self, place: Place) -> Progress {
        self.place = place;
        Progress::More
    }

    fn feed_key(&mut self, letter: char, known: Option<&[String]>) -> Progress {
        self.raw.push(letter);
        match self.scanner.feed(letter) {
            Scan::Last => {}
            Scan::Inside if self.raw.len() <= MAX_NAME_BYTES => return Progress::More,
            _ => return Progress::Malformed,
        }
        let Ok(key) = serde_json::from_str::<String>(&self.raw) else { return Progress::Malformed };
        // Without a marker the first keys decide, so that other JSON is not held back.
        let ordinary = ["type", "id", "tool_call_id"].contains(&key.as_str());
        if known.is_some() && !(ordinary || NAME_KEYS.contains(&key.as_str()) || ARGUMENT_KEYS.contains(&key.as_str()))
        {
            return if self.started { self.go(Place::Colon) } else { Progress::Malformed };
        }
        self.key = key;
        self.go(Place::Colon)
    }

    fn feed_value(&mut self, letter: char, known: Option<&[String]>, out: &mut Events) -> Progress {
        let scan = self.scanner.feed(letter);
        if matches!(scan, Scan::Inside | Scan::Last) {
            if self.streaming {
                out.argument(letter);
            } else {
                self.raw.push(letter);
            }
        }
        match scan {
            Scan::Inside => Progress::More,
            Scan::Broken => Progress::Malformed,
            Scan::Last | Scan::After => {
                let streamed = std::mem::take(&mut self.streaming);
                if !streamed && !self.keep(known) {
                    return Progress::Malformed;
                }
                self.place = Place::CommaOrEnd;
                if scan == Scan::After { self.feed(letter, known, out) } else { Progress::More }
            }
        }
    }

    /// Uses the value in `raw`; false if it makes the object no call.
    fn keep(&mut self, known: Option<&[String]>) -> bool {
        let Ok(value) = serde_json::from_str::<Value>(&self.raw) else { return false };
        let named = |value: &Value| {
            value.as_str().filter(|name| !name.is_empty() && name.len() <= MAX_NAME_BYTES).map(str::to_owned)
        };
        let argued = |value: &Value, raw: &str| match value {
            Value::String(text) => text.clone(),
            Value::Null => "{}".to_owned(),
            _ => raw.to_owned(),
        };
        if NAME_KEYS.contains(&self.key.as_str()) && !self.started {
            // {"function": {"name": .., "arguments": ..}} is the wire's own shape.
            let inner = ARGUMENT_KEYS.iter().find_map(|key| value.get(key));
            self.name = named(value.get("name").unwrap_or(&value));
            if let Some(inner) = inner {
                self.arguments = Some(argued(inner, &inner.to_string()));
            }
            let Some(name) = &self.name else { return false };
            return known.is_none_or(|known| known.contains(name));
        }
        if ARGUMENT_KEYS.contains(&self.key.as_str()) && !self.started {
            self.arguments = Some(argued(&value, &self.raw));
        }
        true
    }

    fn finish(&mut self, out: &mut Events) -> Progress {
        if self.started {
            return Progress::Done;
        }
        let Some(name) = &self.name else { return Progress::Malformed };
        out.start(name);
        self.started = true;
        out.arguments(self.arguments.as_deref().unwrap_or("{}"));
        Progress::Done
    }
}
