//! Stop strings in a stream. Must hold for any strings and any cuts: what leaves is what a search of the whole text says,
//! and the matcher names the string that ended first, of those the one that began first.

use fastchat_engine::text::StopMatcher;

use crate::text::pieces;

/// The first byte says whether the string that is found leaves too; then stop strings, each ended by a zero; then a text
/// whose pieces are ended by ones.
pub fn check(input: &[u8]) {
    let Some((&options, rest)) = input.split_first() else { return };
    let mut parts: Vec<&[u8]> = rest.split(|&byte| byte == 0).collect();
    let pieces = pieces(parts.pop().unwrap_or_default());
    let stops: Vec<String> = parts.into_iter().map(|stop| String::from_utf8_lossy(stop).into_owned()).collect();
    let include = options & 1 == 1;
    let text = pieces.concat();

    let found = stops.iter().filter(|stop| !stop.is_empty());
    let found = found
        .filter_map(|stop| text.find(stop.as_str()).map(|at| (at + stop.len(), at, stop)))
        .min_by_key(|found| (found.0, found.1));
    let expected = match found {
        Some((end, start, _)) => &text[..if include { end } else { start }],
        None => &text,
    };

    let mut matcher = StopMatcher::new(stops.clone(), include);
    let mut out = String::new();
    for piece in &pieces {
        let stopped = matcher.push(piece, &mut out);
        assert_eq!(stopped, matcher.stopped_by().is_some());
        assert!(expected.starts_with(&out), "{out:?} left, {expected:?} may");
    }
    matcher.finish(&mut out);
    assert_eq!(out, expected);
    assert_eq!(matcher.stopped_by(), found.map(|found| found.2.as_str()));
}
