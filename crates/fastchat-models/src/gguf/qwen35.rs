//! Qwen3.5: Qwen3-Next's layers with dense or routed MLPs. Exporters bring the value heads into an order in which value
//! head `i` belongs to key head `i % k_heads`.

use super::base::{Description, layer_source};
use super::meta::Meta;
use super::qwen3next::{delta, experts, hybrid};
use crate::ModelError;
use crate::names::{Slot, Step};
use crate::spec::GatedDeltaNet;

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let stored = delta(m)?;
    // The columns of the output projection cannot go back where they are quantised in blocks, so every value head gets
    // its own copy of its key head instead.
    let mut d = hybrid(m, &GatedDeltaNet { k_heads: stored.v_heads, ..stored.clone() })?;
    let ratio = stored.v_heads / stored.k_heads;
    if ratio > 1 {
        let (keys, all) = (stored.k_heads * stored.k_dim, stored.conv_channels());
        let repeat = |range: std::ops::Range<usize>| std::iter::repeat_n(range, ratio);
        let within = repeat(0..keys).chain(repeat(keys..2 * keys)).chain(std::iter::once(2 * keys..all)).collect();
        d.names.push_all(&[Slot::DeltaQkv, Slot::DeltaConv], &Step::Groups { stride: all, within });
    }
    d.names.set(Slot::DeltaB, layer_source("ssm_beta"));
    d.names.set(Slot::DeltaA, layer_source("ssm_alpha"));
    if m.count_or(".expert_count", 0)? > 0 {
        experts(m, &mut d)?;
    }
    Ok(d)
}
