//! Checkpoints of random weights for the configs in `tests/configs`: which tensors each family stores, written out by hand
//! so that the name maps are checked against something else than themselves.
#![allow(dead_code)] // every test file uses its part
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::Value;

/// Families whose configs lie in `tests/configs`.
pub const FAMILIES: [&str; 13] = [
    "cohere2",
    "ernie4_5",
    "exaone4",
    "gemma3_text_config",
    "glm4",
    "glm4_moe",
    "granite",
    "olmo2",
    "olmo3",
    "olmoe",
    "qwen2_moe",
    "seed_oss",
    "starcoder2",
];

const HIDDEN: usize = 64;
const INTER: usize = 128;
const VOCAB: usize = 256;

/// Name and shape.
pub type Entry = (String, Vec<usize>);

/// A folder that is removed when the test ends.
pub struct Folder(pub PathBuf);

impl Folder {
    /// An empty folder of that name.
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fastchat-models-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Writes a file into it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.0.join(name), content).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether there is a python3 with the `gguf` package; a loud line when there is not.
pub fn writer() -> bool {
    let found = std::process::Command::new("python3").args(["-c", "import gguf"]).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("SKIPPED: python3 cannot import gguf; pip install gguf");
    }
    found
}

/// The config of a family.
pub fn config(family: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs").join(format!("{family}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A folder with the family's config and random weights; `purpose` keeps folders of different tests apart.
pub fn random(family: &str, purpose: &str) -> Folder {
    let folder = Folder::new(&format!("{purpose}-{family}"));
    folder.write("config.json", config(family).to_string());
    write(&folder.0.join("model.safetensors"), &tensors(family));
    folder
}

/// Writes tensors of small random numbers (norms around one), the same for the same names.
pub fn write(path: &Path, entries: &[Entry]) {
    let stored: Vec<(String, Vec<usize>, Vec<u8>)> = entries
        .iter()
        .map(|(name, shape)| {
            let centre = if name.contains("norm") { 1.0 } else { 0.0 };
            let mut state =
                name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                centre + ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.25
            };
            let count = shape.iter().product();
            let bytes = (0..count).flat_map(|_| next().to_le_bytes()).collect();
            (name.clone(), shape.clone(), bytes)
        })
        .collect();
    let views = stored
        .iter()
        .map(|(name, shape, bytes)| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, path).unwrap();
}

/// All tensors of a family's checkpoint.
pub fn tensors(family: &str) -> Vec<Entry> {
    let config = config(family);
    let config = config.get("text_config").unwrap_or(&config);
    let layers = config["num_hidden_layers"].as_u64().unwrap() as usize;
    let root = if family == "gemma3_text_config" { "language_model.model." } else { "model." };
    let mut all = vec![(format!("{root}embed_tokens.weight"), vec![VOCAB, HIDDEN])];
    all.push((format!("{root}norm.weight"), vec![HIDDEN]));
    if family == "starcoder2" {
        all.push((format!("{root}norm.bias"), vec![HIDDEN]));
    }
    let tied = ["cohere2", "ernie4_5", "gemma3_text_config", "granite", "starcoder2"];
    if !tied.contains(&family) {
        all.push(("lm_head.weight".to_owned(), vec![VOCAB, HIDDEN]));
    }
    for layer in 0..layers {
        let entries = norms(family).into_iter().chain(attention(family)).chain(mlp(family, layer));
        all.extend(entries.map(|(name, shape)| (format!("{root}layers.{layer}.{name}"), shape)));
    }
    if family == "gemma3_text_config" {
        all.push(("vision_tower.vision_model.post_layernorm.weight".to_owned(), vec![8]));
        all.push(("multi_modal_projector.mm_input_projection_weight".to_owned(), vec![8, 8]));
    }
    if family == "glm4_moe" {
        // The draft layer of multi-token prediction.
        all.push((format!("{root}layers.{layers}.eh_proj.weight"), vec![HIDDEN, 2 * HIDDEN]));
    }
    all
}

fn entries(list: &[(&str, &[usize])]) -> Vec<Entry> {
    list.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect()
}

