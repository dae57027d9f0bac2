//! The arguments of a call whose name is already known: a JSON object, perhaps in a fence.

use super::events::Events;
use super::json_call::Progress;
use super::json_value::{Scan, ValueScanner};

/// Opens a fenced block.
const FENCE: &str = "```json";

/// Reads one object and passes it on.
#[derive(Debug)]
pub(super) struct ArgumentReader {
    name: String,
    scanner: Option<ValueScanner>,
    /// Blanks and fence before the object.
    before: String,
}

impl ArgumentReader {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), scanner: None, before: String::new() }
    }

    pub(super) fn feed(&mut self, letter: char, out: &mut Events) -> Progress {
        if self.scanner.is_none() {
            if letter != '{' {
                self.before.push(letter);
                let begun = self.before.trim();
                let blank = FENCE.starts_with(begun) && self.before.len() < 64;
                return if blank { Progress::More } else { Progress::Malformed };
            }
            if !(self.before.trim().is_empty() || self.before.trim() == FENCE) {
                return Progress::Malformed;
            }
            out.start(&self.name);
        }
        let scan = self.scanner.get_or_insert_with(ValueScanner::default).feed(letter);
        if matches!(scan, Scan::Inside | Scan::Last) {
            out.argument(letter);
        }
        match scan {
            Scan::Inside => Progress::More,
            Scan::Last | Scan::After => Progress::Done,
            Scan::Broken => Progress::Malformed,
        }
    }

    /// Whether the call was announced.
    pub(super) fn started(&self) -> bool {
        self.scanner.is_some()
    }
}
