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
    /// Whether a run of spaces before a word leaves its last character to that word.
    gives_last_space: bool,
}

/// Written at the end of a pattern in place of `\s+(?!\S)|\s+`.
pub(crate) const SPACES: &str = r"|\s+";

impl Splitter {
    /// Compiles `patterns`; one that ends in [`SPACES`] gets the lookahead rule.
    pub(crate) fn new(patterns: &[&str]) -> Result<Self, TextError> {
        let stage = |pattern: &&str| {
            let regex = Regex::new(pattern).map_err(|e| TextError::vocabulary("tokenizer.ggml.pre", e.to_string()))?;
            Ok(Stage { regex, gives_last_space: pattern.ends_with(SPACES) })
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
        if self.gives_last_space && end < text.len() {
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

#[cfg(test)]
mod tests {
    use super::Splitter;

    fn words(patterns: &[&str], text: &str) -> Vec<String> {
        let mut out = Vec::new();
        let splitter = Splitter::new(patterns).unwrap();
        splitter.for_each(text, &mut |word| Ok::<(), ()>(out.push(word.to_owned()))).unwrap();
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
    fn later_stages_cut_matches_and_gaps() {
        assert_eq!(words(&[r"\p{N}", r" ?\p{L}+"], "ab12 cd!"), ["ab", "1", "2", " cd", "!"]);
    }
}
