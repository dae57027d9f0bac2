//! Where a JSON value ends in a stream of characters. Checks brackets and strings, not the rest of the grammar.

/// Deepest nesting followed.
const MAX_DEPTH: usize = 128;

/// What a character was to the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// Part of it.
    Inside,
    /// Its last character.
    Last,
    /// Not part of it; the value ended before.
    After,
    /// No JSON.
    Broken,
}

/// Follows one value from its first character.
#[derive(Debug, Default)]
pub(super) struct ValueScanner {
    closers: Vec<char>,
    in_string: bool,
    escaped: bool,
    in_scalar: bool,
}

impl ValueScanner {
    pub(super) fn feed(&mut self, letter: char) -> Scan {
        if self.in_string {
            if self.escaped {
                self.escaped = false;
            } else if letter == '\\' {
                self.escaped = true;
            } else if letter == '"' {
                self.in_string = false;
                return if self.closers.is_empty() { Scan::Last } else { Scan::Inside };
            }
            return Scan::Inside;
        }
        let top = self.closers.is_empty();
        // What can only follow a value: it ends a number or a word, and begins nothing.
        if top && (letter.is_whitespace() || "}],".contains(letter)) {
            return if self.in_scalar { Scan::After } else { Scan::Broken };
        }
        match letter {
            '"' | '{' | '[' if top && self.in_scalar => Scan::Broken,
            '"' => {
                self.in_string = true;
                Scan::Inside
            }
            '{' | '[' if self.closers.len() == MAX_DEPTH => Scan::Broken,
            '{' | '[' => {
                self.closers.push(if letter == '{' { '}' } else { ']' });
                Scan::Inside
            }
            '}' | ']' if self.closers.pop() != Some(letter) => Scan::Broken,
            '}' | ']' => {
                if self.closers.is_empty() {
                    Scan::Last
                } else {
                    Scan::Inside
                }
            }
            _ if top && !(letter.is_ascii_alphanumeric() || "+-.".contains(letter)) => Scan::Broken,
            _ => {
                self.in_scalar |= top;
                Scan::Inside
            }
        }
    }
}
