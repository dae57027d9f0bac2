//! The other way round: a spec as the metadata keys of an architecture, and the small tensors that belong to them. What a
//! key cannot say is found by `export`, which reads the keys back. Knows no tensors of layers.

use fastchat_kernels::RouterScore;

use super::writer::{Entries, Entry};
use crate::rope::{Scaling, frequencies, yarn_mscale};
use crate::spec::{Attention, DecoderSpec, GatedDeltaNet, Mixer, Mla, Mlp, Moe, Norm, RopeSpec, Shared};

/// Keys of one architecture.
pub struct Keys<'a> {
    arch: &'a str,
    entries: Entries,
}

/// Small vectors stored as tensors: name and values.
pub type Factors = Vec<(&'static str, Vec<f32>)>;

impl Keys<'_> {
    fn set(&mut self, key: &str, entry: impl Into<Entry>) {
        self.entries.push((format!("{}.{key}", self.arch), entry.into()));
    }

    fn real(&mut self, key: &str, value: f32) {
        self.set(key, Entry::Real(value));
    }

    /// One number where all layers agree, else a list.
    fn sizes(&mut self, key: &str, values: &[usize]) {
        match values {
            [first, rest @ ..] if rest.iter().all(|value| value == first) => self.set(key, *first),
            _ => self.set(key, Entry::Wholes(values.iter().map(|value| *value as u32).collect())),
        }
    }
}

/// The keys of `spec`, with the pattern of windows spelt out or left to the architecture.
pub fn keys(arch: &str, spec: &DecoderSpec, pattern: bool) -> Entries {
    let mut k = Keys { arch, entries: Vec::new() };
    k.set("block_count", spec.layers.len());
    k.set("context_length", spec.max_positions);
    k.set("embedding_length", spec.hidden_size);
    k.set("vocab_size", spec.vocab_size);
    match spec.final_norm {
        Norm::Rms { eps } => k.real("attention.layer_norm_rms_epsilon", eps),
        Norm::Layer { eps, .. } => k.real("attention.layer_norm_epsilon", eps),
    }
    mixers(&mut k, spec, pattern);
    mlps(&mut k, spec);
    multipliers(&mut k, spec);
    if let Some(rope) = spec.ropes.first() {
        scaling(&mut k, spec, rope);
    }
    if let [_, local] = &spec.ropes[..] {
        k.real("rope.freq_base_swa", local.theta);
    }
    k.entries
}

fn mixers(k: &mut Keys, spec: &DecoderSpec, pattern: bool) {
    let mut attention: Vec<&Attention> = Vec::new();
    for layer in &spec.layers {
        match &layer.mixer {
            Mixer::Attention(a) => attention.push(a),
            Mixer::Mla(_) | Mixer::GatedDeltaNet(_) | Mixer::Cross(_) => {}
        }
    }
    let first = spec.layers.iter().map(|layer| &layer.mixer);
    if let Some(mla) = first.clone().find_map(|mixer| if let Mixer::Mla(mla) = mixer { Some(mla) } else { None }) {
        latent(k, mla);
    }
    let delta = first.clone().find_map(|m| if let Mixer::GatedDeltaNet(delta) = m { Some(delta) } else { None });
    if let Some(delta) = delta {
        recurrent(k, delta);
        let full = first.clone().position(|mixer| matches!(mixer, Mixer::Attention(_)));
        k.set("full_attention_interval", full.map_or(spec.layers.len() + 1, |index| index + 1));
    }
    let Some(a) = attention.first() else { return };
    let (heads, kv_heads): (Vec<_>, Vec<_>) = attention.iter().map(|a| (a.heads, a.kv_heads)).unzip();
    k.sizes("attention.head_count", &heads);
    k.sizes("attention.head_count_kv", &kv_heads);
    k.set("attention.key_length", a.head_dim);
    k.set("attention.value_length", a.head_dim);
    #[allow(clippy::float_cmp)] // the default is computed as readers do
    if a.scale != (a.head_dim as f32).powf(-0.5) {
        k.real("attention.scale", a.scale);
    }
    if let Some(cap) = a.softcap {
        k.real("attn_logit_softcapping", cap);
    }
    if let Some(window) = attention.iter().find_map(|a| a.window) {
        k.set("attention.sliding_window", window);
        if pattern {
            let flags = attention.iter().map(|a| a.window.is_some()).collect();
            k.set("attention.sliding_window_pattern", Entry::Flags(flags));
        }
    }
}

