//! How many expressions have to match one text at once. The compiler's time doubles with each, whatever its own limits:
//! sixteen take a fifth of a second, twenty five seconds. Knows no grammar beyond that.

use serde_json::Value;

/// Most expressions that may have to match at once.
pub(super) const MAX_TOGETHER: usize = 12;
/// Most subschemas that are looked at, each as often as `allOf` and `$ref` lead to it.
const MAX_VISITS: usize = 200_000;
/// Longest way of `allOf` and `$ref`; one in a circle has no end.
const MAX_WAY: usize = 200;

/// Refuses a schema in which more than [`MAX_TOGETHER`] patterns hold for one string. Formats must be patterns already.
///
/// # Errors
/// The keyword and the limit.
pub(super) fn check_schema(schema: &Value) -> Result<(), String> {
    let mut walk = Walk { root: schema, left: MAX_VISITS };
    walk.everywhere(schema)
}

struct Walk<'a> {
    root: &'a Value,
    left: usize,
}

impl Walk<'_> {
    fn everywhere(&mut self, value: &Value) -> Result<(), String> {
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| self.everywhere(item)),
            Value::Object(fields) => {
                let count = self.together(value, MAX_WAY)?;
                if count > MAX_TOGETHER {
                    return Err(format!(
                        "`pattern`: {count} patterns would have to match at once, the limit is {MAX_TOGETHER}"
                    ));
                }
                fields.values().try_for_each(|field| self.everywhere(field))
            }
            _ => Ok(()),
        }
    }

    /// Patterns that a string meets where `schema` holds.
    fn together(&mut self, schema: &Value, way: usize) -> Result<usize, String> {
        let wide = || "`allOf`: it and `$ref` lead to too many schemas at once".to_owned();
        self.left = self.left.checked_sub(1).ok_or_else(wide)?;
        let way = way.checked_sub(1).ok_or_else(wide)?;
        let mut count = usize::from(schema.get("pattern").is_some_and(Value::is_string));
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            let target = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
            count += target.map_or(Ok(0), |target| self.together(target, way))?;
        }
        for one in schema.get("allOf").and_then(Value::as_array).into_iter().flatten() {
            count += self.together(one, way)?;
        }
        for name in ["anyOf", "oneOf"] {
            let mut most = 0;
            for one in schema.get(name).and_then(Value::as_array).into_iter().flatten() {
                most = most.max(self.together(one, way)?);
            }
            count += most;
        }
        Ok(count)
    }
}

/// Refuses a grammar with more than [`MAX_TOGETHER`] - 1 intersections.
///
/// # Errors
/// The operator and the limit.
pub(super) fn check_lark(grammar: &str) -> Result<(), String> {
    let (mut count, mut quote, mut escaped) = (0, None, false);
    for char in grammar.chars() {
        match quote {
            // A line ends what was no quote at all: a slash in a comment.
            Some(_) if char == '\n' => quote = None,
            Some(_) if escaped => escaped = false,
            Some(_) if char == '\\' => escaped = true,
            Some(end) if char == end => quote = None,
            None if matches!(char, '"' | '/') => quote = Some(char),
            None if char == '&' => count += 1,
            _ => {}
        }
    }
    if count >= MAX_TOGETHER {
        return Err(format!("`&` stands there {count} times, the limit is {}", MAX_TOGETHER - 1));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patterns(count: usize) -> Value {
        (0..count).map(|i| json!({"pattern": format!("a.*b.{{{i}}}")})).collect()
    }

    #[test]
    fn patterns_are_counted_through_references_and_alternatives() {
        let schema = |count| json!({"properties": {"a": {"type": "string", "allOf": patterns(count)}}});
        assert_eq!(check_schema(&schema(MAX_TOGETHER)), Ok(()));
        let error = check_schema(&schema(MAX_TOGETHER + 1)).unwrap_err();
        assert!(error.contains("13 patterns") && error.contains("12"), "{error}");
        let chain = |length: usize| {
            let mut defs = serde_json::Map::new();
            for i in 0..length {
                let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
                defs.insert(format!("d{i}"), json!({"allOf": [{"pattern": "a"}, next]}));
            }
            defs.insert(format!("d{length}"), json!({"anyOf": [{"minLength": 2}, {"maxLength": 1}]}));
            json!({"$defs": defs, "$ref": "#/$defs/d0"})
        };
        assert_eq!(check_schema(&chain(MAX_TOGETHER)), Ok(()));
        assert!(check_schema(&chain(MAX_TOGETHER + 1)).is_err());
        let either = json!({"anyOf": [{"allOf": patterns(12)}, {"allOf": patterns(12)}]});
        assert_eq!(check_schema(&either), Ok(()));
    }

    #[test]
    fn references_in_circles_and_in_bushes_end() {
        assert!(check_schema(&json!({"allOf": [{"$ref": "#"}]})).is_err());
        let mut defs = serde_json::Map::new();
        for i in 0..40 {
            let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
            defs.insert(format!("d{i}"), json!({"allOf": [next.clone(), next]}));
        }
        assert!(check_schema(&json!({"$defs": defs, "$ref": "#/$defs/d0"})).is_err());
        let tree = json!({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {
            "name": {"pattern": "a"}, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}}});
        assert_eq!(check_schema(&tree), Ok(()), "what recurs below another value is another value");
    }

    #[test]
    fn only_operators_of_lark_count() {
        let text = format!("start: \"{}\" /{}/\n", "&".repeat(30), "\\/&".repeat(30));
        assert_eq!(check_lark(&text), Ok(()));
        let terms = |count: usize| format!("start: A\nA: {}", vec!["/a/"; count].join(" & "));
        assert_eq!(check_lark(&terms(MAX_TOGETHER)), Ok(()));
        assert!(check_lark(&terms(MAX_TOGETHER + 1)).is_err());
    }
}
