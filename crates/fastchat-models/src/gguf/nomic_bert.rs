//! Nomic BERT: BERT with ropes, a gated MLP and no biases; q, k and v in one tensor.

use fastchat_kernels::{Activation, RopeLayout};

use super::encoder_base::standard;
use super::meta::Meta;
use super::rope;
use crate::ModelError;
use crate::encoder_spec::{EncoderDescription, Positions};
use crate::names::Slot;
use crate::spec::{Bias, Dense, Mlp};

pub fn describe(m: &Meta) -> Result<EncoderDescription, ModelError> {
    let mut d = standard(m)?;
    let head_dim = d.spec.layers[0].attention.head_dim;
    let rope = rope::read(m, RopeLayout::HalfSplit, head_dim, head_dim)?;
    d.spec.max_positions = rope.reach;
    d.spec.ropes = vec![rope.spec];
    d.spec.positions = Positions::Rotary;
    let dense = Dense { inter: m.size(".feed_forward_length")?, act: Activation::Silu, bias: Bias::Absent };
    d.layers(|_, layer| {
        layer.attention.rope = Some(0);
        layer.mlp = Mlp::Gated(dense);
    });
    if m.has("blk.0.attn_qkv.weight") {
        let width = d.spec.layers[0].attention.heads * head_dim;
        d.names.fuse("blk.{l}.attn_qkv", &[(Slot::Q, width), (Slot::K, width), (Slot::V, width)]);
    }
    Ok(d)
}
