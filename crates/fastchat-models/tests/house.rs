//! Rules of this crate that a reader relies on: families are short, the decoder stays one, and names of models stay where
//! configurations are read.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

use std::path::{Path, PathBuf};

/// Beginnings of the names of all families; `llama3` is also the published name of a rope kind.
const NAMES: [&str; 22] = [
    "llama",
    "mistral",
    "mixtral",
    "qwen",
    "gemma",
    "phi3",
    "smollm",
    "deepseek",
    "granite",
    "olmo",
    "glm",
    "cohere",
    "starcoder",
    "ernie",
    "exaone",
    "seed_oss",
    "seedoss",
    "gpt_oss",
    "gptoss",
    "gpt-oss",
    "nomic",
    "modernbert",
];

/// Files of a folder that are no family.
const SHARED: [&str; 25] = [
    "base",
    "config",
    "encoder_base",
    "folder",
    "mod",
    "quantized",
    "rope",
    "sentence",
    "vision_base",
    "cursor",
    "export",
    "architectures",
    "export_encoder",
    "export_pieces",
    "export_text",
    "header",
    "keys",
    "meta",
    "mmproj",
    "projectors",
    "shards",
    "tower",
    "value",
    "vocab",
    "writer",
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap().lines().count()
}

/// `cargo test -p fastchat-models --test house -- --nocapture` prints the lines of every family.
#[test]
fn families_are_short() {
    let mut counts = Vec::new();
    for folder in ["hf", "gguf"] {
        for entry in std::fs::read_dir(source().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
            if path.extension().is_some_and(|extension| extension == "rs") && !SHARED.contains(&stem.as_str()) {
                counts.push((lines(&path), format!("{folder}/{stem}")));
            }
        }
    }
    counts.sort();
    for (lines, name) in &counts {
        eprintln!("{lines:4} {name}");
    }
    let median = counts[counts.len() / 2].0;
    eprintln!("{} mappings, median {median} lines", counts.len());
    assert!(counts.len() > 50, "{} mappings", counts.len());
    assert!(median <= 40, "the median of a mapping is {median} lines");
    let decoder = lines(&source().join("decoder.rs"));
    assert!(decoder <= 450, "decoder.rs has {decoder} lines");
}

/// Names in code; comments may say where something comes from.
fn named(text: &str) -> Option<(usize, &str)> {
    text.lines().enumerate().find(|(_, line)| {
        let code = line.split("//").next().unwrap_or_default().to_lowercase();
        let code = code.replace("llama3", "");
        NAMES.iter().any(|name| code.contains(name))
    })
}

#[test]
fn names_stay_in_their_folders() {
    assert!(named("let x = is_qwen3(y);").is_some() && named("x // as Qwen has it").is_none());
    let root = source();
    let kernels = root.join("../../fastchat-kernels/src");
    let own = files(&root).into_iter().filter(|path| {
        let inside = path.strip_prefix(&root).unwrap();
        !inside.starts_with("hf") && !inside.starts_with("gguf")
    });
    let mut checked = 0;
    for path in own.chain(files(&kernels)) {
        let text = std::fs::read_to_string(&path).unwrap();
        let found = named(&text).map(|(line, code)| format!("{}:{}: {code}", path.display(), line + 1));
        assert!(found.is_none(), "{}", found.unwrap());
        checked += 1;
    }
    assert!(checked > 50);
}
