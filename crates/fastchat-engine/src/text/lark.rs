//! Pieces of grammar text in llguidance's dialect of Lark, quoted so that no name or schema can break out of its place.

use serde_json::Value;

use super::Tokenizer;
use super::schema::prepare;

/// Stands around the control tokens of a marker; no marker has it.
const FENCE: &str = "\0";

/// A string, as itself.
pub(crate) fn text(text: &str) -> String {
    if text.is_empty() { "\"\"".to_owned() } else { Value::from(text).to_string() }
}

/// A marker cut at the control tokens that the vocabulary has for it; the others are letters.
fn pieces<'a>(tokenizer: &Tokenizer, fenced: &'a str) -> Vec<(Option<u32>, &'a str)> {
    let cut = fenced.split(FENCE).enumerate().filter(|(_, piece)| !piece.is_empty());
    cut.map(|(at, piece)| (tokenizer.token_to_id(piece).filter(|_| at % 2 == 1), piece)).collect()
}

fn joined(pieces: &[(Option<u32>, &str)]) -> String {
    let spell = |&(token, piece): &(Option<u32>, &str)| token.map_or_else(|| text(piece), |id| format!("<[{id}]>"));
    pieces.iter().map(spell).collect::<Vec<_>>().join(" ")
}

/// Whether a text without control tokens lacks a part of `marker`.
pub(crate) fn has_token(tokenizer: &Tokenizer, marker: &str) -> bool {
    tokenizer.fence(marker, FENCE).contains(FENCE)
}

/// A marker of a chat format: control tokens where the vocabulary has them, letters otherwise.
pub(crate) fn marker(tokenizer: &Tokenizer, marker: &str) -> String {
    joined(&pieces(tokenizer, &tokenizer.fence(marker, FENCE)))
}

/// Any text of `length` characters up to and including `end`: what stands for it, and the rule called `name` if that
/// needs one.
pub(crate) fn until(tokenizer: &Tokenizer, name: &str, end: &str, length: Length) -> (String, String) {
    let fenced = tokenizer.fence(end, FENCE);
    let pieces = pieces(tokenizer, &fenced);
    let Some(at) = pieces.iter().position(|(token, _)| token.is_some()) else {
        return (name.to_owned(), format!("{name}[suffix={}]: /{}/\n", text(end), length.expression()));
    };
    // Letters before the token belong to the same expression: it would swallow them otherwise.
    let letters: String = pieces[..at].iter().flat_map(|(_, piece)| piece.chars()).map(escaped).collect();
    (format!("/{}{letters}/ {}", length.expression(), joined(&pieces[at..])), String::new())
}

fn escaped(letter: char) -> String {
    format!("\\x{{{:X}}}", u32::from(letter))
}

/// How many characters a text may have.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Length {
    pub least: u64,
    pub most: Option<u64>,
}

impl Length {
    fn expression(self) -> String {
        let Self { least, most } = self;
        match most {
            None if least == 0 => "(?s:.*)".to_owned(),
            most => format!("(?s:.{{{least},{}}})", most.map_or_else(String::new, |most| most.to_string())),
        }
    }
}

/// JSON that `schema` accepts; none for a schema that cannot be prepared, which its owner has refused before.
pub(crate) fn json(schema: &Value) -> String {
    format!("%json {}", prepare(schema).unwrap_or(Value::Bool(false)))
}

#[cfg(test)]
mod tests {
    use super::super::grammar_tests::END;
    use super::super::test_vocabulary::{CONTROL, byte_level};
    use super::super::{GrammarCompiler, GrammarSpec};
    use super::{Length, has_token, marker, until};

    #[test]
    fn a_marker_may_have_a_control_token_inside() {
        let tokenizer = byte_level();
        let end = format!("</{}x>", CONTROL[0]);
        assert_eq!(marker(&tokenizer, &end), "\"</\" <[256]> \"x>\"");
        assert!(has_token(&tokenizer, &end) && !has_token(&tokenizer, "</x>"));
        let length = Length { least: 1, most: Some(4) };
        let accepts = |end: &str, text: &str| {
            let (body, rule) = until(&tokenizer, "text", end, length);
            let spec = GrammarSpec::Lark(format!("start: \"a\" {body} \"b\"\n{rule}"));
            let mut matcher = GrammarCompiler::new(&tokenizer, &[END]).unwrap().compile(&spec).unwrap();
            let ids = tokenizer.encode(text, false, true).unwrap();
            ids.into_iter().all(|id| matcher.accept(id).is_ok()) && matcher.can_stop().unwrap()
        };
        for end in [end.as_str(), "</x>"] {
            for (text, fits) in [("", false), ("c", true), ("<</", true), ("/c<\n", true), ("ccccc", false)] {
                assert_eq!(accepts(end, &format!("a{text}{end}b")), fits, "{text:?} {end}");
            }
            assert!(!accepts(end, &format!("ac{}b", &end[1..])) && !accepts(end, "acb"));
        }
    }
}
