//! Qwen3-Next: three gated delta layers to one gated attention layer, routed experts with a switched shared one.

use fastchat_kernels::NormScope;

use super::base::{Description, FULL, LINEAR, layer_source, standard};
use super::config::Config;
use super::qwen2_moe::{routed, shared, sparse_layers};
use crate::ModelError;
use crate::names::{Slot, Source, Step};
use crate::spec::{GatedDeltaNet, Mixer, Moe, OutputGate};

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let (mut d, delta) = hybrid(c)?;
    let moe = Moe { renormalize: c.flag_or("norm_topk_prob", true)?, ..routed(c)? };
    sparse_layers(c, &mut d, &moe)?;
    shared(c, &mut d)?;
    // Stored by key head: q, k, then v and z of the value heads that share it; likewise b and a.
    let ratio = delta.v_heads / delta.k_heads;
    let (k, v) = (delta.k_dim, ratio * delta.v_dim);
    let (qkvz, ba) = (layer_source("linear_attn.in_proj_qkvz"), layer_source("linear_attn.in_proj_ba"));
    let stride = 2 * (k + v);
    let qkv = Step::Groups { stride, within: vec![0..k, k..2 * k, 2 * k..2 * k + v] };
    d.names.set(Slot::DeltaQkv, qkvz.clone().then(qkv));
    d.names.set(Slot::DeltaZ, qkvz.then(Step::part_of(stride, 2 * k + v..stride)));
    d.names.set(Slot::DeltaB, ba.clone().then(Step::part_of(2 * ratio, 0..ratio)));
    d.names.set(Slot::DeltaA, ba.then(Step::part_of(2 * ratio, ratio..2 * ratio)));
    Ok(d)
}

/// What Qwen3-Next and Qwen3.5 share: everything but the MLP and the delta layers' input projections.
pub fn hybrid(c: &Config) -> Result<(Description, GatedDeltaNet), ModelError> {
    let mut d = standard(c)?;
    let bias = c.flag_or("attention_bias", false)?;
    d.attention_bias(bias, bias);
    d.qk_norm(NormScope::PerHead);
    d.norms_from_one(&[Slot::PreAttn, Slot::PreMlp, Slot::FinalNorm, Slot::QNorm, Slot::KNorm]);
    let eps = d.spec.final_norm.eps();
    let delta = GatedDeltaNet {
        k_heads: c.size("linear_num_key_heads")?,
        v_heads: c.size("linear_num_value_heads")?,
        k_dim: c.size("linear_key_head_dim")?,
        v_dim: c.size("linear_value_head_dim")?,
        conv_taps: c.size("linear_conv_kernel_dim")?,
        eps,
    };
    if !delta.v_heads.is_multiple_of(delta.k_heads) {
        return Err(c.bad("linear_num_value_heads", delta.v_heads, "a multiple of linear_num_key_heads"));
    }
    let interval = c.size_or("full_attention_interval", 4)?;
    let types = c.layer_types(&[LINEAR, FULL], |i| if (i + 1).is_multiple_of(interval) { FULL } else { LINEAR })?;
    d.layers(|i, layer| match &mut layer.mixer {
        mixer if types[i] == LINEAR => *mixer = Mixer::GatedDeltaNet(delta.clone()),
        Mixer::Attention(a) => a.gate = OutputGate::Sigmoid,
        _ => {}
    });
    delta_names(&mut d.names);
    // Every head of q_proj is followed by its gate.
    let head_dim = c.size_or("head_dim", 256)?;
    let half = |within| layer_source("self_attn.q_proj").then(Step::part_of(2 * head_dim, within));
    d.names.set(Slot::Q, half(0..head_dim));
    d.names.set(Slot::AttnGate, half(head_dim..2 * head_dim));
    Ok((d, delta))
}

fn delta_names(names: &mut crate::names::Names) {
    let exact = |name: &str| Source::exact(&format!("layers.{{l}}.linear_attn.{name}"), "");
    names.set(Slot::DeltaConv, layer_source("linear_attn.conv1d"));
    names.set(Slot::DeltaDecay, exact("A_log").then(Step::NegExp));
    names.set(Slot::DeltaBias, exact("dt_bias"));
    names.set(Slot::DeltaNorm, layer_source("linear_attn.norm"));
    names.set(Slot::DeltaOut, layer_source("linear_attn.out_proj"));
}
