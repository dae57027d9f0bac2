//! Stop strings across the borders of pieces: no part of one ever leaves, and no more is held back than could still
//! become one.

/// Watches one stream of text for the first of several strings.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    include: bool,
    held: String,
    stopped: Option<usize>,
}

impl StopMatcher {
    /// Watches for `stops`; empty strings are ignored. `include` lets the string that was found leave too.
    pub fn new(stops: Vec<String>, include: bool) -> Self {
        Self { stops, include, held: String::new(), stopped: None }
    }

    /// Takes the next piece and appends to `out` what may leave. Returns whether the stream has stopped; after that
    /// nothing leaves any more.
    pub fn push(&mut self, piece: &str, out: &mut String) -> bool {
        if self.stopped.is_some() || (self.stops.is_empty() && self.held.is_empty()) {
            if self.stopped.is_none() {
                out.push_str(piece);
            }
            return self.stopped.is_some();
        }
        self.held.push_str(piece);
        if let Some((end, start, index)) = self.first_match() {
            let leaves = if self.include { end } else { start };
            out.push_str(&self.held[..leaves]);
            self.held.clear();
            self.stopped = Some(index);
            return true;
        }
        let keep = self.longest_beginning();
        let leaves = self.held.len() - keep;
        out.push_str(&self.held[..leaves]);
        self.held.drain(..leaves);
        false
    }

    /// Appends what was held back when no more text comes.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    /// The string that stopped the stream.
    pub fn stopped_by(&self) -> Option<&str> {
        self.stopped.map(|index| self.stops[index].as_str())
    }

    /// The match that was complete first, among those the one that began first: (end, start, index).
    fn first_match(&self) -> Option<(usize, usize, usize)> {
        let matches = self.stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        matches.filter_map(|(index, stop)| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at, index))).min()
    }

    /// Length of the longest end of `held` that begins a stop string.
    fn longest_beginning(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0).saturating_sub(1);
        let first = self.held.len().saturating_sub(longest);
        let mut starts = (first..self.held.len()).filter(|&at| self.held.is_char_boundary(at));
        let begins = |at: usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..]));
        starts.find(|&at| begins(at)).map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::StopMatcher;

    /// Text and reason of a whole stream given in `pieces`; also checks that nothing is held for longer than needed.
    fn run(pieces: &[&str], stops: &[String], include: bool) -> (String, Option<String>) {
        let mut matcher = StopMatcher::new(stops.to_vec(), include);
        let mut out = String::new();
        let mut seen = String::new();
        for piece in pieces {
            seen.push_str(piece);
            if matcher.push(piece, &mut out) {
                break;
            }
            assert!(seen.starts_with(&out));
            let held = &seen[out.len()..];
            assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(held)), "held {held:?} without need");
        }
        matcher.finish(&mut out);
        (out, matcher.stopped_by().map(str::to_owned))
    }

    proptest! {
        #[test]
        fn any_split_gives_what_single_characters_give(
            text in "[ab\u{e9}]{0,24}",
            stops in prop::collection::vec("[ab\u{e9}]{1,4}", 0..4),
            cuts in prop::collection::vec(0usize..24, 0..6),
            include in any::<bool>(),
        ) {
            let letters: Vec<String> = text.chars().map(String::from).collect();
            let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
            let expected = run(&letters, &stops, include);
            let mut borders: Vec<usize> = cuts.into_iter().filter(|&cut| text.is_char_boundary(cut) && cut < text.len()).collect();
            borders.extend([0, text.len()]);
            borders.sort_unstable();
            let pieces: Vec<&str> = borders.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(&run(&pieces, &stops, include), &expected);
            let (out, stop) = expected;
            match stop {
                Some(stop) if include => prop_assert!(out.ends_with(&stop)),
                Some(_) => prop_assert!(stops.iter().all(|stop| !out.contains(stop.as_str()))),
                None => prop_assert_eq!(out, text),
            }
        }
    }

    #[test]
    fn holds_only_what_could_become_a_stop_string() {
        let mut matcher = StopMatcher::new(vec!["</end>".into()], false);
        let mut out = String::new();
        assert!(!matcher.push("text </e", &mut out));
        assert_eq!(out, "text ");
        assert!(!matcher.push("x <", &mut out));
        assert_eq!(out, "text </ex ");
        assert!(matcher.push("/end> more", &mut out));
        assert_eq!((out.as_str(), matcher.stopped_by()), ("text </ex ", Some("</end>")));
        assert!(matcher.push("ignored", &mut out));
        assert_eq!(out, "text </ex ");
    }
}
