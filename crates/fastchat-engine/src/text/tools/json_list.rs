//! Calls as JSON objects: a single one, or several in a list.

use super::events::Events;
use super::json_call::{CallReader, Progress};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Before,
    InCall,
    Between,
}

/// Reads an object or a list of objects, and keeps the text for as long as it may turn out to be no call.
#[derive(Debug)]
pub(super) struct ListReader {
    place: Place,
    in_list: bool,
    call: CallReader,
    raw: String,
}

impl ListReader {
    /// `marker` is the text before the value, which is content if the value is no call.
    pub(super) fn new(marker: &str) -> Self {
        Self { place: Place::Before, in_list: false, call: CallReader::new(), raw: marker.to_owned() }
    }

    pub(super) fn feed(&mut self, letter: char, known: Option<&[String]>, out: &mut Events) -> Progress {
        self.raw.push(letter);
        let progress = match self.place {
            Place::InCall => match self.call.feed(letter, known, out) {
                Progress::Done if self.in_list => {
                    self.place = Place::Between;
                    Progress::More
                }
                other => other,
            },
            _ if letter.is_whitespace() => Progress::More,
            Place::Before if letter == '[' && !self.in_list => {
                self.in_list = true;
                Progress::More
            }
            Place::Before if letter == '{' => {
                self.place = Place::InCall;
                self.call = CallReader::new();
                self.call.feed(letter, known, out)
            }
            Place::Between if letter == ',' => {
                self.place = Place::Before;
                Progress::More
            }
            Place::Between if letter == ']' => Progress::Done,
            _ => Progress::Malformed,
        };
        if self.call.started() {
            self.raw.clear();
        }
        if progress == Progress::Malformed {
            out.content_all(&std::mem::take(&mut self.raw));
        }
        progress
    }

    pub(super) fn finish(&mut self, out: &mut Events) {
        out.content_all(&std::mem::take(&mut self.raw));
    }
}
