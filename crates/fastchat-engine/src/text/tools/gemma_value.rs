//! Gemma's notation of values as JSON: keys without quotes, strings between markers, everything else as in JSON.

use serde_json::{Map, Value};

use super::xml::typed;

/// Deepest nesting read.
const MAX_DEPTH: usize = 64;

/// Reads what stands between the braces of a call; `None` if it is no list of fields.
pub(super) fn arguments(text: &str, quote: &str, schema: Option<&Value>) -> Option<Map<String, Value>> {
    let mut reader = Reader { rest: text, quote, depth: 0 };
    let fields = reader.fields(schema)?;
    reader.rest.is_empty().then_some(fields)
}

struct Reader<'a> {
    rest: &'a str,
    quote: &'a str,
    depth: usize,
}

impl Reader<'_> {
    fn blanks(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, text: &str) -> bool {
        let found = self.rest.strip_prefix(text);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    /// Fields up to a brace or the end.
    fn fields(&mut self, schema: Option<&Value>) -> Option<Map<String, Value>> {
        let mut fields = Map::new();
        loop {
            self.blanks();
            if self.rest.is_empty() || self.rest.starts_with('}') {
                return Some(fields);
            }
            let key = if self.at_string() {
                self.string()?
            } else {
                let (key, _) = self.rest.split_once(':').filter(|(key, _)| !key.contains(['{', '}', '[', ']', ',']))?;
                self.rest = &self.rest[key.len()..];
                key.trim_end().to_owned()
            };
            self.blanks();
            if key.is_empty() || !self.take(":") {
                return None;
            }
            let value = self.value(schema.and_then(|schema| schema["properties"].get(&key)))?;
            fields.insert(key, value);
            self.blanks();
            if !(self.take(",") || self.rest.is_empty() || self.rest.starts_with('}')) {
                return None;
            }
        }
    }

    /// Whether a string begins here, in either kind of quotes.
    fn at_string(&self) -> bool {
        self.rest.starts_with(self.quote) || self.rest.starts_with('"')
    }

    fn string(&mut self) -> Option<String> {
        if self.take(self.quote) {
            let (text, rest) = self.rest.split_once(self.quote)?;
            self.rest = rest;
            return Some(text.to_owned());
        }
        let mut values = serde_json::Deserializer::from_str(self.rest).into_iter::<String>();
        let text = values.next()?.ok()?;
        self.rest = &self.rest[values.byte_offset()..];
        Some(text)
    }

    fn value(&mut self, schema: Option<&Value>) -> Option<Value> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        self.blanks();
        let value = if self.at_string() {
            let text = self.string()?;
            // Some write numbers as strings; the schema knows better.
            let kind = schema.and_then(|schema| schema["type"].as_str());
            if kind.is_none_or(|kind| kind == "string") { Value::String(text) } else { typed(&text, schema) }
        } else if self.take("{") {
            let fields = self.fields(schema)?;
            self.take("}").then_some(Value::Object(fields))?
        } else if self.take("[") {
            self.list(schema.map(|schema| &schema["items"]))?
        } else {
            let end = self.rest.find([',', '}', ']']).unwrap_or(self.rest.len());
            let (word, rest) = self.rest.split_at(end);
            self.rest = rest;
            (!word.trim().is_empty()).then(|| typed(word.trim(), schema))?
        };
        self.depth -= 1;
        Some(value)
    }

    fn list(&mut self, schema: Option<&Value>) -> Option<Value> {
        let mut items = Vec::new();
        loop {
            self.blanks();
            if self.take("]") {
                return Some(Value::Array(items));
            }
            items.push(self.value(schema)?);
            self.blanks();
            if !self.take(",") && !self.rest.starts_with(']') {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::arguments;

    #[test]
    fn the_notation_becomes_json() {
        let read = |text: &str| arguments(text, "<|\"|>", None).map(Value::Object);
        let text = "city:<|\"|>Pa\"ri},s<|\"|>,n:-2,x:1.5e3,ok:true,none:null,list:[1,<|\"|>a<|\"|>],\
                    d:{<|\"|>k<|\"|>:{},j:[]}, \"q\" : \"é\\n\", word:as is";
        let expected = json!({"city": "Pa\"ri},s", "n": -2, "x": 1500.0, "ok": true, "none": null, "list": [1, "a"],
                              "d": {"k": {}, "j": []}, "q": "é\n", "word": "as is"});
        assert_eq!(read(text), Some(expected));
        assert_eq!(read(" "), Some(json!({})));
        for broken in
            ["1", "a", "a:", ":1", "a:1 }", "a:<|\"|>x", "a:[1", "a:{b}", "a:{b:1", "a:\"x", "a:[1 2", "a:,b:1"]
        {
            assert_eq!(read(broken), None, "{broken}");
        }
        assert_eq!(read(&format!("a:{}", "[".repeat(10_000))), None);
    }

    #[test]
    fn the_schema_decides_between_text_and_numbers() {
        let schema = json!({"properties": {"zip": {"type": "string"}, "days": {"type": "integer"},
            "in": {"type": "object", "properties": {"zip": {"type": "string"}}}, "all": {"items": {"type": "string"}}}});
        let read = arguments("zip:012,days:<escape>3<escape>,in:{zip:7},all:[5],other:6", "<escape>", Some(&schema));
        let expected = json!({"zip": "012", "days": 3, "in": {"zip": "7"}, "all": ["5"], "other": 6});
        assert_eq!(read.map(Value::Object), Some(expected));
    }
}
