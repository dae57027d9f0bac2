//! gpt-oss messages: a header names channel and recipient, the body is reasoning, a call's arguments or the answer.

use super::Format;
use super::events::Events;
use super::json_call::MAX_NAME_BYTES;
use super::tags::TagFinder;

const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
const START: &str = "<|start|>";
const CONSTRAIN: &str = "<|constrain|>";
const ENDS: [&str; 3] = ["<|end|>", "<|call|>", "<|return|>"];
/// Comes before the name of a function.
const RECIPIENT: &str = "to=functions.";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Header,
    Content,
    Reasoning,
    Arguments,
}

/// Reads messages; the prompt ends where the first header begins.
#[derive(Debug)]
pub(super) struct Harmony {
    place: Place,
    finder: TagFinder,
    header: String,
}

impl Harmony {
    pub(super) fn new() -> Self {
        let finder = TagFinder::new(&[&[CHANNEL, MESSAGE, START, CONSTRAIN], &ENDS]);
        Self { place: Place::Content, finder, header: String::new() }
    }

    fn begin_body(&mut self, out: &mut Events) {
        let header = std::mem::take(&mut self.header);
        let name = header.split_once(RECIPIENT).map(|(_, rest)| {
            let end = rest.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(rest.len());
            &rest[..end]
        });
        let channel = header.rsplit_once(CHANNEL).map_or(header.as_str(), |(_, rest)| rest).trim_start();
        self.place = match name {
            Some(name) if !name.is_empty() && name.len() <= MAX_NAME_BYTES => {
                out.start(name);
                Place::Arguments
            }
            _ if channel.starts_with("analysis") => Place::Reasoning,
            _ => Place::Content,
        };
    }

    fn text(place: Place, header: &mut String, letter: char, out: &mut Events) {
        match place {
            Place::Header => header.push(letter),
            Place::Content => out.content(letter),
            Place::Reasoning => out.reasoning(letter),
            Place::Arguments => out.argument(letter),
        }
    }
}

impl Format for Harmony {
    fn feed(&mut self, letter: char, out: &mut Events) {
        let (place, header) = (self.place, &mut self.header);
        let tag = self.finder.feed(letter, |letter| Self::text(place, header, letter, out));
        match tag {
            Some(MESSAGE) => self.begin_body(out),
            Some(tag) if ENDS.contains(&tag) => {
                self.header.clear();
                self.place = Place::Content;
            }
            Some(tag) => {
                self.header.push_str(tag);
                self.place = Place::Header;
            }
            None => {}
        }
    }

    fn finish(&mut self, out: &mut Events) {
        for letter in self.finder.take().chars() {
            Self::text(self.place, &mut self.header, letter, out);
        }
    }
}
