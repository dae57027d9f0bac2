//! Cuts text into the words a byte-pair model merges within. Linear in the text: the engine behind it never backtracks,
//! and the one lookahead that published patterns use, `\s+(?!\S)`, is done by hand.

use regex::Regex;

use super::TextError;

/// A sequence of cuts; each is applied to every piece the earlier ones left, matches and gaps alike.
#[derive(Debug)]
pub(crate) struct Splitter {
    stages: Vec<Stage>,
}

#[derive(Debug)]
struct Stage {
    regex: Regex,
    runs: Runs,
}

/// What becomes of a run of spaces or digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runs {
    /// One word.
    Whole,
    /// A run of spaces before a word leaves its last character to that word.
    GiveLastSpace,
    /// The same, and what is left is cut into powers of two, the largest first, and a pair or one.
    PowersOfTwo,
    /// Digits are grouped by three from the right.
    Threes,
}

/// Written at the end of a pattern in place of `\s+(?!\S)|\s+`.
pub(crate) const SPACES: &str = r"|\s+";
/// Written at the end of a pattern in place of `\s{512}(?!\S)|\s{256}(?!\S)|...|\s{1,2}(?!\S)|\s{1}`.
pub(crate) const HALVED_SPACES: &str = r"|\s{1,}";
/// In place of `\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))`.
pub(crate) const THREES: &str = r"(?:\p{N})+";
/// In place of `\d{1,3}(?=(?:\d{3})*\b)`.
pub(crate) const BOUNDED_THREES: &str = r"(?:\d)+\b";

impl Splitter {
    /// Compiles `patterns`; one that ends in [`SPACES`] gets the lookahead rule.
    pub(crate) fn new(patterns: &[&str]) -> Result<Self, TextError> {
        let stage = |pattern: &&str| {
            let regex = Regex::new(pattern).map_err(|e| TextError::vocabulary("tokenizer.ggml.pre", e.to_string()))?;
            let runs = match *pattern {
                THREES | BOUNDED_THREES => Runs::Threes,
                pattern if pattern.ends_with(SPACES) => Runs::GiveLastSpace,
                pattern if pattern.ends_with(HALVED_SPACES) => Runs::PowersOfTwo,
                _ => Runs::Whole,
            };
            Ok(Stage { regex, runs })
        };
        Ok(Self { stages: patterns.iter().map(stage).collect::<Result<_, TextError>>()? })
    }

    /// Calls `each` with the words of `text`, in order; together they are `text`.
    pub(crate) fn for_each<E>(&self, text: &str, each: &mut impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        cut(&self.stages, text, each)
    }
}

fn cut<E>(stages: &[Stage], text: &str, each: &mut impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
    let Some((stage, rest)) = stages.split_first() else {
        return if text.is_empty() { Ok(()) } else { each(text) };
    };
    let mut done = 0;
    while let Some((start, end)) = stage.next_match(text, done) {
        if done < start {
            cut(rest, &text[done..start], each)?;
        }
        cut(rest, &text[start..end], each)?;
        done = end;
    }
    if done < text.len() { cut(rest, &text[done..], each) } else { Ok(()) }
}

impl Stage {
    fn next_match(&self, text: &str, from: usize) -> Option<(usize, usize)> {
        let found = self.regex.find_at(text, from).filter(|found| !found.is_empty())?;
        let (start, end) = (found.start(), found.end());
        match self.runs {
            Runs::Whole => return Some((start, end)),
            Runs::Threes => {
                let count = found.as_str().chars().count();
                let first = if count.is_multiple_of(3) { 3 } else { count % 3 };
                let len = found.as_str().char_indices().nth(first).map_or(end - start, |(at, _)| at);
                return Some((start, start + len));
            }
            Runs::PowersOfTwo if is_spaces(found.as_str()) => {
                return Some((start, start + halved(found.as_str(), end == text.len())));
            }
            Runs::GiveLastSpace | Runs::PowersOfTwo => {}
        }
        if self.runs == Runs::GiveLastSpace && end < text.len() {
            let mut letters = text[start..end].chars();
            let last = letters.next_back()?;
            // A run that ends in a line break was matched by an earlier alternative, which gives nothing back, unless
            // the pattern has none; there the run ends before a word whatever it ends in.
            let is_run = !letters.as_str().is_empty() && found.as_str().chars().all(char::is_whitespace);
            if is_run && (!matches!(last, '\r' | '\n') || !self.takes_line_breaks()) {
                return Some((start, end - last.len_utf8()));
            }
        }
        Some((start, end))
    }

    fn takes_line_breaks(&self) -> bool {
        self.regex.as_str().contains(r"|\s*[\r\n]") || self.regex.as_str().contains(r"|[\r\n]")
    }
}

/// Spaces that no earlier alternative, which ends in a line break, has matched.
fn is_spaces(found: &str) -> bool {
    found.chars().all(char::is_whitespace) && !found.ends_with(['\r', '\n'])
}

/// Bytes of the first word of a run of spaces; a word after the run is left at least one.
fn halved(run: &str, at_end: bool) -> usize {
    let count = run.chars().count();
    let room = if at_end { count } else { count - 1 };
    let sizes = [512, 256, 128, 64, 32, 16, 8, 4, 2, 1];
    let first = sizes.into_iter().find(|size| *size <= room).unwrap_or(1);
    run.char_indices().nth(first).map_or(run.len(), |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::{BOUNDED_THREES, Splitter, THREES};

    fn words(patterns: &[&str], text: &str) -> Vec<String> {
        let mut out = Vec::new();
        let splitter = Splitter::new(patterns).unwrap();
        let mut each = |word: &str| {
            out.push(word.to_owned());
            Ok::<(), ()>(())
        };
        splitter.for_each(text, &mut each).unwrap();
        out
    }

    #[test]
    fn a_run_of_spaces_gives_its_last_one_to_the_word() {
        let gpt2 = [r" ?\p{L}+| ?[^\s\p{L}]+|\s+"];
        assert_eq!(words(&gpt2, "a   b"), ["a", "  ", " b"]);
        assert_eq!(words(&gpt2, "a\n\nb  "), ["a", "\n", "\n", "b", "  "]);
        let llama = [r"[^\r\n\p{L}]?\p{L}+|\s*[\r\n]+|\s+"];
        assert_eq!(words(&llama, "a \n\n  b"), ["a", " \n\n", " ", " b"]);
    }

    #[test]
    fn runs_of_spaces_are_halved() {
        let pattern = [r"[^\r\n\p{L}]?\p{L}+|\s*[\r\n]+|\s{1,}"];
        let lengths = |text: &str| words(&pattern, text).iter().map(|word| word.chars().count()).collect::<Vec<_>>();
        assert_eq!(lengths(&format!("a{}b", " ".repeat(14))), [1, 8, 4, 1, 2]);
        assert_eq!(lengths(&format!("a{}", " ".repeat(7))), [1, 4, 2, 1]);
        assert_eq!(words(&pattern, "a \n  b"), ["a", " \n", " ", " b"]);
    }

    #[test]
    fn digits_are_grouped_from_the_right() {
        assert_eq!(words(&[THREES], "a1234567b12"), ["a", "1", "234", "567", "b", "12"]);
        assert_eq!(words(&[THREES], "123456"), ["123", "456"]);
        assert_eq!(words(&[BOUNDED_THREES], "1234 1234a 12"), ["1", "234", " 1234a ", "12"]);
    }

    #[test]
    fn later_stages_cut_matches_and_gaps() {
        assert_eq!(words(&[r"\p{N}", r" ?\p{L}+"], "ab12 cd!"), ["ab", "1", "2", " cd", "!"]);
    }
}
