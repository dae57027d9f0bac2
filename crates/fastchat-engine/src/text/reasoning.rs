//! Splits a model's output into what it thinks and what it answers, as it comes. Decides per character, so pieces of
//! any size give the same.

/// A pair of markers around reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasoningMarkers {
    /// Begins the reasoning.
    pub open: &'static str,
    /// Ends it; the answer follows.
    pub close: &'static str,
}

/// Pairs that published chat templates use.
pub const REASONING_MARKERS: [ReasoningMarkers; 8] = [
    ReasoningMarkers { open: "<think>", close: "</think>" },
    ReasoningMarkers { open: "[THINK]", close: "[/THINK]" },
    ReasoningMarkers { open: "<seed:think>", close: "</seed:think>" },
    ReasoningMarkers { open: "<|START_THINKING|>", close: "<|END_THINKING|>" },
    ReasoningMarkers { open: "<|inner_prefix|>", close: "<|inner_suffix|>" },
    ReasoningMarkers { open: "<reasoning>", close: "</reasoning>" },
    ReasoningMarkers { open: "<|channel>thought", close: "<channel|>" },
    ReasoningMarkers { open: "<mm:think>", close: "</mm:think>" },
];

impl ReasoningMarkers {
    /// The pair a chat template mentions, if any. A template that only strips old reasoning mentions the closing one.
    pub fn detect(template: &str) -> Option<Self> {
        REASONING_MARKERS.into_iter().find(|markers| template.contains(markers.close))
    }

    /// Whether the rendered prompt ends inside the reasoning, so that the output begins there.
    pub fn opened_by(self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(self.open)
    }
}

/// What one piece added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReasoningDelta {
    /// Thoughts; they always come before the content of the same delta.
    pub reasoning: String,
    /// The answer.
    pub content: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing but blanks so far; an opening marker may come.
    Start {
        opened: bool,
    },
    /// Inside; `blank` until the first letter.
    Thinking {
        blank: bool,
    },
    /// Behind the closing marker, blanks are dropped.
    Closed,
    Answering,
}

/// Splits one output.
#[derive(Clone, Debug)]
pub struct ReasoningSplitter {
    markers: ReasoningMarkers,
    place: Place,
    /// Blanks and the beginning of a marker that may still come true.
    held: String,
}

impl ReasoningSplitter {
    /// `opened`: the prompt already ends inside the reasoning.
    pub fn new(markers: ReasoningMarkers, opened: bool) -> Self {
        Self { markers, place: Place::Start { opened }, held: String::new() }
    }

    /// Whether the output is still inside the reasoning.
    pub fn is_thinking(&self) -> bool {
        matches!(self.place, Place::Thinking { .. } | Place::Start { opened: true })
    }

    /// Takes the next piece.
    pub fn push(&mut self, piece: &str) -> ReasoningDelta {
        let mut delta = ReasoningDelta::default();
        for letter in piece.chars() {
            self.feed(letter, &mut delta);
        }
        delta
    }

    /// Gives out what was held when the output ends.
    pub fn finish(&mut self) -> ReasoningDelta {
        let mut delta = ReasoningDelta::default();
        let held = std::mem::take(&mut self.held);
        match self.place {
            Place::Start { opened: false } | Place::Answering => delta.content = held,
            Place::Start { opened: true } | Place::Thinking { .. } => {
                held.trim_end().clone_into(&mut delta.reasoning);
            }
            Place::Closed => {}
        }
        delta
    }

    fn feed(&mut self, letter: char, delta: &mut ReasoningDelta) {
        match self.place {
            Place::Start { opened } => {
                self.held.push(letter);
                let begun = self.held.trim_start();
                if begun == self.markers.open {
                    self.held.clear();
                    self.place = Place::Thinking { blank: true };
                } else if !self.markers.open.starts_with(begun) {
                    let held = std::mem::take(&mut self.held);
                    self.place = if opened { Place::Thinking { blank: true } } else { Place::Answering };
                    if opened {
                        held.chars().for_each(|letter| self.feed(letter, delta));
                    } else {
                        delta.content.push_str(&held);
                    }
                }
            }
            Place::Thinking { blank } => self.think(letter, blank, delta),
            Place::Closed if letter.is_whitespace() => {}
            Place::Closed | Place::Answering => {
                self.place = Place::Answering;
                delta.content.push(letter);
            }
        }
    }

