//! Finds the tokens that are matched in the raw text before any model sees it. Knows only spellings and ids.

use aho_corasick::{AhoCorasick, MatchKind};

use super::TextError;

/// Most bytes of one special token; longer ones are a broken file.
const MAX_SPECIAL_BYTES: usize = 4096;

/// A piece of the text, cut at special tokens.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fragment<'a> {
    Text(&'a str),
    Token(u32),
}

/// Spellings matched leftmost, longest first.
#[derive(Debug)]
pub(crate) struct SpecialTokens {
    all: Matcher,
    /// Those a user's plain text may name too (GGUF's user-defined kind).
    plain: Matcher,
}

#[derive(Debug)]
struct Matcher {
    automaton: AhoCorasick,
    ids: Vec<u32>,
}

impl Matcher {
    fn new(tokens: &[(u32, &str)]) -> Result<Self, TextError> {
        if let Some((id, _)) = tokens.iter().find(|(_, spelling)| spelling.len() > MAX_SPECIAL_BYTES) {
            let message =
                format!("token {id} is longer than the limit of {MAX_SPECIAL_BYTES} bytes for a special token");
            return Err(TextError::vocabulary("tokenizer.ggml.tokens", message));
        }
        let spellings = tokens.iter().map(|(_, spelling)| spelling);
        let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(spellings);
        let automaton = automaton.map_err(|e| TextError::vocabulary("tokenizer.ggml.tokens", e.to_string()))?;
        Ok(Self { automaton, ids: tokens.iter().map(|&(id, _)| id).collect() })
    }
}

impl SpecialTokens {
    /// `control` are matched only when special tokens are parsed, `user_defined` always. Empty spellings match nothing.
    pub(crate) fn new(control: &[(u32, &str)], user_defined: &[(u32, &str)]) -> Result<Self, TextError> {
        let named = |tokens: &[(u32, &str)]| -> Vec<(u32, String)> {
            tokens.iter().filter(|(_, s)| !s.is_empty()).map(|&(id, s)| (id, s.to_owned())).collect()
        };
        let plain = named(user_defined);
        let mut all = named(control);
        all.extend(plain.iter().cloned());
        let build = |tokens: &[(u32, String)]| {
            Matcher::new(&tokens.iter().map(|(id, s)| (*id, s.as_str())).collect::<Vec<_>>())
        };
        Ok(Self { all: build(&all)?, plain: build(&plain)? })
    }

    /// Cuts `text`; no fragment is empty.
    pub(crate) fn cut<'a>(&self, text: &'a str, parse_special: bool) -> Vec<Fragment<'a>> {
        let matcher = if parse_special { &self.all } else { &self.plain };
        let mut fragments = Vec::new();
        let mut done = 0;
        if !matcher.ids.is_empty() {
            for found in matcher.automaton.find_iter(text) {
                if done < found.start() {
                    fragments.push(Fragment::Text(&text[done..found.start()]));
                }
                fragments.push(Fragment::Token(matcher.ids[found.pattern().as_usize()]));
                done = found.end();
            }
        }
        if done < text.len() {
            fragments.push(Fragment::Text(&text[done..]));
        }
        fragments
    }
}

#[cfg(test)]
mod tests {
    use super::{Fragment, SpecialTokens};

    #[test]
    fn longest_token_wins_and_control_tokens_need_permission() {
        let specials = SpecialTokens::new(&[(1, "<|a|>"), (2, "<|a|>b")], &[(3, "\n\n")]).unwrap();
        let cut = specials.cut("x<|a|>b\n\ny", true);
        assert_eq!(cut, [Fragment::Text("x"), Fragment::Token(2), Fragment::Token(3), Fragment::Text("y")]);
        let cut = specials.cut("x<|a|>b\n\ny", false);
        assert_eq!(cut, [Fragment::Text("x<|a|>b"), Fragment::Token(3), Fragment::Text("y")]);
    }
}
