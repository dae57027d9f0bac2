//! The JSON-Schema-Test-Suite against the compiler: each schema is refused by name, or its valid instances can be
//! written byte by byte and its invalid ones cannot, in any spelling. Prints the counts.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::grammar_tests::END;
use super::test_vocabulary::byte_level;
use super::{GrammarCompiler, GrammarSpec, Matcher};

/// Folder of a draft in the suite, and the name a schema calls it by.
const DRAFTS: [(&str, &str); 5] = [
    ("draft4", "http://json-schema.org/draft-04/schema#"),
    ("draft6", "http://json-schema.org/draft-06/schema#"),
    ("draft7", "http://json-schema.org/draft-07/schema#"),
    ("draft2019-09", "https://json-schema.org/draft/2019-09/schema"),
    ("draft2020-12", "https://json-schema.org/draft/2020-12/schema"),
];
/// Here `format` is asserted, as the files in `optional/format` expect; this one expects an annotation.
const ANNOTATION_ONLY: &str = "format.json";
/// Orders of keys and ways to write a number that are tried for one instance.
const MAX_SPELLINGS: usize = 200;

fn suite() -> Option<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let models = std::env::var_os("FASTCHAT_MODELS").map_or_else(|| repository.join("models"), PathBuf::from);
    let folder = models.join("json-schema-test-suite");
    if folder.is_dir() {
        return Some(folder);
    }
    assert!(!std::env::var("CI").is_ok_and(|ci| ci == "true"), "{} is needed", folder.display());
    let _ = writeln!(std::io::stderr(), "SKIPPED: {} is absent; `make models` fetches it", folder.display());
    None
}

fn files(folder: &Path, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "json") {
            out.push(path);
        }
    }
}

/// The value as JSON, in every order of keys and every usual way to write its numbers; `lexical`: as they stand.
fn spellings(value: &Value, lexical: bool) -> Vec<String> {
    match value {
        Value::Number(number) if lexical => vec![number.to_string()],
        Value::Number(number) => {
            let mut all = vec![number.to_string()];
            let float = number.as_f64().unwrap();
            for spelled in [format!("{float}"), format!("{float:?}"), format!("{float:e}")] {
                if !all.contains(&spelled) {
                    all.push(spelled);
                }
            }
            all
        }
        Value::Array(items) => {
            let bodies = items.iter().fold(vec![String::new()], |bodies, item| appended(&bodies, "", item, lexical));
            bodies.into_iter().map(|body| format!("[{body}]")).collect()
        }
        Value::Object(fields) => {
            let mut all = Vec::new();
            for order in orders(fields.len()) {
                let bodies = order.iter().fold(vec![String::new()], |bodies, &at| {
                    let (name, field) = fields.iter().nth(at).unwrap();
                    appended(&bodies, &format!("{}:", Value::from(name.as_str())), field, lexical)
                });
                all.extend(bodies.into_iter().map(|body| format!("{{{body}}}")));
            }
            all.truncate(MAX_SPELLINGS);
            all
        }
        other => vec![other.to_string()],
    }
}

fn appended(bodies: &[String], name: &str, item: &Value, lexical: bool) -> Vec<String> {
    let spelled = spellings(item, lexical);
    let comma = |body: &String| if body.is_empty() { "" } else { "," };
    let all =
        bodies.iter().flat_map(|body| spelled.iter().map(move |item| format!("{body}{}{name}{item}", comma(body))));
    all.take(MAX_SPELLINGS).collect()
}

fn orders(count: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for at in 0..count {
        all = all
            .into_iter()
            .flat_map(|order: Vec<usize>| {
                (0..=order.len()).rev().map(move |place| {
                    let mut longer = order.clone();
                    longer.insert(place, at);
                    longer
                })
            })
            .take(MAX_SPELLINGS)
            .collect();
    }
    all
}

