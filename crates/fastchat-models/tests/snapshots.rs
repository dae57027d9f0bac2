//! What every family's config becomes: a snapshot of the resolved spec, equal layers told once.
#![allow(missing_docs, clippy::unwrap_used)] // a test may fail loudly

mod checkpoints;
mod rows;

use std::fmt::Write;

use fastchat_models::inspect;
use serde::Serialize;
use serde_json::Value;

/// The spec as text: its fields, then each distinct layer with the indices it stands at.
fn outline(spec: &impl Serialize) -> String {
    // By way of text, which holds f32 in their shortest form.
    let mut head: Value = serde_json::from_str(&serde_json::to_string(spec).unwrap()).unwrap();
    let layers = head.as_object_mut().unwrap().remove("layers").unwrap();
    let mut text = format!("{head:#}\n");
    let mut distinct: Vec<(&Value, Vec<usize>)> = Vec::new();
    for (i, layer) in layers.as_array().unwrap().iter().enumerate() {
        match distinct.iter_mut().find(|(known, _)| *known == layer) {
            Some((_, at)) => at.push(i),
            None => distinct.push((layer, vec![i])),
        }
    }
    for (layer, at) in distinct {
        writeln!(text, "layers {at:?}: {layer:#}").unwrap();
    }
    text
}

#[test]
fn families_with_reference_outputs() {
    let Some(shared) = rows::shared() else { return };
    let mut folders: Vec<_> =
        std::fs::read_dir(shared.join("text")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    for folder in folders {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        insta::assert_snapshot!(name, outline(&inspect(&folder, None).unwrap().spec));
    }
}

#[test]
fn families_without() {
    for family in checkpoints::FAMILIES {
        let folder = checkpoints::random(family, "snapshots");
        insta::assert_snapshot!(family, outline(&inspect(&folder.0, None).unwrap().spec));
    }
}

/// Encoders in both formats: hidden states, pooling and the longest text.
#[test]
fn families_that_make_vectors() {
    let Some(shared) = rows::shared() else { return };
    for name in ["bert", "modernbert", "nomic_bert", "xlm_roberta"] {
        let folder = shared.join("encoders").join(name);
        let found = inspect(&folder, None).unwrap();
        assert!(found.total.bytes > 0 && found.spec.decoder().is_none(), "{name}");
        let said = format!("{:?}, {:?} tokens\n{}", found.pooling, found.longest, outline(&found.spec));
        insta::assert_snapshot!(format!("{name}_encoder"), said);
    }
}

#[test]
fn families_that_take_pictures() {
    let Some(shared) = rows::shared() else { return };
    let mut folders: Vec<_> =
        std::fs::read_dir(shared.join("vision")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    for folder in folders {
        let name = format!("{}_tower", folder.file_name().unwrap().to_str().unwrap());
        let vision = inspect(&folder, None).unwrap().vision.unwrap();
        insta::assert_snapshot!(name, outline(&vision));
    }
}
