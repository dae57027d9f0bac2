//! Phi-3: fused q, k, v and gate, up.

use super::base::Description;
use super::{config::Config, mistral};
use crate::ModelError;
use crate::names::Slot;
use crate::spec::Mixer;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = mistral::describe(c)?;
    fuse_qkv(&mut d);
    fuse_gate_up(c, &mut d)?;
    Ok(d)
}

fn fuse_qkv(d: &mut Description) {
    let Some(Mixer::Attention(a)) = d.spec.layers.first().map(|layer| &layer.mixer) else { return };
    let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
    d.names.fuse("layers.{l}.self_attn.qkv_proj", &[(Slot::Q, q), (Slot::K, kv), (Slot::V, kv)]);
}

/// Gate over up in one tensor.
pub fn fuse_gate_up(c: &Config, d: &mut Description) -> Result<(), ModelError> {
    let inter = c.size("intermediate_size")?;
    d.names.fuse("layers.{l}.mlp.gate_up_proj", &[(Slot::Gate, inter), (Slot::Up, inter)]);
    Ok(())
}
