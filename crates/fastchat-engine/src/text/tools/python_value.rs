//! Python literals as JSON: what a model writes as keyword arguments.

use serde_json::{Map, Number, Value};

/// Deepest nesting read.
const MAX_DEPTH: usize = 64;

/// Reads the text between the parentheses of a call; `None` if it is not keyword arguments.
pub(super) fn keyword_arguments(text: &str) -> Option<Map<String, Value>> {
    let mut reader = Reader { rest: text, depth: 0 };
    let mut fields = Map::new();
    reader.blanks();
    while !reader.rest.is_empty() {
        let key = reader.identifier()?;
        reader.blanks();
        reader.expect('=')?;
        fields.insert(key.to_owned(), reader.value()?);
        reader.blanks();
        if !reader.take(',') && !reader.rest.is_empty() {
            return None;
        }
        reader.blanks();
    }
    Some(fields)
}

struct Reader<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn blanks(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, letter: char) -> bool {
        let found = self.rest.strip_prefix(letter);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn expect(&mut self, letter: char) -> Option<()> {
        self.take(letter).then_some(())
    }

    fn identifier(&mut self) -> Option<&'a str> {
        let end = self.rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!word.is_empty() && !word.starts_with(|c: char| c.is_ascii_digit())).then_some(word)
    }

    fn value(&mut self) -> Option<Value> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        self.blanks();
        let first = self.rest.chars().next()?;
        let value = match first {
            '"' | '\'' => self.string(first).map(Value::String),
            '[' | '(' => self.list(if first == '[' { ']' } else { ')' }),
            '{' => self.dictionary(),
            '-' | '+' | '.' | '0'..='9' => self.number(),
            _ => match self.identifier()? {
                "True" | "true" => Some(Value::Bool(true)),
                "False" | "false" => Some(Value::Bool(false)),
                "None" | "null" => Some(Value::Null),
                _ => None,
            },
        };
        self.depth -= 1;
        value
    }

    fn list(&mut self, closer: char) -> Option<Value> {
        self.rest = &self.rest[1..];
        let mut items = Vec::new();
        loop {
            self.blanks();
            if self.take(closer) {
                return Some(Value::Array(items));
            }
            items.push(self.value()?);
            self.blanks();
            if !self.take(',') && !self.rest.starts_with(closer) {
                return None;
            }
        }
    }

    fn dictionary(&mut self) -> Option<Value> {
        self.rest = &self.rest[1..];
        let mut fields = Map::new();
        loop {
            self.blanks();
            if self.take('}') {
                return Some(Value::Object(fields));
            }
            let key = match self.value()? {
                Value::String(key) => key,
                other => other.to_string(),
            };
            self.blanks();
            self.expect(':')?;
            fields.insert(key, self.value()?);
            self.blanks();
            if !self.take(',') && !self.rest.starts_with('}') {
                return None;
            }
        }
    }

    fn number(&mut self) -> Option<Value> {
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c)));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        let word = word.replace('_', "");
        let whole = word.parse::<i64>().map(Number::from).or_else(|_| word.parse::<u64>().map(Number::from));
        whole.ok().or_else(|| word.parse::<f64>().ok().and_then(Number::from_f64)).map(Value::Number)
    }

    fn string(&mut self, quote: char) -> Option<String> {
        self.rest = &self.rest[1..];
        let mut out = String::new();
        let mut letters = self.rest.char_indices();
        loop {
            let (at, letter) = letters.next()?;
            if letter == quote {
                self.rest = &self.rest[at + 1..];
                return Some(out);
            }
            if letter != '\\' {
                out.push(letter);
                continue;
            }
            let escaped = letters.next()?.1;
            let mut code = |digits: usize| {
                let hex: String = letters.by_ref().take(digits).map(|(_, letter)| letter).collect();
                u32::from_str_radix(&hex, 16).ok()
            };
            match escaped {
                'n' => out.push('\n'),
                't' => out.push('\t'),
                'r' => out.push('\r'),
                'b' => out.push('\u{8}'),
                'f' => out.push('\u{c}'),
                '0' => out.push('\0'),
                'x' => out.push(char::from_u32(code(2)?)?),
                'U' => out.push(char::from_u32(code(8)?)?),
                'u' => {
                    let high = code(4)?;
                    // JSON writes characters beyond U+FFFF as two escapes.
                    if (0xD800..0xDC00).contains(&high) {
                        letters.next().filter(|(_, c)| *c == '\\')?;
                        letters.next().filter(|(_, c)| *c == 'u')?;
                        let hex: String = letters.by_ref().take(4).map(|(_, letter)| letter).collect();
                        let low = u32::from_str_radix(&hex, 16).ok()?.checked_sub(0xDC00)?;
                        out.push(char::from_u32(0x10000 + ((high - 0xD800) << 10) + low)?);
                    } else {
                        out.push(char::from_u32(high)?);
                    }
                }
                '\n' => {}
                other if "\\'\"/".contains(other) => out.push(other),
                other => out.extend(['\\', other]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::keyword_arguments;

    #[test]
    fn literals_become_json() {
        let read = |text: &str| keyword_arguments(text).map(Value::Object);
        let text = r#"city='Pa\'ris', n=-2, x = 1e3, ok=True, none=None, list=[1, "a",], d={'k': (1, 2)}, u="\u00e9\ud83d\ude00","#;
        let expected = json!({"city": "Pa'ris", "n": -2, "x": 1000.0, "ok": true, "none": null, "list": [1, "a"],
                              "d": {"k": [1, 2]}, "u": "é😀"});
        assert_eq!(read(text), Some(expected));
        assert_eq!(read(" "), Some(json!({})));
        for broken in ["1", "a", "a=", "a=b", "a=1 b=2", "a='x", "a=[1", "1a=2"] {
            assert_eq!(read(broken), None, "{broken}");
        }
        assert_eq!(read(&format!("a={}", "[".repeat(10_000))), None);
    }
}
