//! Calls as JSON behind a marker, or without one where the names of the tools tell them apart.

use super::Format;
use super::events::Events;
use super::json_call::Progress;
use super::json_list::ListReader;
use super::tags::TagFinder;

/// A fence that models put around bare calls.
const FENCE: &str = "```json";
const FENCE_END: &str = "\n```";

/// Where a marker is followed by several objects, one a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lines {
    /// No marker is.
    Never,
    Outside,
    /// Behind such a marker, whose end has not come.
    Inside,
}

/// Markers, and the names that make bare JSON a call.
#[derive(Debug)]
pub(super) struct Tagged {
    closers: &'static [&'static str],
    bare: Option<Vec<String>>,
    finder: TagFinder,
    list: Option<ListReader>,
    /// The list being read has no marker: its names must be known.
    is_bare: bool,
    /// The call read last began behind a fence.
    fenced: bool,
    lines: Lines,
}

impl Tagged {
    pub(super) fn new(
        openers: &'static [&'static str],
        closers: &'static [&'static str],
        bare: Option<Vec<String>>,
    ) -> Self {
        let fences: &[&str] = if bare.is_some() { &[FENCE, FENCE_END] } else { &[] };
        Self {
            closers,
            bare,
            finder: TagFinder::new(&[openers, closers, fences]),
            list: None,
            is_bare: false,
            fenced: false,
            lines: Lines::Never,
        }
    }

    /// With several objects between an opener and a closer, and no comma between them.
    pub(super) fn lines(
        openers: &'static [&'static str],
        closers: &'static [&'static str],
        names: Vec<String>,
    ) -> Self {
        // No fences: one's end begins with the line break between objects.
        let finder = TagFinder::new(&[openers, closers]);
        Self { lines: Lines::Outside, finder, ..Self::new(openers, closers, Some(names)) }
    }

    fn enter(&mut self, place: Lines) {
        if self.lines != Lines::Never {
            self.lines = place;
        }
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
            (self.is_bare, self.fenced) = (self.lines != Lines::Inside, false);
            let known = if self.is_bare { self.bare.as_deref() } else { None };
            if list.feed(letter, known, out) == Progress::More {
                self.list = Some(list);
            }
            return;
        }
        let Some(tag) = self.finder.feed(letter, |letter| out.content(letter)) else { return };
        let after_call = out.calls() > 0 && out.at_start();
        let is_closer = self.closers.contains(&tag) || (tag == FENCE_END && self.fenced);
        if is_closer && after_call {
            self.fenced = false;
            self.enter(Lines::Outside);
        } else if is_closer || tag == FENCE_END || (tag == FENCE && !out.at_start()) {
            out.content_all(tag);
        } else {
            self.fenced = tag == FENCE;
            self.is_bare = self.fenced;
            self.enter(Lines::Inside);
            self.list = Some(ListReader::new(tag));
        }
    }

    fn finish(&mut self, out: &mut Events) {
        out.content_all(&self.finder.take());
        if let Some(mut list) = self.list.take() {
            list.finish(out);
        }
    }
}
