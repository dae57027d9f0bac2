//! Qwen3-Next: three gated delta layers to one gated attention layer, routed experts with a switched shared one.

use fastchat_kernels::{Activation, NormScope, RopeLayout};

use super::base::{Description, MAX_HEAD_ROWS, attention, layer_source, moe, standard};
use super::meta::Meta;
use super::qwen2moe::switched;
use crate::ModelError;
use crate::names::{Names, Slot, Source, Step};
use crate::spec::{GatedDeltaNet, Mixer, Moe, OutputGate};

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let delta = delta(m)?;
    let mut d = hybrid(m, &delta)?;
    // Stored by key head: b, then a of the value heads that share it.
    let ratio = delta.v_heads / delta.k_heads;
    d.names.set(Slot::DeltaB, layer_source("ssm_ba").then(Step::part_of(2 * ratio, 0..ratio)));
    d.names.set(Slot::DeltaA, layer_source("ssm_ba").then(Step::part_of(2 * ratio, ratio..2 * ratio)));
    experts(m, &mut d)?;
    Ok(d)
}

/// What Qwen3-Next and Qwen3.5 share: everything but the MLP and the order of the delta layers' heads.
pub fn hybrid(m: &Meta, delta: &GatedDeltaNet) -> Result<Description, ModelError> {
    let mut d = standard(m, RopeLayout::HalfSplit)?;
    d.qk_norm(NormScope::PerHead);
    d.middle_norm();
    let interval = m.size_or(".full_attention_interval", 4)?;
    d.layers(|i, layer| match &mut layer.mixer {
        mixer if !(i + 1).is_multiple_of(interval) => *mixer = Mixer::GatedDeltaNet(delta.clone()),
        Mixer::Attention(a) => a.gate = OutputGate::Sigmoid,
        _ => {}
    });
    delta_names(&mut d.names);
    // Every head of q is followed by its gate.
    let head_dim = attention(m)?[0].head_dim;
    let half = |within| layer_source("attn_q").then(Step::part_of(2 * head_dim, within));
    d.names.set(Slot::Q, half(0..head_dim));
    d.names.set(Slot::AttnGate, half(head_dim..2 * head_dim));
    Ok(d)
}

/// Routed experts beside a switched one; newer files stack gate over up.
pub fn experts(m: &Meta, d: &mut Description) -> Result<(), ModelError> {
    let moe = Moe { shared: switched(m)?, ..moe(m, Activation::Silu)? };
    if m.has("blk.0.ffn_gate_up_exps.weight") {
        let inter = moe.expert.inter;
        let part = |rows| {
            let rows = Step::Range { rows, total: 2 * inter };
            layer_source("ffn_gate_up_exps").then(Step::Pick).then(rows)
        };
        d.names.set(Slot::ExpertGate, part(0..inter));
        d.names.set(Slot::ExpertUp, part(inter..2 * inter));
    }
    d.routed(m, &moe);
    Ok(())
}

/// The sizes of the delta layers, with the heads as published.
pub fn delta(m: &Meta) -> Result<GatedDeltaNet, ModelError> {
    let (k_heads, v_heads) = (m.size(".ssm.group_count")?, m.size(".ssm.time_step_rank")?);
    let inner = m.size(".ssm.inner_size")?;
    if !v_heads.is_multiple_of(k_heads) {
        return Err(m.bad(".ssm.time_step_rank", v_heads, format!("a multiple of ssm.group_count {k_heads}")));
    }
    if !inner.is_multiple_of(v_heads) {
        return Err(m.bad(".ssm.inner_size", inner, format!("a multiple of ssm.time_step_rank {v_heads}")));
    }
    let eps = m.positive_or(".attention.layer_norm_rms_epsilon", 1e-6)?;
    let (k_dim, conv_taps) = (m.size(".ssm.state_size")?, m.size(".ssm.conv_kernel")?);
    if v_heads * k_dim > MAX_HEAD_ROWS || inner > MAX_HEAD_ROWS {
        let expected = format!("at most {MAX_HEAD_ROWS} rows of heads of {k_dim} or of ssm.inner_size {inner}");
        return Err(m.bad(".ssm.time_step_rank", v_heads, expected));
    }
    Ok(GatedDeltaNet { k_heads, v_heads, k_dim, v_dim: inner / v_heads, conv_taps, eps })
}

fn delta_names(names: &mut Names) {
    names.set(Slot::DeltaQkv, layer_source("attn_qkv"));
    names.set(Slot::DeltaZ, layer_source("attn_gate"));
    names.set(Slot::DeltaConv, layer_source("ssm_conv1d"));
    // Stored as -exp(A_log).
    names.set(Slot::DeltaDecay, Source::exact("blk.{l}.ssm_a", ""));
    names.set(Slot::DeltaBias, Source::exact("blk.{l}.ssm_dt.bias", ""));
    names.set(Slot::DeltaNorm, layer_source("ssm_norm"));
    names.set(Slot::DeltaOut, layer_source("ssm_out"));
}
