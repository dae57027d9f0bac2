//! Nomic BERT: BERT with ropes, a gated MLP and no biases, in the fields of its own code or of transformers.

use serde_json::{Value, json};

use super::base::attention;
use super::config::Config;
use super::encoder_base::standard;
use crate::ModelError;
use crate::encoder_spec::{EncoderDescription, Positions};
use crate::names::{Slot, Source};
use crate::spec::{Bias, Dense, Mlp};

/// (field of its own code, the same in transformers).
const OWN_FIELDS: [(&str, &str); 6] = [
    ("n_embd", "hidden_size"),
    ("n_head", "num_attention_heads"),
    ("n_layer", "num_hidden_layers"),
    ("n_inner", "intermediate_size"),
    ("n_positions", "max_position_embeddings"),
    ("layer_norm_epsilon", "layer_norm_eps"),
];

pub fn describe(c: &Config) -> Result<EncoderDescription, ModelError> {
    for absent in ["prenorm", "qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "rotary_emb_interleaved"] {
        c.only(absent, &Value::Bool(false))?;
    }
    c.only("activation_function", &json!("swiglu"))?;
    c.only("rotary_emb_fraction", &json!(1.0))?;
    let mut defaults = json!({"hidden_act": "silu", "rope_theta": c.positive_or("rotary_emb_base", 1000.0)?});
    for (own, field) in OWN_FIELDS {
        defaults[field] = c.get(own).cloned().unwrap_or_default();
    }
    let c = &c.with_defaults(defaults);
    let mut d = standard(c)?;
    let hidden = d.spec.hidden_size;
    let (mut rotated, rope) = attention(c, hidden)?;
    rotated.rope = Some(0);
    d.spec.ropes = vec![rope.spec];
    d.spec.positions = Positions::Rotary;
    let (inter, act) = (c.size("intermediate_size")?, c.activation("hidden_act")?);
    d.layers(|_, layer| {
        layer.attention = rotated.clone();
        layer.mlp = Mlp::Gated(Dense { inter, act, bias: Bias::Absent });
    });
    let width = rotated.heads * rotated.head_dim;
    d.names.set(Slot::EmbedNorm, Source::stem("emb_ln"));
    d.names.fuse("encoder.layers.{l}.attn.Wqkv", &[(Slot::Q, width), (Slot::K, width), (Slot::V, width)]);
    for (slot, stem) in [
        (Slot::O, "attn.out_proj"),
        (Slot::PostAttn, "norm1"),
        (Slot::Up, "mlp.fc11"),
        (Slot::Gate, "mlp.fc12"),
        (Slot::Down, "mlp.fc2"),
        (Slot::PostMlp, "norm2"),
    ] {
        d.names.set(slot, Source::stem(&format!("encoder.layers.{{l}}.{stem}")));
    }
    Ok(d)
}
