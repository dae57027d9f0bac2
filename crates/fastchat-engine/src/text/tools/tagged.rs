//! Calls as JSON behind a marker, or without one where the names of the tools tell them apart.

use super::Format;
use super::events::Events;
use super::json_call::Progress;
use super::json_list::ListReader;
use super::tags::TagFinder;

/// Markers, and the names that make bare JSON a call.
#[derive(Debug)]
pub(super) struct Tagged {
    closers: &'static [&'static str],
    bare: Option<Vec<String>>,
    finder: TagFinder,
    list: Option<ListReader>,
    /// The list being read has no marker: its names must be known.
    is_bare: bool,
}

impl Tagged {
    pub(super) fn new(
        openers: &'static [&'static str],
        closers: &'static [&'static str],
        bare: Option<Vec<String>>,
    ) -> Self {
        Self { closers, bare, finder: TagFinder::new(&[openers, closers]), list: None, is_bare: false }
    }
}

impl Format for Tagged {
    fn feed(&mut self, letter: char, out: &mut Events) {
        if let Some(list) = &mut self.list {
            let known = if self.is_bare { self.bare.as_deref() } else { None };
            if list.feed(letter, known, out) != Progress::More {
                self.list = None;
            }
            return;
        }
        if self.bare.is_some() && out.at_start() && !self.finder.is_holding() && matches!(letter, '{' | '[') {
            let mut list = ListReader::new("");
            self.is_bare = true;
            if list.feed(letter, self.bare.as_deref(), out) == Progress::More {
                self.list = Some(list);
            }
            return;
        }
        if let Some(tag) = self.finder.feed(letter, |letter| out.content(letter)) {
            if !self.closers.contains(&tag) {
                self.is_bare = false;
                self.list = Some(ListReader::new(tag));
            } else if out.calls() == 0 || !out.at_start() {
                out.content_all(tag);
            }
        }
    }

    fn finish(&mut self, out: &mut Events) {
        out.content_all(&self.finder.take());
        if let Some(mut list) = self.list.take() {
            list.finish(out);
        }
    }
}
