//! A decoder described from another format in the names and keys of GGUF: the architecture's own mapping reads the keys
//! that are to be written, and must find the same decoder. Knows which family is which architecture.

use std::path::Path;

use fastchat_kernels::{Bytes, WeightKind};
use serde_json::Value;

use super::architectures::ARCHITECTURES;
use super::cursor::Cursor;
use super::header::{self, Header};
use super::keys::{factors, keys};
use super::meta::Meta;
use super::writer::{self, Entries};
use crate::ModelError;
use crate::description::Description;
use crate::names::{Slot, Step};
use crate::spec::{Bias, DecoderSpec, GatedDeltaNet, Head, Mixer, Mlp, RopeSpec};
use crate::weights::{Stored, StoredKind, TensorMap};

/// `model_type` of a config.json to `general.architecture`.
const FAMILIES: &[(&str, &str)] = &[
    ("cohere2", "cohere2"),
    ("deepseek_v2", "deepseek2"),
    ("deepseek_v3", "deepseek2"),
    ("ernie4_5", "ernie4_5"),
    ("exaone4", "exaone4"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3"),
    ("gemma3_text", "gemma3"),
    ("glm4", "glm4"),
    ("glm4_moe", "glm4moe"),
    ("gpt_oss", "gpt-oss"),
    ("granite", "granite"),
    ("llama", "llama"),
    ("mistral", "llama"),
    ("mixtral", "llama"),
    ("olmo2", "olmo2"),
    ("olmo3", "olmo2"),
    ("olmoe", "olmoe"),
    ("phi3", "phi3"),
    ("qwen2", "qwen2"),
    ("qwen2_5_vl", "qwen2vl"),
    ("qwen2_5_vl_text", "qwen2vl"),
    ("qwen2_moe", "qwen2moe"),
    ("qwen3", "qwen3"),
    ("qwen3_5", "qwen35"),
    ("qwen3_5_moe", "qwen35moe"),
    ("qwen3_5_moe_text", "qwen35moe"),
    ("qwen3_5_text", "qwen35"),
    ("qwen3_moe", "qwen3moe"),
    ("qwen3_next", "qwen3next"),
    ("qwen3_vl_text", "qwen3vl"),
    ("seed_oss", "seed_oss"),
    ("smollm3", "smollm3"),
    ("starcoder2", "starcoder2"),
];

/// Largest relative difference of two numbers that mean the same; roots and logarithms go there and back in f32.
const SAME: f64 = 1e-5;

/// A layout to write.
pub struct DecoderLayout {
    pub arch: &'static str,
    pub entries: Entries,
    /// Small tensors that belong to the keys.
    pub factors: super::keys::Factors,
    /// The source, its heads in the order that the architecture stores.
    pub source: Description,
    /// What a reader of the file will take it for.
    pub target: Description,
}

/// The layout of `source`, a decoder of the family `family`, read from `path`.
pub fn layout(path: &Path, family: &str, source: Description) -> Result<DecoderLayout, ModelError> {
    let found = FAMILIES
        .iter()
        .find(|(known, _)| *known == family)
        .and_then(|(_, arch)| ARCHITECTURES.iter().find(|(known, _)| known == arch));
    let Some(&(arch, describe)) = found else {
        return Err(ModelError::unsupported(path, "model_type", family, "it has no GGUF architecture here"));
    };
    let factors = factors(&source.spec);
    let original = source.spec.clone();
    let source = if matches!(arch, "qwen35" | "qwen35moe") { tiled(source) } else { source };
    let mut problem = None;
    // An architecture's own pattern of windows needs no key, and older readers take none.
    for pattern in [false, true] {
        let entries = keys(arch, &original, pattern);
        let target = read_back(path, arch, &entries, names(path, arch, &original), describe)?;
        match difference(&source.spec, &target.spec) {
            None => return Ok(DecoderLayout { arch, entries, factors, source, target }),
            Some(found) => problem = Some(found),
        }
    }
    let (field, ours, theirs) = problem.unwrap_or_default();
    let expected = format!("the architecture {arch} of GGUF would read it as {theirs}");
    Err(ModelError::unsupported(path, &field, ours, expected))
}

/// What `describe`, the reader of the architecture, makes of `entries` beside `tensors`.
pub(super) fn read_back<T>(
    path: &Path,
    arch: &str,
    entries: &Entries,
    tensors: TensorMap,
    describe: impl FnOnce(&Meta) -> Result<T, ModelError>,
) -> Result<T, ModelError> {
    let mut all = vec![("general.architecture".to_owned(), arch.into())];
    all.extend(entries.iter().cloned());
    let bytes = writer::metadata(&all);
    let (metadata, stored) = header::metadata(&mut Cursor::new(&bytes), all.len(), path)?;
    let header = Header { metadata, stored, tensors };
    describe(&Meta::new(&header, path, None)?)
}

/// Tensors by whose presence architectures tell variants apart; only the table of words and the factors have contents.
fn names(path: &Path, arch: &str, spec: &DecoderSpec) -> TensorMap {
    let mut map = TensorMap { origin: path.to_owned(), ..TensorMap::default() };
    let mut put = |name: String, shape: Vec<usize>, bytes: Vec<u8>| {
        let kind = StoredKind::Weight(WeightKind::F32);
        map.tensors.insert(name, Stored { shape, kind, bytes: Bytes::from(bytes), file: path.into() });
    };
    put("token_embd.weight".to_owned(), vec![spec.vocab_size, spec.hidden_size], Vec::new());
    for (name, values) in factors(spec) {
        put(name.to_owned(), vec![values.len()], values.iter().flat_map(|x| x.to_le_bytes()).collect());
    }
    let mut mark = |name: String| put(name, vec![1], Vec::new());
    if spec.head == Head::Separate {
        mark("output.weight".to_owned());
    }
    for (i, layer) in spec.layers.iter().enumerate() {
        let mut in_layer = |present: bool, stem: &str| {
            if present {
                mark(format!("blk.{i}.{stem}"));
            }
        };
        match &layer.mixer {
            Mixer::Attention(a) => {
                in_layer(a.qkv_bias == Bias::Present, "attn_q.bias");
                in_layer(a.out_bias == Bias::Present, "attn_output.bias");
                in_layer(a.qk_norm.is_some(), "attn_q_norm.weight");
                in_layer(arch == "phi3", "attn_qkv.weight");
            }
            Mixer::Mla(_) => in_layer(true, "attn_k_b.weight"),
            Mixer::GatedDeltaNet(_) | Mixer::Cross(_) => {}
        }
        match &layer.mlp {
            Mlp::Gated(dense) | Mlp::Plain(dense) => {
                in_layer(dense.bias == Bias::Present, "ffn_gate.bias");
                in_layer(dense.bias == Bias::Present, "ffn_up.bias");
            }
            Mlp::Moe(moe) => {
                in_layer(true, "ffn_gate_inp.weight");
                in_layer(moe.score_bias == Bias::Present, "exp_probs_b.bias");
            }
        }
    }
    map
}

/// The first field in which two decoders differ, and both values. The pairing of rotated elements is a matter of the
/// order of rows, which `convert` changes.
fn difference(ours: &DecoderSpec, theirs: &DecoderSpec) -> Option<(String, String, String)> {
    let json = |spec: &DecoderSpec| {
        let mut value = serde_json::to_value(spec).unwrap_or_default();
        value["ropes"] = Value::Null;
        value
    };
    let ropes = |spec: &DecoderSpec| spec.ropes.len();
    if ropes(ours) != ropes(theirs) {
        return Some(("ropes".to_owned(), ropes(ours).to_string(), ropes(theirs).to_string()));
    }
    let rope = ours.ropes.iter().zip(&theirs.ropes).enumerate().find(|(_, (ours, theirs))| !same_rope(ours, theirs));
    if let Some((index, (ours, theirs))) = rope {
        return Some((format!("ropes.{index}"), ours.kind.to_owned(), format!("other frequencies ({})", theirs.kind)));
    }
    compare("", &json(ours), &json(theirs))
}

/// Whether two tables turn alike.
pub(super) fn same_rope(a: &RopeSpec, b: &RopeSpec) -> bool {
    a.inv_freq.len() == b.inv_freq.len()
        && a.inv_freq.iter().zip(&b.inv_freq).all(|(a, b)| same((*a).into(), (*b).into()))
        && same(a.attention_factor.into(), b.attention_factor.into())
        // Of text all axes turn alike; an architecture for text alone has none.
        && (b.axes.is_empty() || a.axes == b.axes)
}

fn same(a: f64, b: f64) -> bool {
    (a - b).abs() <= SAME * a.abs().max(b.abs())
}

/// The first field in which two values differ, by more than rounding, and both values.
pub(super) fn compare(path: &str, ours: &Value, theirs: &Value) -> Option<(String, String, String)> {
    let inside = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            a.iter().zip(b.values()).find_map(|((key, a), b)| compare(&inside(key), a, b))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (a, b))| compare(&inside(&i.to_string()), a, b))
        }
        (Value::Number(a), Value::Number(b)) if same(a.as_f64()?, b.as_f64()?) => None,
        (a, b) if a == b => None,
        (a, b) => Some((path.to_owned(), a.to_string(), b.to_string())),
    }
}

