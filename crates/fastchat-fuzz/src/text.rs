//! An input as a text in pieces. Knows no target.

/// Ends a piece; not part of the text.
const CUT: char = '\u{1}';

/// Text of `bytes` in the pieces that its cuts make.
pub(crate) fn pieces(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes).split(CUT).map(str::to_owned).collect()
}

/// A bound of errors that reach a client: one line, and short.
pub(crate) fn check_message(error: &dyn std::fmt::Display) {
    let message = error.to_string();
    assert!(!message.contains(['\n', '\r']), "more than a line: {message:?}");
    assert!(message.len() <= 8192, "{} bytes of message", message.len());
}