fn latent(k: &mut Keys, m: &Mla) {
    k.set("attention.head_count", m.heads);
    k.set("attention.head_count_kv", 1);
    if let Some(rank) = m.q_lora_rank {
        k.set("attention.q_lora_rank", rank);
    }
    k.set("attention.kv_lora_rank", m.kv_lora_rank);
    k.set("attention.key_length", m.kv_lora_rank + m.rope_dim);
    k.set("attention.value_length", m.kv_lora_rank);
    k.set("attention.key_length_mla", m.nope_dim + m.rope_dim);
    k.set("attention.value_length_mla", m.v_dim);
}

fn recurrent(k: &mut Keys, d: &GatedDeltaNet) {
    k.set("ssm.conv_kernel", d.conv_taps);
    k.set("ssm.state_size", d.k_dim);
    k.set("ssm.group_count", d.k_heads);
    k.set("ssm.time_step_rank", d.v_heads);
    k.set("ssm.inner_size", d.v_heads * d.v_dim);
}

fn mlps(k: &mut Keys, spec: &DecoderSpec) {
    let (mut dense, mut routed): (Vec<Option<usize>>, Option<&Moe>) = (Vec::new(), None);
    for layer in &spec.layers {
        match &layer.mlp {
            Mlp::Gated(mlp) | Mlp::Plain(mlp) => dense.push(Some(mlp.inter)),
            Mlp::Moe(moe) => {
                dense.push(None);
                routed = routed.or(Some(moe));
            }
        }
    }
    // Mixtures have the width of an expert, or of their dense layers, where those are few.
    let width = dense.iter().flatten().next().copied().or(routed.map(|moe| moe.expert.inter)).unwrap_or(0);
    let widths: Vec<usize> = dense.iter().map(|inter| inter.unwrap_or(width)).collect();
    k.sizes("feed_forward_length", &widths);
    let Some(moe) = routed else { return };
    k.set("expert_count", moe.experts);
    k.set("expert_used_count", moe.top_k);
    k.set("expert_feed_forward_length", moe.expert.inter);
    k.set("expert_weights_norm", Entry::Flag(moe.renormalize));
    k.real("expert_weights_scale", moe.scaling);
    match moe.score {
        RouterScore::Sigmoid => k.set("expert_gating_func", 2),
        RouterScore::Softmax => k.set("expert_gating_func", 1),
        // The architecture says so.
        RouterScore::SoftmaxTopK => {}
    }
    if let Some((groups, kept)) = moe.groups {
        k.set("expert_group_count", groups);
        k.set("expert_group_used_count", kept);
    }
    match moe.shared {
        Shared::Absent => {}
        Shared::Always(inter) => k.set("expert_shared_count", inter / moe.expert.inter),
        Shared::Gated(inter) => k.set("expert_shared_feed_forward_length", inter),
    }
    k.set("leading_dense_block_count", dense.iter().take_while(|inter| inter.is_some()).count());
}

/// Factors on the stream; which of them an architecture has, and which way round, is its own affair.
fn multipliers(k: &mut Keys, spec: &DecoderSpec) {
    match k.arch {
        "granite" => {
            k.real("embedding_scale", spec.embed_scale);
            k.real("logit_scale", 1.0 / spec.logit_scale);
            k.real("residual_scale", spec.layers.first().map_or(1.0, |layer| layer.residual_scale));
        }
        "cohere2" => k.real("logit_scale", spec.logit_scale),
        _ => {}
    }
    if let Some(cap) = spec.logit_softcap {
        k.real("final_logit_softcapping", cap);
    }
}

