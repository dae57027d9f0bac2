//! DeepSeek-V2 and V3: latent attention, routing in groups, shared experts, dense first layers.

use fastchat_kernels::{Activation, RopeLayout, RouterScore};

use super::base::{Description, MAX_HEAD_ROWS, body, layer_source, moe};
use super::meta::Meta;
use super::rope;
use crate::ModelError;
use crate::description::bias;
use crate::names::{Slot, Step};
use crate::spec::{Mixer, Mla, Moe, Norm, Shared};

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let eps = m.positive_or(".attention.layer_norm_rms_epsilon", 1e-6)?;
    let rope_dim = m.size(".rope.dimension_count")?;
    // Files of before the absorbed form say the lengths of a head under the plain keys.
    let length = |name: &str| match m.size_opt(&format!(".attention.{name}_mla"))? {
        Some(length) => Ok(length),
        None => m.size(&format!(".attention.{name}")),
    };
    let (head_dim, v_dim) = (length("key_length")?, length("value_length")?);
    let Some(nope_dim) = head_dim.checked_sub(rope_dim).filter(|&dim| dim > 0) else {
        return Err(m.bad(".rope.dimension_count", rope_dim, format!("less than the {head_dim} of a head")));
    };
    let heads = m.size(".attention.head_count")?;
    if heads * head_dim.max(v_dim) > MAX_HEAD_ROWS {
        return Err(m.bad(".attention.head_count", heads, format!("at most {MAX_HEAD_ROWS} rows of heads")));
    }
    let mut rope = rope::read(m, RopeLayout::Interleaved, rope_dim, head_dim)?;
    let mut scale = (head_dim as f32).powf(-0.5);
    // The factor of a long context goes to the scores instead of the positions.
    let weight = m.float_opt(".rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0);
    if weight != 0.0 {
        scale *= (1.0 + weight * rope::stretch(m)?.ln()).powi(2);
        rope.spec.attention_factor = 1.0;
    }
    let mla = Mla {
        heads,
        q_lora_rank: m.size_opt(".attention.q_lora_rank")?,
        kv_lora_rank: m.size(".attention.kv_lora_rank")?,
        nope_dim,
        rope_dim,
        v_dim,
        scale,
        rope: 0,
        eps,
    };
    let mut d = body(m, Norm::Rms { eps }, vec![Mixer::Mla(mla); m.layers()?], rope)?;
    d.routed(m, &experts(m)?);
    latent_names(m, &mut d, nope_dim, v_dim);
    Ok(d)
}

/// Routed experts in groups beside shared ones.
pub fn experts(m: &Meta) -> Result<Moe, ModelError> {
    let mut moe = moe(m, Activation::Silu)?;
    moe.score = match m.count_or(".expert_gating_func", 1)? {
        0 | 1 => RouterScore::Softmax,
        2 => RouterScore::Sigmoid,
        other => return Err(m.unsupported(".expert_gating_func", other, "1 (softmax) and 2 (sigmoid) are")),
    };
    let groups = (m.size_or(".expert_group_count", 1)?, m.size_or(".expert_group_used_count", 1)?);
    if !moe.experts.is_multiple_of(groups.0) || groups.1 > groups.0 || moe.top_k > moe.experts / groups.0 * groups.1 {
        let expected = format!("a divisor of {} experts, {} groups of which hold {}", moe.experts, groups.1, moe.top_k);
        return Err(m.bad(".expert_group_count", groups.0, expected));
    }
    moe.groups = (groups.0 > 1).then_some(groups);
    let layers = m.size(".block_count")?;
    moe.score_bias = bias((0..layers).any(|layer| m.has(&format!("blk.{layer}.exp_probs_b.bias"))));
    moe.renormalize = m.flag_or(".expert_weights_norm", false)?;
    moe.scaling = m.float_opt(".expert_weights_scale")?.filter(|&scale| scale != 0.0).unwrap_or(1.0);
    let shared = m.count_or(".expert_shared_count", 0)? * moe.expert.inter;
    moe.shared = if shared == 0 { Shared::Absent } else { Shared::Always(shared) };
    Ok(moe)
}

fn latent_names(m: &Meta, d: &mut Description, nope_dim: usize, v_dim: usize) {
    let rows = [
        (Slot::QDown, "attn_q_a"),
        (Slot::QDownNorm, "attn_q_a_norm"),
        (Slot::QUp, "attn_q_b"),
        (Slot::KvDown, "attn_kv_a_mqa"),
        (Slot::KvDownNorm, "attn_kv_a_norm"),
    ];
    for (slot, stem) in rows {
        d.names.set(slot, layer_source(stem));
    }
    if m.has("blk.0.attn_k_b.weight") {
        // Stacks by head, the key's already transposed.
        d.names.set(Slot::LatentKey, layer_source("attn_k_b").then(Step::Pick));
        d.names.set(Slot::LatentValue, layer_source("attn_v_b").then(Step::Pick));
    } else {
        let block = |within| layer_source("attn_kv_b").then(Step::Block { stride: nope_dim + v_dim, within });
        d.names.set(Slot::LatentKey, block(0..nope_dim).then(Step::Transpose));
        d.names.set(Slot::LatentValue, block(nope_dim..nope_dim + v_dim));
    }
}