fn norms(family: &str) -> Vec<Entry> {
    let names: &[&str] = match family {
        "olmo2" | "olmo3" | "exaone4" => &["post_attention_layernorm", "post_feedforward_layernorm"],
        "glm4" => &["input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm"],
        "gemma3_text_config" => {
            &["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"]
        }
        "cohere2" => &["input_layernorm"],
        _ => &["input_layernorm", "post_attention_layernorm"],
    };
    let biased = family == "starcoder2";
    let suffixes: &[&str] = if biased { &["weight", "bias"] } else { &["weight"] };
    let all = names.iter().flat_map(|name| suffixes.iter().map(move |suffix| format!("{name}.{suffix}")));
    all.map(|name| (name, vec![HIDDEN])).collect()
}

fn attention(family: &str) -> Vec<Entry> {
    // (rows of q, of k and of v)
    let (q, kv, head) = if family == "gemma3_text_config" { (2048, 1024, 256) } else { (64, 32, 16) };
    let mut all = entries(&[
        ("self_attn.q_proj.weight", &[q, HIDDEN]),
        ("self_attn.k_proj.weight", &[kv, HIDDEN]),
        ("self_attn.v_proj.weight", &[kv, HIDDEN]),
        ("self_attn.o_proj.weight", &[HIDDEN, q]),
    ]);
    if ["glm4_moe", "seed_oss", "qwen2_moe", "starcoder2"].contains(&family) {
        all.extend(entries(&[
            ("self_attn.q_proj.bias", &[q]),
            ("self_attn.k_proj.bias", &[kv]),
            ("self_attn.v_proj.bias", &[kv]),
        ]));
    }
    if family == "starcoder2" {
        all.extend(entries(&[("self_attn.o_proj.bias", &[HIDDEN])]));
    }
    match family {
        "olmo2" | "olmo3" | "olmoe" => {
            all.extend(entries(&[("self_attn.q_norm.weight", &[q]), ("self_attn.k_norm.weight", &[kv])]));
        }
        "exaone4" | "glm4_moe" | "gemma3_text_config" => {
            all.extend(entries(&[("self_attn.q_norm.weight", &[head]), ("self_attn.k_norm.weight", &[head])]));
        }
        _ => {}
    }
    all
}

fn gated(prefix: &str, inter: usize) -> Vec<Entry> {
    let matrix = |name: &str, shape| (format!("{prefix}.{name}.weight"), shape);
    vec![
        matrix("gate_proj", vec![inter, HIDDEN]),
        matrix("up_proj", vec![inter, HIDDEN]),
        matrix("down_proj", vec![HIDDEN, inter]),
    ]
}

fn mlp(family: &str, layer: usize) -> Vec<Entry> {
    match family {
        "glm4" => {
            entries(&[("mlp.gate_up_proj.weight", &[2 * INTER, HIDDEN]), ("mlp.down_proj.weight", &[HIDDEN, INTER])])
        }
        "starcoder2" => entries(&[
            ("mlp.c_fc.weight", &[INTER, HIDDEN]),
            ("mlp.c_fc.bias", &[INTER]),
            ("mlp.c_proj.weight", &[HIDDEN, INTER]),
            ("mlp.c_proj.bias", &[HIDDEN]),
        ]),
        "olmoe" | "qwen2_moe" => experts(family),
        "glm4_moe" if layer > 0 => experts(family),
        _ => gated("mlp", INTER),
    }
}

fn experts(family: &str) -> Vec<Entry> {
    let mut all = entries(&[("mlp.gate.weight", &[8, HIDDEN])]);
    all.extend((0..8).flat_map(|expert| gated(&format!("mlp.experts.{expert}"), 48)));
    match family {
        "glm4_moe" => {
            all.extend(entries(&[("mlp.gate.e_score_correction_bias", &[8])]));
            all.extend(gated("mlp.shared_experts", 48));
        }
        "qwen2_moe" => {
            all.extend(entries(&[("mlp.shared_expert_gate.weight", &[1, HIDDEN])]));
            all.extend(gated("mlp.shared_expert", 96));
        }
        _ => {}
    }
    all
}
