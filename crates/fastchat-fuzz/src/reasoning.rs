//! Thoughts apart from the answer. Must hold for every pair of markers, any text and any cuts: the same as for the whole,
//! and no text made up: what comes out is not longer than what came in.

use fastchat_engine::text::{REASONING_MARKERS, ReasoningSplitter};

use crate::text::pieces;

/// The first byte names the markers and whether the prompt began the thoughts; the rest is a text in pieces.
pub fn check(input: &[u8]) {
    let Some((&options, rest)) = input.split_first() else { return };
    let (opened, markers) = (options & 1 == 1, usize::from(options >> 1) % REASONING_MARKERS.len());
    let run = |pieces: &[String]| {
        let mut splitter = ReasoningSplitter::new(REASONING_MARKERS[markers], opened);
        let (mut reasoning, mut content) = (String::new(), String::new());
        let mut deltas: Vec<_> = pieces.iter().map(|piece| splitter.push(piece)).collect();
        deltas.push(splitter.finish());
        for delta in deltas {
            reasoning.push_str(&delta.reasoning);
            content.push_str(&delta.content);
        }
        (reasoning, content)
    };
    let pieces = pieces(rest);
    let text = pieces.concat();
    let whole = run(std::slice::from_ref(&text));
    assert_eq!(run(&pieces), whole);
    assert_eq!(run(&text.chars().map(String::from).collect::<Vec<_>>()), whole);
    assert!(whole.0.len() + whole.1.len() <= text.len());
}
