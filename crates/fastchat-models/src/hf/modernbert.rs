//! ModernBERT: norms before each half, ropes, a gated MLP, windows on most layers.

use serde_json::json;

use super::base::{FULL, SLIDING, attention, bias, layer_source};
use super::config::Config;
use super::encoder_base::standard;
use super::rope;
use crate::ModelError;
use crate::encoder_spec::{EncoderDescription, NormOrder, Positions};
use crate::names::{Slot, Source};
use crate::spec::{Dense, Mlp, Norm};

pub fn describe(c: &Config) -> Result<EncoderDescription, ModelError> {
    let global = c.positive_or("global_rope_theta", 160_000.0)?;
    let local = c.positive_or("local_rope_theta", 10_000.0)?;
    let act = c.text("hidden_activation")?.unwrap_or("gelu").to_owned();
    let c = &c.with_defaults(json!({
        "hidden_act": act,
        "layer_norm_eps": c.positive_or("norm_eps", 1e-5)?,
        "rope_parameters": {FULL: {"rope_theta": global}, SLIDING: {"rope_theta": local}},
        "type_vocab_size": 0,
    }));
    let mut d = standard(c)?;
    let every = c.size_or("global_attn_every_n_layers", 3)?;
    let types = c.layer_types(&[SLIDING, FULL], |i| if i % every == 0 { FULL } else { SLIDING })?;
    // The whole window is `local_attention` wide, half of it on either side.
    let window = c.size_or("local_attention", 128)? / 2 + 1;
    let hidden = d.spec.hidden_size;
    let (base, full) = attention(c, hidden)?;
    let sliding = rope::read(c, Some(SLIDING), base.head_dim)?;
    d.spec.ropes = vec![full.spec, sliding.spec];
    d.spec.positions = Positions::Rotary;
    let norm = Norm::Layer { eps: c.positive_or("layer_norm_eps", 1e-5)?, bias: bias(c.flag_or("norm_bias", false)?) };
    (d.spec.embed_norm, d.spec.final_norm) = (norm, Some(norm));
    let (attention_bias, mlp_bias) = (c.flag_or("attention_bias", false)?, c.flag_or("mlp_bias", false)?);
    let (inter, act) = (c.size("intermediate_size")?, c.activation("hidden_act")?);
    d.layers(|i, layer| {
        let local = types[i] == SLIDING;
        layer.order = NormOrder::Pre;
        layer.attn_norm = (i > 0).then_some(norm);
        layer.mlp_norm = norm;
        layer.attention.rope = Some(usize::from(local));
        layer.attention.window = local.then_some(window);
        (layer.attention.qkv_bias, layer.attention.out_bias) = (bias(attention_bias), bias(attention_bias));
        layer.mlp = Mlp::Gated(Dense { inter, act, bias: bias(mlp_bias) });
    });
    names(&mut d, inter);
    Ok(d)
}

fn names(d: &mut EncoderDescription, inter: usize) {
    let hidden = d.spec.hidden_size;
    let names = &mut d.names;
    names.roots = vec![("", ""), ("model.", "")];
    names.ignored = ["head.", "decoder."].map(str::to_owned).to_vec();
    names.set(Slot::Embed, Source::stem("embeddings.tok_embeddings"));
    names.set(Slot::EmbedNorm, Source::stem("embeddings.norm"));
    names.set(Slot::FinalNorm, Source::stem("final_norm"));
    names.fuse("layers.{l}.attn.Wqkv", &[(Slot::Q, hidden), (Slot::K, hidden), (Slot::V, hidden)]);
    names.set(Slot::O, layer_source("attn.Wo"));
    names.set(Slot::PreAttn, layer_source("attn_norm"));
    names.set(Slot::PreMlp, layer_source("mlp_norm"));
    names.fuse("layers.{l}.mlp.Wi", &[(Slot::Gate, inter), (Slot::Up, inter)]);
    names.set(Slot::Down, layer_source("mlp.Wo"));
}