fn scaling(k: &mut Keys, spec: &DecoderSpec, rope: &RopeSpec) {
    k.set("rope.dimension_count", 2 * rope.inv_freq.len());
    k.real("rope.freq_base", rope.theta);
    if matches!(k.arch, "qwen35" | "qwen35moe" | "qwen2vl" | "qwen3vl") {
        k.set("rope.dimension_sections", Entry::Signed(sections(rope)));
    }
    match &rope.scaling {
        Scaling::Linear(factor) => {
            k.set("rope.scaling.type", "linear");
            k.real("rope.scaling.factor", *factor);
        }
        Scaling::Yarn { factor, original, beta_fast, beta_slow, .. } => {
            k.set("rope.scaling.type", "yarn");
            k.real("rope.scaling.factor", *factor);
            k.set("rope.scaling.original_context_length", *original as usize);
            k.real("rope.scaling.yarn_beta_fast", *beta_fast);
            k.real("rope.scaling.yarn_beta_slow", *beta_slow);
            let weight = latent_weight(spec, *factor);
            if weight == 0.0 {
                attn_factor(k, rope.attention_factor / yarn_mscale(*factor, 1.0));
            } else {
                k.real("rope.scaling.yarn_log_multiplier", weight);
            }
        }
        Scaling::LongRope { original, attention_factor, .. } => {
            k.set("rope.scaling.original_context_length", *original as usize);
            attn_factor(k, *attention_factor);
        }
        Scaling::Factors(_, attention_factor) => attn_factor(k, *attention_factor),
        Scaling::Default | Scaling::Dynamic(..) | Scaling::Llama3 { .. } => {}
    }
}

/// Pairs that turn by time, line and column; llama.cpp asks for them of text too, where all three are equal.
fn sections(rope: &RopeSpec) -> Vec<i32> {
    let pairs = rope.inv_freq.len();
    let by = |axis: u8| rope.axes.iter().map(|of| usize::from(*of == axis)).sum::<usize>();
    let (line, column) = if rope.axes.is_empty() { (pairs / 3, pairs / 3) } else { (by(1), by(2)) };
    let whole = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    [pairs - line - column, line, column, 0].map(whole).to_vec()
}

#[allow(clippy::float_cmp)] // exactly 1 is what readers assume
fn attn_factor(k: &mut Keys, factor: f32) {
    if factor != 1.0 {
        k.real("rope.scaling.attn_factor", factor);
    }
}

/// What latent attention's scale holds of yarn's factor, as a multiple of the logarithm of the stretch.
fn latent_weight(spec: &DecoderSpec, factor: f32) -> f32 {
    let Some(Mixer::Mla(m)) = spec.layers.first().map(|layer| &layer.mixer) else { return 0.0 };
    let plain = ((m.nope_dim + m.rope_dim) as f32).powf(-0.5);
    ((m.scale / plain).sqrt() - 1.0) / factor.ln()
}

/// Divisors of frequencies that the format has as tensors.
pub fn factors(spec: &DecoderSpec) -> Factors {
    let Some(rope) = spec.ropes.first() else { return Vec::new() };
    match &rope.scaling {
        Scaling::LongRope { short, long, .. } => {
            vec![("rope_factors_long.weight", long.clone()), ("rope_factors_short.weight", short.clone())]
        }
        Scaling::Llama3 { .. } | Scaling::Factors(..) => {
            let plain = frequencies(rope.theta, 2 * rope.inv_freq.len(), &Scaling::Default);
            vec![("rope_freqs.weight", plain.iter().zip(&rope.inv_freq).map(|(plain, own)| plain / own).collect())]
        }
        _ => Vec::new(),
    }
}
