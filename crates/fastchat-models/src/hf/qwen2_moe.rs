//! Qwen2-MoE: Qwen2 with routed experts and a switched shared one.

use super::base::{Description, layer_source, softmax_moe};
use super::{config::Config, qwen2};
use crate::ModelError;
use crate::names::Slot;
use crate::spec::{Moe, Shared};

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = qwen2::describe(c)?;
    let moe = Moe { renormalize: c.flag_or("norm_topk_prob", false)?, ..routed(c)? };
    sparse_layers(c, &mut d, &moe)?;
    shared(c, &mut d)?;
    Ok(d)
}

/// Routed experts of the Qwen families.
pub fn routed(c: &Config) -> Result<Moe, ModelError> {
    softmax_moe(c, c.size("moe_intermediate_size")?, c.activation("hidden_act")?)
}

/// Every `decoder_sparse_step`-th layer that `mlp_only_layers` does not name.
pub fn sparse_layers(c: &Config, d: &mut Description, moe: &Moe) -> Result<(), ModelError> {
    let step = c.size_or("decoder_sparse_step", 1)?;
    let dense = c.counts("mlp_only_layers")?;
    d.experts(moe, |i| !dense.contains(&i) && (i + 1).is_multiple_of(step));
    Ok(())
}

/// The shared expert with its switch.
pub fn shared(c: &Config, d: &mut Description) -> Result<(), ModelError> {
    let width = c.size("shared_expert_intermediate_size")?;
    d.layers(|_, layer| {
        if let crate::spec::Mlp::Moe(moe) = &mut layer.mlp {
            moe.shared = Shared::Gated(width);
        }
    });
    for (slot, stem) in [(Slot::SharedGate, "gate_proj"), (Slot::SharedUp, "up_proj"), (Slot::SharedDown, "down_proj")]
    {
        d.names.set(slot, layer_source(&format!("mlp.shared_expert.{stem}")));
    }
    Ok(())
}
