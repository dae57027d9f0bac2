//! An encoder described from another format in the names and keys of GGUF: as `export` does of decoders, the keys are read
//! back and must describe the same encoder. Knows which family is which architecture.

use std::path::Path;

use fastchat_kernels::{Bytes, WeightKind};
use serde_json::Value;

use super::architectures::ENCODERS;
use super::export::{compare, read_back, same_rope};
use super::writer::{Entries, Entry};
use crate::ModelError;
use crate::encoder_spec::{EncoderDescription, EncoderSpec, Positions};
use crate::names::{Slot, Step};
use crate::spec::{Attention, Bias, Mlp, Norm};
use crate::weights::{Stored, StoredKind, TensorMap};

/// `model_type` of a config.json to `general.architecture`.
const FAMILIES: &[(&str, &str)] = &[
    ("bert", "bert"),
    ("modernbert", "modern-bert"),
    ("nomic_bert", "nomic-bert"),
    ("roberta", "bert"),
    ("xlm-roberta", "bert"),
];

/// A layout to write.
pub struct EncoderLayout {
    pub arch: &'static str,
    pub entries: Entries,
    /// The source, its positions from the first row on.
    pub source: EncoderDescription,
    /// What a reader of the file will take it for.
    pub target: EncoderDescription,
}

/// The layout of `source`, an encoder of the family `family`, read from `path`.
pub fn layout(path: &Path, family: &str, source: EncoderDescription) -> Result<EncoderLayout, ModelError> {
    let found = FAMILIES
        .iter()
        .find(|(known, _)| *known == family)
        .and_then(|(_, arch)| ENCODERS.iter().find(|(known, _)| known == arch));
    let Some(&(arch, describe)) = found else {
        return Err(ModelError::unsupported(path, "model_type", family, "it has no GGUF architecture here"));
    };
    if source.spec.scorer.is_some() {
        let expected = "the head of a cross-encoder has no tensors in GGUF here";
        return Err(ModelError::unsupported(path, "architectures", "a head that scores", expected));
    }
    let source = from_first_row(source);
    let entries = keys(arch, &source.spec);
    let target = read_back(path, arch, &entries, names(path, arch, &source.spec), describe)?;
    match difference(&source.spec, &target.spec) {
        None => Ok(EncoderLayout { arch, entries, source, target }),
        Some((field, ours, theirs)) => {
            let expected = format!("the architecture {arch} of GGUF would read it as {theirs}");
            Err(ModelError::unsupported(path, &field, ours, expected))
        }
    }
}

/// Rows of positions that no token has are left out, as exporters do.
fn from_first_row(mut d: EncoderDescription) -> EncoderDescription {
    if let Positions::Learned { rows, first: first @ 1.. } = d.spec.positions {
        d.names.push(Slot::Positions, Step::Range { rows: first..rows, total: rows });
        d.spec.positions = Positions::Learned { rows: rows - first, first: 0 };
    }
    d
}

fn keys(arch: &str, spec: &EncoderSpec) -> Entries {
    let mut entries = Entries::new();
    let mut set = |key: &str, entry: Entry| entries.push((format!("{arch}.{key}"), entry));
    set("block_count", spec.layers.len().into());
    set("context_length", spec.max_positions.into());
    set("embedding_length", spec.hidden_size.into());
    set("vocab_size", spec.vocab_size.into());
    set("attention.causal", Entry::Flag(false));
    if let Norm::Layer { eps, .. } = spec.embed_norm {
        set("attention.layer_norm_epsilon", Entry::Real(eps));
    }
    if let Some(layer) = spec.layers.first() {
        let Attention { heads, kv_heads, head_dim, scale, .. } = layer.attention;
        set("attention.head_count", heads.into());
        set("attention.head_count_kv", kv_heads.into());
        if heads * head_dim != spec.hidden_size {
            set("attention.key_length", head_dim.into());
            set("attention.value_length", head_dim.into());
        }
        #[allow(clippy::float_cmp)] // the default is computed as readers do
        if scale != (head_dim as f32).powf(-0.5) {
            set("attention.scale", Entry::Real(scale));
        }
        if let Mlp::Gated(dense) | Mlp::Plain(dense) = &layer.mlp {
            set("feed_forward_length", dense.inter.into());
        }
    }
    if let Some(window) = spec.layers.iter().find_map(|layer| layer.attention.window) {
        set("attention.sliding_window", (2 * (window - 1)).into());
        let mut whole = (0..spec.layers.len()).filter(|&i| spec.layers[i].attention.window.is_none());
        set("attention.sliding_window_pattern", whole.nth(1).unwrap_or(spec.layers.len()).into());
    }
    for (key, rope) in ["rope.freq_base", "rope.freq_base_swa"].iter().zip(&spec.ropes) {
        set(key, Entry::Real(rope.theta));
    }
    if spec.token_type == Bias::Present {
        // The type of a text that stands alone; other readers ask how many there are.
        entries.push(("tokenizer.ggml.token_type_count".to_owned(), Entry::Whole(1)));
    }
    entries
}

/// Tensors by whose presence and rows architectures tell variants apart.
fn names(path: &Path, arch: &str, spec: &EncoderSpec) -> TensorMap {
    let mut map = TensorMap { origin: path.to_owned(), ..TensorMap::default() };
    let mut put = |name: &str, rows: usize| {
        let (kind, bytes) = (StoredKind::Weight(WeightKind::F32), Bytes::from(Vec::new()));
        let stored = Stored { shape: vec![rows, spec.hidden_size], kind, bytes, file: path.into() };
        map.tensors.insert(name.to_owned(), stored);
    };
    put("token_embd.weight", spec.vocab_size);
    if let Positions::Learned { rows, .. } = spec.positions {
        put("position_embd.weight", rows);
    }
    if spec.token_type == Bias::Present {
        put("token_types.weight", 1);
    }
    if let Some(Norm::Layer { bias: Bias::Present, .. }) = spec.final_norm {
        put("output_norm.bias", 1);
    }
    let Some(layer) = spec.layers.first() else { return map };
    let fused = arch == "nomic-bert";
    let mut mark = |present: bool, name: &str| {
        if present {
            put(name, 1);
        }
    };
    mark(fused, "blk.0.attn_qkv.weight");
    let qkv = if fused { "blk.0.attn_qkv.bias" } else { "blk.0.attn_q.bias" };
    mark(layer.attention.qkv_bias == Bias::Present, qkv);
    mark(layer.attention.out_bias == Bias::Present, "blk.0.attn_output.bias");
    if let Mlp::Gated(dense) | Mlp::Plain(dense) = &layer.mlp {
        mark(dense.bias == Bias::Present, "blk.0.ffn_up.bias");
    }
    map
}

/// The first field in which two encoders differ, and both values.
fn difference(ours: &EncoderSpec, theirs: &EncoderSpec) -> Option<(String, String, String)> {
    let ropes = |spec: &EncoderSpec| spec.ropes.len();
    if ropes(ours) != ropes(theirs) {
        return Some(("ropes".to_owned(), ropes(ours).to_string(), ropes(theirs).to_string()));
    }
    let rope = ours.ropes.iter().zip(&theirs.ropes).enumerate().find(|(_, (ours, theirs))| !same_rope(ours, theirs));
    if let Some((index, (ours, theirs))) = rope {
        return Some((format!("ropes.{index}"), ours.kind.to_owned(), format!("other frequencies ({})", theirs.kind)));
    }
    let json = |spec: &EncoderSpec| {
        let mut value = serde_json::to_value(spec).unwrap_or_default();
        value["ropes"] = Value::Null;
        value
    };
    compare("", &json(ours), &json(theirs))
}
