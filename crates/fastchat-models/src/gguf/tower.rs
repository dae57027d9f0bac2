//! The keys and names of a tower's file, as all kinds of projectors read them. Knows no kind.

use serde_json::{Map, Value, json};

use super::meta::Meta;
use crate::ModelError;
use crate::names::{Names, Slot, Source, Step};
use crate::spec::{DecoderSpec, Mixer};

/// A file's keys, and the model that it belongs to.
pub struct Tower<'a> {
    /// Its keys are those of the architecture `clip`.
    pub m: &'a Meta<'a>,
    pub decoder: &'a DecoderSpec,
    /// Of the model, by id.
    pub tokens: &'a [String],
    /// Token that nothing else stands for.
    pub spare: Option<u32>,
}

/// A tower in the words of config.json and preprocessor_config.json, and the names of its tensors.
pub struct Said {
    pub model_type: &'static str,
    pub whole: Value,
    pub vision: Value,
    pub processor: Value,
    pub names: Names,
}

impl Tower<'_> {
    /// Sizes that all towers have.
    pub fn sizes(&self) -> Result<Map<String, Value>, ModelError> {
        let m = self.m;
        let (layers, heads) = (m.size(".vision.block_count")?, m.size(".vision.attention.head_count")?);
        Ok(fields(json!({
            "hidden_size": m.size(".vision.embedding_length")?,
            "intermediate_size": m.size(".vision.feed_forward_length")?,
            "num_hidden_layers": layers, "depth": layers,
            "num_attention_heads": heads, "num_heads": heads,
            "patch_size": m.size(".vision.patch_size")?,
            "image_size": m.size(".vision.image_size")?,
            "layer_norm_eps": m.positive_or(".vision.attention.layer_norm_epsilon", 1e-6)?,
        })))
    }

    /// What is done to bytes.
    pub fn pixels(&self) -> Result<Map<String, Value>, ModelError> {
        let three = |key: &str| match self.m.floats(key, 3)? {
            list if list.len() == 3 => Ok(list),
            list => Err(self.m.bad(key, format!("{} numbers", list.len()), "3 numbers")),
        };
        Ok(fields(json!({"image_mean": three(".vision.image_mean")?, "image_std": three(".vision.image_std")?})))
    }

    /// The activation of the tower's layers, where the flag for GELU means `gelu`.
    pub fn act(&self, gelu: &'static str) -> Result<&'static str, ModelError> {
        Ok(match (self.m.flag_or(".use_gelu", false)?, self.m.flag_or(".use_silu", false)?) {
            (true, _) => gelu,
            (_, true) => "silu",
            _ => "quick_gelu",
        })
    }

    /// The token of that name.
    pub fn token(&self, name: &str) -> Result<u32, ModelError> {
        let found = self.tokens.iter().position(|token| token == name);
        found.map(|id| id as u32).ok_or_else(|| {
            let expected = format!("a file of the model beside it, which has no token {name}");
            self.m.bad(".projector_type", self.m.text(".projector_type").ok().flatten().unwrap_or("mlp"), expected)
        })
    }

    /// The same, or a token that is never read from text: only a place for a picture's rows.
    pub fn token_or_spare(&self, name: &str) -> Result<u32, ModelError> {
        self.token(name).or_else(|error| self.spare.ok_or(error))
    }

    /// The least window of the decoder's layers.
    pub fn window(&self) -> Option<usize> {
        let windows = self.decoder.layers.iter().filter_map(|layer| match &layer.mixer {
            Mixer::Attention(attention) => attention.window,
            _ => None,
        });
        windows.min()
    }
}

/// The names that all towers share.
pub fn names() -> Names {
    let mut names = Names { roots: vec![("", "")], ..Names::default() };
    names.set(Slot::Embed, Source::stem("v.patch_embd").then(Step::Flatten));
    names.set(Slot::ClassToken, Source::exact("v.class_embd", ""));
    names.set(Slot::Positions, Source::stem("v.position_embd"));
    names.set(Slot::EmbedNorm, Source::stem("v.pre_ln"));
    names.set(Slot::FinalNorm, Source::stem("v.post_ln"));
    for (slot, stem) in [
        (Slot::PreAttn, "ln1"),
        (Slot::PreMlp, "ln2"),
        (Slot::Q, "attn_q"),
        (Slot::K, "attn_k"),
        (Slot::V, "attn_v"),
        (Slot::O, "attn_out"),
        (Slot::Gate, "ffn_gate"),
        (Slot::Up, "ffn_up"),
        (Slot::Down, "ffn_down"),
    ] {
        names.set(slot, Source::stem(&format!("v.blk.{{l}}.{stem}")));
    }
    names
}

/// A table of JSON.
pub fn fields(value: Value) -> Map<String, Value> {
    if let Value::Object(fields) = value { fields } else { Map::new() }
}

/// Both tables; `more` wins.
pub fn all(mut some: Map<String, Value>, more: Value) -> Map<String, Value> {
    some.extend(fields(more));
    some
}
