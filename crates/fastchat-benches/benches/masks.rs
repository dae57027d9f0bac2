//! What a mask costs: over the function schemas of bfcl-eval and the tokens of a real model, each token of each true
//! answer. Prints median and 99th percentile. Needs FASTCHAT_MODELS with the demo GGUFs and the folder `bfcl`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)] // a command that may fail loudly

#[path = "../../fastchat-engine/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastchat_engine::text::{GrammarCompiler, GrammarSpec, Tokenizer};
use serde_json::{Map, Value, json};

const MODEL: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";
const FILES: [&str; 4] = ["simple_python", "multiple", "parallel", "parallel_multiple"];

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// BFCL's types in JSON Schema's words.
fn schema(parameters: &Value) -> Value {
    match parameters {
        Value::Object(fields) => {
            let mut out = Map::new();
            for (name, field) in fields {
                match (name.as_str(), field.as_str()) {
                    ("type", Some("dict")) => drop(out.insert(name.clone(), json!("object"))),
                    ("type", Some("float")) => drop(out.insert(name.clone(), json!("number"))),
                    ("type", Some("tuple")) => drop(out.insert(name.clone(), json!("array"))),
                    ("type", Some("any")) | ("default" | "format" | "optional", _) => {}
                    _ => drop(out.insert(name.clone(), schema(field))),
                }
            }
            Value::Object(out)
        }
        Value::Array(items) => items.iter().map(schema).collect(),
        other => other.clone(),
    }
}

/// The first true value of each argument, in the schema's order.
fn answer(schema: &Value, truth: &Value) -> Value {
    let fields = schema["properties"].as_object().unwrap().keys();
    let given = fields.filter_map(|name| {
        let value = truth.get(name)?.as_array()?.iter().find(|value| **value != json!(""))?;
        Some((name.clone(), value.clone()))
    });
    Value::Object(given.collect())
}

fn percentile(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

fn main() {
    let Some(models) = support::folder("FASTCHAT_MODELS", "models", false) else { return };
    if !models.join("bfcl").is_dir() || !models.join(MODEL).is_file() {
        eprintln!("SKIPPED: bfcl or {MODEL} is not in {}", models.display());
        return;
    }
    let vocab = support::gguf_vocab(&models.join(MODEL));
    let tokenizer = Arc::new(Tokenizer::from_gguf(&vocab).unwrap());
    let start = Instant::now();
    let compiler = GrammarCompiler::forcing(&tokenizer, &[vocab.eos.unwrap()]).unwrap();
    println!("trie of {} tokens: {:?}", tokenizer.vocab_size(), start.elapsed());
    let (mut compiles, mut masks, mut forced) = (Vec::new(), Vec::new(), Vec::new());
    let (mut refused, mut off) = (BTreeMap::<String, usize>::new(), 0);
    for file in FILES {
        let questions = lines(&models.join(format!("bfcl/BFCL_v4_{file}.json")));
        let answers = lines(&models.join(format!("bfcl/possible_answer/BFCL_v4_{file}.json")));
        for (question, truth) in questions.iter().zip(&answers) {
            for call in truth["ground_truth"].as_array().unwrap() {
                let (name, arguments) = call.as_object().unwrap().iter().next().unwrap();
                let functions = question["function"].as_array().unwrap();
                let Some(function) = functions.iter().find(|function| function["name"] == name.as_str()) else {
                    continue;
                };
                let schema = schema(&function["parameters"]);
                let start = Instant::now();
                let mut matcher = match compiler.compile(&GrammarSpec::JsonSchema(schema.clone())) {
                    Ok(matcher) => matcher,
                    Err(error) => {
                        *refused.entry(error.to_string()).or_default() += 1;
                        continue;
                    }
                };
                compiles.push(start.elapsed());
                let text = answer(&schema, arguments).to_string();
                let mut ids = tokenizer.encode(&text, false, false).unwrap().into_iter();
                while !matcher.is_finished() {
                    let start = Instant::now();
                    if let Some(token) = matcher.forced() {
                        forced.push(start.elapsed());
                        matcher.accept(token).unwrap();
                        let _ = ids.next();
                        continue;
                    }
                    let start = Instant::now();
                    let mask = matcher.mask().unwrap();
                    masks.push(start.elapsed());
                    let Some(id) = ids.next() else { break };
                    if !mask.allows(id) {
                        // The true answer does not fit its schema, or its tokens were forced otherwise.
                        off += 1;
                        break;
                    }
                    matcher.accept(id).unwrap();
                }
            }
        }
    }
    for (what, times) in [("compile", &mut compiles), ("mask", &mut masks), ("forced token", &mut forced)] {
        times.sort_unstable();
        let (p50, p99, most) = (percentile(times, 0.5), percentile(times, 0.99), times[times.len() - 1]);
        println!("{what}: {} times, p50 {p50:?}, p99 {p99:?}, at most {most:?}", times.len());
    }
    println!("{off} answers left their grammar; refused: {refused:?}");
}
