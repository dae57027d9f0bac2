//! ModernBERT: norms before each half, ropes, windows on most layers, a gated MLP whose halves are one tensor.

use fastchat_kernels::{Activation, RopeLayout};

use super::base::layer_source;
use super::encoder_base::standard;
use super::meta::Meta;
use super::rope;
use crate::ModelError;
use crate::description::bias;
use crate::encoder_spec::{EncoderDescription, NormOrder, Positions};
use crate::names::{Slot, Source};
use crate::spec::{Dense, Mlp, Norm};

pub fn describe(m: &Meta) -> Result<EncoderDescription, ModelError> {
    let mut d = standard(m)?;
    let (head_dim, heads) = (d.spec.layers[0].attention.head_dim, d.spec.layers[0].attention.heads);
    let rope = rope::read(m, RopeLayout::HalfSplit, head_dim, head_dim)?;
    let local = rope::plain(m.positive_or(".rope.freq_base_swa", 10_000.0)?, head_dim, RopeLayout::HalfSplit);
    d.spec.max_positions = rope.reach;
    d.spec.ropes = vec![rope.spec, local];
    d.spec.positions = Positions::Rotary;
    let eps = m.positive_or(".attention.layer_norm_epsilon", 1e-5)?;
    let norm = Norm::Layer { eps, bias: bias(m.has("output_norm.bias")) };
    (d.spec.embed_norm, d.spec.final_norm) = (norm, Some(norm));
    // The whole window, half of it on either side.
    let window = Some(m.count_or(".attention.sliding_window", 0)?).filter(|&all| all > 0).map(|all| all / 2 + 1);
    // Every period begins with a layer that sees all.
    let period = m.size_or(".attention.sliding_window_pattern", 3)?;
    let inter = m.size(".feed_forward_length")?;
    let dense = Dense { inter, act: Activation::Gelu, bias: bias(m.has("blk.0.ffn_up.bias")) };
    d.layers(|i, layer| {
        layer.order = NormOrder::Pre;
        layer.attn_norm = (i > 0).then_some(norm);
        layer.mlp_norm = norm;
        layer.attention.window = window.filter(|_| !i.is_multiple_of(period));
        layer.attention.rope = Some(usize::from(layer.attention.window.is_some()));
        layer.mlp = Mlp::Gated(dense);
    });
    d.names.set(Slot::FinalNorm, Source::stem("output_norm"));
    d.names.set(Slot::PreAttn, layer_source("attn_norm"));
    d.names.set(Slot::PreMlp, layer_source("ffn_norm"));
    let width = heads * head_dim;
    d.names.fuse("blk.{l}.attn_qkv", &[(Slot::Q, width), (Slot::K, width), (Slot::V, width)]);
    d.names.fuse("blk.{l}.ffn_up", &[(Slot::Gate, inter), (Slot::Up, inter)]);
    Ok(d)
}
