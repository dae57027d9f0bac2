//! Qwen3.5: Qwen3-Next's layers with dense MLPs and unfused input projections.

use super::base::{Description, layer_source};
use super::{config::Config, qwen3_next};
use crate::ModelError;
use crate::names::Slot;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let (mut d, _) = qwen3_next::hybrid(c)?;
    let rows = [
        (Slot::DeltaQkv, "in_proj_qkv"),
        (Slot::DeltaZ, "in_proj_z"),
        (Slot::DeltaB, "in_proj_b"),
        (Slot::DeltaA, "in_proj_a"),
    ];
    for (slot, stem) in rows {
        d.names.set(slot, layer_source(&format!("linear_attn.{stem}")));
    }
    Ok(d)
}