/// Whether the grammar lets this text through and end there; masks and steps must agree about every byte.
fn writes(start: &Matcher, text: &str) -> bool {
    let mut matcher = start.fork();
    for byte in text.bytes().map(u32::from) {
        let allowed = matcher.mask().unwrap().allows(byte);
        if !allowed {
            assert!(matcher.accept(byte).is_err(), "{text}: a byte outside the mask is accepted");
            return false;
        }
        matcher.accept(byte).unwrap();
    }
    matcher.mask().unwrap().allows(END)
}

#[derive(Default)]
struct Counts {
    schemas: usize,
    enforced: usize,
    refused: usize,
    valid: usize,
    invalid: usize,
    wrong: Vec<String>,
}

impl Counts {
    fn check(&mut self, compiler: &GrammarCompiler, place: &str, schema: &Value, tests: &[Value]) {
        self.schemas += 1;
        match compiler.compile(&GrammarSpec::JsonSchema(schema.clone())) {
            Err(error) => {
                self.refused += 1;
                let message = error.to_string();
                if !names_its_reason(&message, schema) {
                    self.wrong.push(format!("{place}: refused without a name: {message}"));
                }
            }
            Ok(start) => {
                self.enforced += 1;
                for test in tests {
                    let (data, valid) = (&test["data"], test["valid"].as_bool().unwrap());
                    // Some readers of draft 4 tell 1.0 from 1; this file is about them.
                    let spelled = spellings(data, place.contains("zeroTerminatedFloats"));
                    let written = spelled.into_iter().find(|text| writes(&start, text));
                    self.valid += usize::from(valid);
                    self.invalid += usize::from(!valid);
                    if written.is_some() != valid {
                        let says = if valid { "valid, but refused" } else { "invalid, but accepted" };
                        self.wrong.push(format!("{place}: {data} is {says} by {schema}"));
                    }
                }
            }
        }
    }
}

/// Whether a message quotes a keyword or a value that the schema has.
fn names_its_reason(message: &str, schema: &Value) -> bool {
    match schema {
        Value::Bool(accepts) => !accepts && message.contains("false"),
        Value::Object(fields) => fields
            .iter()
            .any(|(name, field)| message.contains(&format!("`{name}`")) || names_its_reason(message, field)),
        Value::Array(items) => items.iter().any(|item| names_its_reason(message, item)),
        _ => false,
    }
}

#[test]
fn every_schema_is_enforced_or_refused_by_name() {
    let Some(suite) = suite() else { return };
    let tokenizer = byte_level();
    let compiler = GrammarCompiler::new(&tokenizer, &[END]).unwrap();
    let mut all = Counts::default();
    for (draft, name) in DRAFTS {
        let mut counts = Counts::default();
        let mut paths = Vec::new();
        files(&suite.join(draft), &mut paths);
        for path in paths {
            if path.ends_with(Path::new(draft).join(ANNOTATION_ONLY)) {
                continue;
            }
            let cases: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            for case in cases.as_array().unwrap() {
                let mut schema = case["schema"].clone();
                if let Some(fields) = schema.as_object_mut().filter(|fields| !fields.contains_key("$schema")) {
                    fields.insert("$schema".to_owned(), json!(name));
                }
                let file = path.strip_prefix(&suite).unwrap().display();
                let place = format!("{file}: {}", case["description"].as_str().unwrap());
                counts.check(&compiler, &place, &schema, case["tests"].as_array().unwrap());
            }
        }
        // Straight to stderr: the counts are shown also when the test passes.
        let _ = writeln!(
            std::io::stderr(),
            "{draft}: {} schemas, {} enforced ({} valid and {} invalid instances), {} refused by name, {} wrong",
            counts.schemas,
            counts.enforced,
            counts.valid,
            counts.invalid,
            counts.refused,
            counts.wrong.len()
        );
        all.schemas += counts.schemas;
        all.enforced += counts.enforced;
        all.wrong.append(&mut counts.wrong);
    }
    assert!(all.schemas > 1500 && all.enforced > 700, "only {} of {} schemas", all.enforced, all.schemas);
    assert!(all.wrong.is_empty(), "{} wrong:\n{}", all.wrong.len(), all.wrong.join("\n"));
}
