//! Damaged checkpoints: thousands of configs and headers with flipped bytes, cuts and absurd numbers. Each is an error in
//! one line or a model; none panics, and none makes the loader ask for memory that the file does not justify.
#![allow(missing_docs, clippy::unwrap_used)] // a test may fail loudly

mod checkpoints;
mod damaging;
mod pieces;
mod rows;

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use checkpoints::Folder;
use damaging::{Random, peak};
use fastchat_kernels::DefaultKernels;
use fastchat_models::{LoadOptions, load};
use serde_json::json;

/// Growth of the address space that checkpoints of less than 1 MB may cause; a wrong size asks for far more.
const MOST: u64 = 100 << 20;

const ABSURD: [&str; 12] =
    ["0", "-1", "1e308", "4294967296", "18446744073709551615", "67108864", "0.5", "null", "\"x\"", "[]", "{}", "1e-40"];

/// `bytes` with one to three random damages.
fn damaged(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..=random.below(3) {
        if out.is_empty() {
            break;
        }
        let at = random.below(out.len());
        match random.below(4) {
            0 => out[at] ^= 1 << random.below(8),
            1 => out.truncate(at),
            2 => out[at] = random.next() as u8,
            // A number becomes an absurd one.
            _ => {
                let Some(start) = (at..out.len()).find(|&i| out[i].is_ascii_digit()) else { continue };
                let end = (start..out.len()).find(|&i| !out[i].is_ascii_digit()).unwrap_or(out.len());
                out.splice(start..end, ABSURD[random.below(ABSURD.len())].bytes());
            }
        }
    }
    out
}

fn attempt(folder: &Folder) -> bool {
    match load(&folder.0, Arc::new(DefaultKernels(Device::Cpu)), &LoadOptions::default()) {
        Ok(_) => true,
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "{error}");
            false
        }
    }
}

/// Damages `file` of the good checkpoint in `folder` `rounds` times, within its first `prefix` bytes.
fn damage(folder: &Folder, file: &str, prefix: usize, rounds: u64) {
    assert!(attempt(folder));
    let before = peak();
    let good = std::fs::read(folder.0.join(file)).unwrap();
    let prefix = prefix.min(good.len());
    let (mut loaded, mut refused) = (0, 0);
    for round in 0..rounds {
        let mut random = Random(round);
        let mut bytes = damaged(&good[..prefix], &mut random);
        // Most damages keep the body, some cut it too.
        if random.below(8) != 0 {
            bytes.extend_from_slice(&good[prefix..]);
        }
        folder.write(file, &bytes);
        if attempt(folder) { loaded += 1 } else { refused += 1 }
    }
    folder.write(file, &good);
    let name = folder.0.join(file);
    assert!(refused > rounds / 2, "{}: {loaded} of {rounds} damaged files loaded", name.display());
    let grown = peak().zip(before).map_or(0, |(after, before)| after - before);
    assert!(grown < MOST, "{}: a damaged file asked for {grown} bytes", name.display());
}

fn header_len(file: &Path) -> usize {
    let bytes = std::fs::read(file).unwrap();
    8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

/// One test, because the peak is the whole process's.
#[test]
fn damaged_checkpoints_are_refused() {
    for (family, rounds) in [("olmo3", 500), ("glm4_moe", 500), ("exaone4", 500), ("gemma3_text_config", 200)] {
        damage(&checkpoints::random(family, "damage"), "config.json", usize::MAX, rounds);
    }
    for family in ["glm4", "olmoe"] {
        let folder = checkpoints::random(family, "damage");
        let prefix = header_len(&folder.0.join("model.safetensors"));
        damage(&folder, "model.safetensors", prefix, 800);
    }
    let methods = [
        pieces::both("damage-gptq", json!({"quant_method": "gptq", "bits": 4, "group_size": 32}), pieces::gptq),
        pieces::both("damage-awq", json!({"quant_method": "awq", "bits": 4, "group_size": 32}), pieces::awq),
        pieces::both("damage-words", json!({"quant_method": "compressed-tensors"}), pieces::compressed_words),
        pieces::both("damage-bytes", json!({"quant_method": "compressed-tensors"}), pieces::compressed_bytes),
    ];
    for (_, folder) in &methods {
        let prefix = header_len(&folder.0.join("model.safetensors"));
        damage(folder, "model.safetensors", prefix, 300);
        damage(folder, "config.json", usize::MAX, 200);
    }
    let Some(shared) = rows::shared() else { return };
    for family in ["deepseek_v3", "qwen3_next", "gpt_oss", "phi3_longrope"] {
        let folder = Folder::new(&format!("damage-{family}"));
        for file in ["config.json", "model.safetensors"] {
            folder.write(file, std::fs::read(shared.join("text").join(family).join(file)).unwrap());
        }
        damage(&folder, "config.json", usize::MAX, 500);
    }
}