/// Value heads in the order in which neighbours belong to different key heads, every one with its own copy of its key
/// head, as exporters of Qwen3.5 store them.
fn tiled(mut d: Description) -> Description {
    let found = d.spec.layers.iter().find_map(|layer| match &layer.mixer {
        Mixer::GatedDeltaNet(delta) => Some(delta.clone()),
        _ => None,
    });
    let Some(GatedDeltaNet { k_heads, v_heads, k_dim, v_dim, .. }) = found else { return d };
    let ratio = v_heads / k_heads;
    if ratio < 2 {
        return d;
    }
    // Of every block of the value heads of one key head, the first of each block, then the second, ...
    let spread = |width: usize| Step::Groups {
        stride: ratio * width,
        within: (0..ratio).map(|head| head * width..(head + 1) * width).collect(),
    };
    let keys = k_heads * k_dim;
    let repeat = |start: usize| std::iter::repeat_n(start..start + keys, ratio);
    let value = |head: usize| 2 * keys + head * v_dim..2 * keys + (head + 1) * v_dim;
    let values = (0..ratio).flat_map(|r| (0..k_heads).map(move |k| value(k * ratio + r)));
    let within = repeat(0).chain(repeat(keys)).chain(values).collect();
    let all = 2 * keys + v_heads * v_dim;
    d.names.push_all(&[Slot::DeltaQkv, Slot::DeltaConv], &Step::Groups { stride: all, within });
    d.names.push(Slot::DeltaZ, spread(v_dim));
    d.names.push_all(&[Slot::DeltaA, Slot::DeltaB, Slot::DeltaDecay, Slot::DeltaBias], &spread(1));
    for step in [Step::Transpose, spread(v_dim), Step::Transpose] {
        d.names.push(Slot::DeltaOut, step);
    }
    d.layers(|_, layer| {
        if let Mixer::GatedDeltaNet(delta) = &mut layer.mixer {
            delta.k_heads = v_heads;
        }
    });
    d
}
