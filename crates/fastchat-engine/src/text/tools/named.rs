//! Calls that write the name outside the JSON: marker, name, separator, arguments (Mistral, DeepSeek, Kimi).

use super::Format;
use super::arguments::ArgumentReader;
use super::events::Events;
use super::json_call::{MAX_NAME_BYTES, Progress};
use super::json_list::ListReader;
use super::tags::TagFinder;

/// Markers of one family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Markers {
    call: &'static str,
    separator: &'static str,
    end: &'static str,
    /// Around all calls; nothing by themselves.
    section: &'static [&'static str],
    /// What stands before the separator when the name follows it, on a line of its own.
    kind: Option<&'static str>,
    /// A list of JSON objects may follow the marker instead.
    lists: bool,
}

pub(super) const MISTRAL: Markers = Markers {
    call: "[TOOL_CALLS]",
    separator: "[ARGS]",
    end: "",
    section: &["[/TOOL_CALLS]"],
    kind: None,
    lists: true,
};
pub(super) const DEEPSEEK: Markers = Markers {
    call: "<｜tool▁call▁begin｜>",
    separator: "<｜tool▁sep｜>",
    end: "<｜tool▁call▁end｜>",
    section: &["<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"],
    kind: Some("function"),
    lists: false,
};
pub(super) const KIMI: Markers = Markers {
    call: "<|tool_call_begin|>",
    separator: "<|tool_call_argument_begin|>",
    end: "<|tool_call_end|>",
    section: &["<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"],
    kind: None,
    lists: false,
};

pub(super) const FUNCTIONARY: Markers =
    Markers { call: "<function=", separator: ">", end: "</function>", section: &[], kind: None, lists: false };

#[derive(Debug)]
enum Place {
    Content,
    Header,
    Line,
    Arguments(ArgumentReader),
    List(ListReader),
    /// Behind the arguments: fences and blanks until the end marker.
    Tail,
}

/// Reads one family's calls.
#[derive(Debug)]
pub(super) struct Named {
    markers: Markers,
    finder: TagFinder,
    place: Place,
    header: String,
    /// All text since the marker, for as long as there is no call.
    raw: String,
}

impl Named {
    pub(super) fn new(markers: Markers) -> Self {
        let finder = Self::finder(markers);
        Self { markers, finder, place: Place::Content, header: String::new(), raw: String::new() }
    }

    fn finder(markers: Markers) -> TagFinder {
        let end: &[&'static str] = if markers.end.is_empty() { &[] } else { &[markers.end] };
        TagFinder::new(&[&[markers.call], markers.section, end])
    }

    fn give_up(&mut self, out: &mut Events) {
        out.content_all(&std::mem::take(&mut self.raw));
        self.place = Place::Content;
    }

    fn marker(&mut self, tag: &'static str) {
        if tag == self.markers.call {
            self.place = Place::Header;
            self.header.clear();
            tag.clone_into(&mut self.raw);
        } else {
            self.place = Place::Content;
        }
    }

    fn feed_header(&mut self, letter: char, out: &mut Events) {
        let blank = self.header.trim().is_empty();
        if self.markers.lists && blank && matches!(letter, '[' | '{') {
            let mut list = ListReader::new(&std::mem::take(&mut self.raw));
            self.place = Place::Content;
            if list.feed(letter, None, out) == Progress::More {
                self.place = Place::List(list);
            }
            return;
        }
        self.raw.push(letter);
        self.header.push(letter);
        if let Some(text) = self.header.strip_suffix(self.markers.separator) {
            if self.markers.kind == Some(text.trim()) {
                self.header.clear();
                self.place = Place::Line;
                return;
            }
            let text = text.split("[CALL_ID]").next().unwrap_or(text).trim();
            let text = text.strip_prefix("functions.").unwrap_or(text);
            let numbered = text.rsplit_once(':').filter(|(_, number)| number.parse::<u32>().is_ok());
            let name = numbered.map_or(text, |(name, _)| name).to_owned();
            self.read_arguments(&name, out);
        } else if self.markers.lists && letter == '{' {
            // Some omit the separator.
            let name = self.header[..self.header.len() - 1].trim().to_owned();
            self.raw.pop();
            self.read_arguments(&name, out);
            if matches!(self.place, Place::Arguments(_)) {
                self.feed(letter, out);
            } else {
                out.content(letter);
            }
        } else if self.header.len() > MAX_NAME_BYTES {
            self.give_up(out);
        }
    }

    fn read_arguments(&mut self, name: &str, out: &mut Events) {
        let fits = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_-./".contains(c));
        if fits {
            self.place = Place::Arguments(ArgumentReader::new(name));
        } else {
            self.give_up(out);
        }
    }
}

impl Format for Named {
    fn feed(&mut self, letter: char, out: &mut Events) {
        match &mut self.place {
            Place::Content => {
                if let Some(tag) = self.finder.feed(letter, |letter| out.content(letter)) {
                    self.marker(tag);
                }
            }
            Place::Header => self.feed_header(letter, out),
            Place::Line => {
                self.raw.push(letter);
                if letter == '\n' {
                    let name = self.header.trim().to_owned();
                    self.read_arguments(&name, out);
                } else {
                    self.header.push(letter);
                    if self.header.len() > MAX_NAME_BYTES {
                        self.give_up(out);
                    }
                }
            }
            Place::Arguments(reader) => {
                self.raw.push(letter);
                let progress = reader.feed(letter, out);
                if reader.started() {
                    self.raw.clear();
                }
                match progress {
                    Progress::More => {}
                    Progress::Malformed => self.give_up(out),
                    Progress::Done if self.markers.end.is_empty() => self.place = Place::Content,
                    Progress::Done => self.place = Place::Tail,
                }
            }
            Place::List(list) => {
                if list.feed(letter, None, out) != Progress::More {
                    self.place = Place::Content;
                }
            }
            Place::Tail => {
                if let Some(tag) = self.finder.feed(letter, |_| ()) {
                    self.marker(tag);
                }
            }
        }
    }

    fn finish(&mut self, out: &mut Events) {
        let held = self.finder.take();
        if let Place::List(list) = &mut self.place {
            list.finish(out);
        } else if !matches!(self.place, Place::Tail) {
            out.content_all(&std::mem::take(&mut self.raw));
            out.content_all(&held);
        }
    }
}