    /// Holds blanks and what may become the closing marker; the reasoning loses blanks at both ends.
    fn think(&mut self, letter: char, blank: bool, delta: &mut ReasoningDelta) {
        self.held.push(letter);
        loop {
            let blanks = self.held.len() - self.held.trim_start().len();
            let rest = &self.held[blanks..];
            if rest == self.markers.close {
                self.held.clear();
                self.place = Place::Closed;
                return;
            }
            if self.markers.close.starts_with(rest) {
                if blank {
                    self.held.drain(..blanks);
                }
                return;
            }
            let first = rest.chars().next().map_or(0, char::len_utf8);
            let leaves = &self.held[if blank { blanks } else { 0 }..blanks + first];
            delta.reasoning.push_str(leaves);
            self.held.drain(..blanks + first);
            if blank {
                self.place = Place::Thinking { blank: false };
                let held = std::mem::take(&mut self.held);
                held.chars().for_each(|letter| self.feed(letter, delta));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{REASONING_MARKERS, ReasoningDelta, ReasoningMarkers, ReasoningSplitter};

    const THINK: ReasoningMarkers = REASONING_MARKERS[0];

    fn run(pieces: &[&str], opened: bool) -> (String, String) {
        let mut splitter = ReasoningSplitter::new(THINK, opened);
        let mut whole = ReasoningDelta::default();
        let mut deltas: Vec<_> = pieces.iter().map(|piece| splitter.push(piece)).collect();
        deltas.push(splitter.finish());
        for delta in deltas {
            assert!(whole.content.is_empty() || delta.reasoning.is_empty(), "thoughts after the answer");
            whole.reasoning.push_str(&delta.reasoning);
            whole.content.push_str(&delta.content);
        }
        (whole.reasoning, whole.content)
    }

    fn pair(reasoning: &str, content: &str) -> (String, String) {
        (reasoning.to_owned(), content.to_owned())
    }

    #[test]
    fn examples() {
        assert_eq!(run(&["<think>\na <b> c\n</think>\n\nhi\n"], false), pair("a <b> c", "hi\n"));
        assert_eq!(run(&["a\n</think>hi"], true), pair("a", "hi"));
        assert_eq!(run(&["\n<think>a</think>hi"], true), pair("a", "hi"));
        assert_eq!(run(&["<think>\n\n</think>\n\nhi"], false), pair("", "hi"));
        assert_eq!(run(&[" hi <think>a</think>"], false), pair("", " hi <think>a</think>"));
        assert_eq!(run(&["<think>cut off </thi"], false), pair("cut off </thi", ""));
        assert_eq!(run(&["cut off \n"], true), pair("cut off", ""));
    }

    #[test]
    fn templates_and_prompts() {
        assert_eq!(ReasoningMarkers::detect("{% if '</think>' in content %}"), Some(THINK));
        assert_eq!(ReasoningMarkers::detect("{{ bos_token }}"), None);
        assert!(THINK.opened_by("<|im_start|>assistant\n<think>\n"));
        assert!(!THINK.opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same(
            parts in prop::collection::vec(prop_oneof![
                Just("<think>"), Just("</think>"), Just("\n"), Just(" "), Just("a"), Just("<"), Just("</th"), Just("é"),
            ], 0..12),
            cuts in prop::collection::vec(0usize..60, 0..6),
            opened in any::<bool>(),
        ) {
            let text = parts.concat();
            let mut borders: Vec<usize> = cuts.into_iter().filter(|&cut| cut < text.len() && text.is_char_boundary(cut)).collect();
            borders.extend([0, text.len()]);
            borders.sort_unstable();
            let pieces: Vec<&str> = borders.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let whole = run(&[&text], opened);
            prop_assert_eq!(&run(&pieces, opened), &whole);
            // Nothing is lost but markers and blanks.
            let letters = |text: &str| text.replace("<think>", "").replace("</think>", "").replace([' ', '\n'], "");
            prop_assert_eq!(letters(&(whole.0 + &whole.1)), letters(&text));
        }
    }
}
