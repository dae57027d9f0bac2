//! The decoder most architectures start from (pre-norm, grouped attention, gated MLP) in GGUF's keys and tensor names,
//! and the edits architectures share. Knows no architecture.

use fastchat_kernels::{Activation, RopeLayout, RouterScore};

use super::meta::Meta;
use super::rope;
use crate::ModelError;
pub use crate::description::Description;
use crate::description::bias;
use crate::names::{Names, Slot, Source, Step};
use crate::spec::{
    Attention, Bias, DecoderSpec, Dense, Head, LayerSpec, Mixer, Mlp, Moe, Norm, OutputGate, RopeSpec, Shared, Sinks,
};

/// Rows of all heads of one layer together; the widest models in use have 24,576.
pub const MAX_HEAD_ROWS: usize = 1 << 18;

/// The common decoder of a file: biases of q, k, v and the output where they are stored, no q/k norm.
pub fn standard(m: &Meta, layout: RopeLayout) -> Result<Description, ModelError> {
    let norm = Norm::Rms { eps: m.positive_or(".attention.layer_norm_rms_epsilon", 1e-6)? };
    let attention = attention(m)?;
    let head_dim = attention[0].head_dim;
    let rope = rope::read(m, layout, m.size_or(".rope.dimension_count", head_dim)?, head_dim)?;
    body(m, norm, attention.into_iter().map(Mixer::Attention).collect(), rope)
}

/// A decoder of given norms, mixers and rope.
pub fn body(m: &Meta, norm: Norm, mixers: Vec<Mixer>, rope: rope::Rope) -> Result<Description, ModelError> {
    let hidden = m.size(".embedding_length")?;
    let layers = mixers.len();
    // Mixtures without dense layers may leave the width of those out.
    let widths = m.per_layer(".feed_forward_length", layers)?.unwrap_or_else(|| vec![hidden; layers]);
    let dense = |inter| Dense { inter, act: Activation::Silu, bias: Bias::Absent };
    let layer = |(mixer, inter)| LayerSpec {
        residual: crate::spec::Residual::Sequential,
        residual_scale: 1.0,
        pre_attn: Some(norm),
        post_attn: None,
        pre_mlp: Some(norm),
        post_mlp: None,
        mixer,
        mlp: Mlp::Gated(dense(inter)),
    };
    let spec = DecoderSpec {
        vocab_size: vocab_size(m)?,
        added_rows: 0,
        hidden_size: hidden,
        max_positions: rope.reach,
        embed_scale: 1.0,
        head: if m.has("output.weight") { Head::Separate } else { Head::Tied },
        final_norm: norm,
        logit_scale: 1.0,
        logit_softcap: None,
        ropes: vec![rope.spec],
        layers: mixers.into_iter().zip(widths).map(layer).collect(),
    };
    let mut names = names();
    let all = m.size(".block_count")?;
    names.ignored.extend((layers..all).map(|draft| format!("blk.{draft}.")));
    Ok(Description { spec, names })
}

/// Rows of the embedding table.
pub fn vocab_size(m: &Meta) -> Result<usize, ModelError> {
    match m.tensor("token_embd.weight").map(|stored| &stored.shape[..]) {
        Some([rows, _]) => Ok(*rows),
        Some(shape) => {
            Err(ModelError::tensor(m.file, "token_embd.weight", format!("has shape {shape:?}, expected a matrix")))
        }
        None => Err(ModelError::tensor(m.file, "token_embd.weight", "is missing")),
    }
}

/// The attention of every layer.
pub fn attention(m: &Meta) -> Result<Vec<Attention>, ModelError> {
    let layers = m.layers()?;
    let hidden = m.size(".embedding_length")?;
    let expected = "a whole number or one per layer";
    let heads = m.per_layer(".attention.head_count", layers)?;
    let heads = heads.ok_or_else(|| m.bad(".attention.head_count", "nothing", expected))?;
    let kv_heads = m.per_layer(".attention.head_count_kv", layers)?.unwrap_or_else(|| heads.clone());
    let head_dim = match m.size_opt(".attention.key_length")? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads[0]) => hidden / heads[0],
        None => {
            let expected = format!("a divisor of embedding_length {hidden}");
            return Err(m.bad(".attention.head_count", heads[0], expected));
        }
    };
    let value_dim = m.size_or(".attention.value_length", head_dim)?;
    if value_dim != head_dim {
        return Err(m.unsupported(".attention.value_length", value_dim, format!("key_length {head_dim} is")));
    }
    let one = |(heads, kv_heads): (usize, usize)| {
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of head_count {heads}");
            return Err(m.bad(".attention.head_count_kv", kv_heads, expected));
        }
        if heads * head_dim > MAX_HEAD_ROWS {
            return Err(m.bad(".attention.head_count", heads, format!("at most {MAX_HEAD_ROWS} rows of heads")));
        }
        Ok(Attention {
            heads,
            kv_heads,
            head_dim,
            scale: m.positive_or(".attention.scale", (head_dim as f32).powf(-0.5))?,
            qkv_bias: bias(m.has("blk.0.attn_q.bias") || m.has("blk.0.attn_qkv.bias")),
            out_bias: bias(m.has("blk.0.attn_output.bias")),
            qk_norm: None,
            rope: Some(0),
            window: None,
            softcap: None,
            sinks: Sinks::Absent,
            gate: OutputGate::Absent,
        })
    };
    heads.into_iter().zip(kv_heads).map(one).collect()
}

/// GGUF's names for everything that several architectures store the same way.
fn names() -> Names {
    // Rope factors have become part of the spec; the others are buffers of old exporters.
    let ignored = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight", "attn_rot_embd"];
    let mut names = Names { roots: vec![("", "")], ignored: ignored.map(str::to_owned).to_vec(), ..Names::default() };
    names.set(Slot::Embed, Source::stem("token_embd"));
    names.set(Slot::Head, Source::stem("output"));
    names.set(Slot::FinalNorm, Source::stem("output_norm"));
    let in_layer = [
        (Slot::PreAttn, "attn_norm"),
        (Slot::PostAttn, "post_attention_norm"),
        (Slot::PreMlp, "ffn_norm"),
        (Slot::PostMlp, "post_ffw_norm"),
        (Slot::Q, "attn_q"),
        (Slot::K, "attn_k"),
        (Slot::V, "attn_v"),
        (Slot::O, "attn_output"),
        (Slot::QNorm, "attn_q_norm"),
        (Slot::KNorm, "attn_k_norm"),
        (Slot::Sinks, "attn_sinks"),
        (Slot::Gate, "ffn_gate"),
        (Slot::Up, "ffn_up"),
        (Slot::Down, "ffn_down"),
        (Slot::Router, "ffn_gate_inp"),
        (Slot::SharedGate, "ffn_gate_shexp"),
        (Slot::SharedUp, "ffn_up_shexp"),
        (Slot::SharedDown, "ffn_down_shexp"),
        (Slot::SharedSwitch, "ffn_gate_inp_shexp"),
    ];
    for (slot, stem) in in_layer {
        names.set(slot, layer_source(stem));
    }
    for (slot, stem) in
        [(Slot::ExpertGate, "ffn_gate_exps"), (Slot::ExpertUp, "ffn_up_exps"), (Slot::ExpertDown, "ffn_down_exps")]
    {
        names.set(slot, layer_source(stem).then(Step::Pick));
    }
    names.set(Slot::ScoreBias, Source::exact("blk.{l}.exp_probs_b.bias", ""));
    names
}

/// A source inside a layer.
pub fn layer_source(stem: &str) -> Source {
    Source::stem(&format!("blk.{{l}}.{stem}"))
}

/// Routed experts by the keys all mixtures share; `act` of their gates.
pub fn moe(m: &Meta, act: Activation) -> Result<Moe, ModelError> {
    let (experts, top_k) = m.experts()?;
    let inter = match m.size_opt(".expert_feed_forward_length")? {
        Some(inter) => inter,
        None => m.size(".feed_forward_length")?,
    };
    Ok(Moe {
        experts,
        top_k,
        expert: Dense { inter, act, bias: Bias::Absent },
        score: RouterScore::Softmax,
        score_bias: Bias::Absent,
        renormalize: m.flag_or(".expert_weights_norm", true)?,
        scaling: 1.0,
        groups: None,
        shared: Shared::Absent,
    })
}

impl Description {
    /// Replaces the MLP of the layers that store a router.
    pub fn routed(&mut self, m: &Meta, moe: &Moe) {
        self.experts(moe, |layer| m.has(&format!("blk.{layer}.ffn_gate_inp.weight")));
        if m.has("blk.0.ffn_gate.0.weight") {
            // One tensor per expert, as exporters wrote before there were stacks.
            for (slot, stem) in [(Slot::ExpertGate, "gate"), (Slot::ExpertUp, "up"), (Slot::ExpertDown, "down")] {
                self.names.set(slot, layer_source(&format!("ffn_{stem}.{{e}}")));
            }
        }
    }

    /// The activation of every dense MLP.
    pub fn act(&mut self, act: Activation) {
        self.dense(|dense| dense.act = act);
    }

    /// Norms after each half beside those before.
    pub fn sandwich(&mut self) {
        let norm = self.spec.final_norm;
        self.layers(|_, layer| (layer.post_attn, layer.post_mlp) = (Some(norm), Some(norm)));
    }

    /// Norms after each half and none before.
    pub fn after_only(&mut self) {
        self.sandwich();
        self.layers(|_, layer| (layer.pre_attn, layer.pre_mlp) = (None, None));
    }

    /// The norm between the halves stored under the name that others use for one after the first half.
    pub fn middle_norm(&mut self) {
        self.names.set(Slot::PreMlp, layer_source("post_attention_norm"));
    }

    /// Gate over up in one tensor.
    pub fn fused_gate_up(&mut self, m: &Meta) -> Result<(), ModelError> {
        let inter = m.size(".feed_forward_length")?;
        self.names.fuse("blk.{l}.ffn_up", &[(Slot::Gate, inter), (Slot::Up, inter)]);
        Ok(())
    }

    /// q over k over v in one tensor, where it is stored so.
    pub fn fused_qkv(&mut self, m: &Meta) {
        if let (true, Some(Mixer::Attention(a))) =
            (m.has("blk.0.attn_qkv.weight"), self.spec.layers.first().map(|layer| &layer.mixer))
        {
            let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
            self.names.fuse("blk.{l}.attn_qkv", &[(Slot::Q, q), (Slot::K, kv), (Slot::V, kv)]);
        }
    }

    /// `attention.sliding_window` on the layers that the file's pattern names, else on those `default` does.
    pub fn sliding(&mut self, m: &Meta, default: impl Fn(usize) -> bool) -> Result<(), ModelError> {
        const PATTERN: &str = ".attention.sliding_window_pattern";
        let layers = self.spec.layers.len();
        let window = Some(m.count_or(".attention.sliding_window", 0)?).filter(|&window| window > 0);
        let flags = match m.get(PATTERN) {
            Some(super::value::Value::List(_)) => Some(m.wholes(PATTERN, layers)?),
            _ => None,
        };
        if let Some(flags) = flags.as_ref().filter(|flags| flags.len() < layers) {
            return Err(m.bad(PATTERN, format!("{} entries", flags.len()), format!("{layers} entries")));
        }
        let period = if flags.is_none() { m.size_opt(PATTERN)? } else { None };
        let windowed = |i: usize| match (&flags, period) {
            (Some(flags), _) => flags[i] != 0,
            // Every period ends with a global layer.
            (None, Some(period)) => !(i + 1).is_multiple_of(period),
            (None, None) => default(i),
        };
        self.attention(|i, a| a.window = window.filter(|_| windowed(i)));
        Ok(())
    }

    /// Pairs of the first rope turn by time, lines and columns, as many as `rope.dimension_sections` says.
    pub fn sections(&mut self, m: &Meta, interleaved: bool) -> Result<(), ModelError> {
        const SECTIONS: &str = ".rope.dimension_sections";
        let pairs = self.spec.ropes[0].inv_freq.len();
        let sections: Vec<usize> =
            m.wholes(SECTIONS, 4)?.iter().map(|&n| usize::try_from(n).unwrap_or(pairs + 1)).collect();
        match sections[..] {
            // A fourth axis has no pairs.
            [time, lines, columns] | [time, lines, columns, 0] if time + lines + columns == pairs => {
                self.spec.ropes[0].axes = crate::rope::axes([time, lines, columns], interleaved);
                Ok(())
            }
            _ => Err(m.bad(SECTIONS, format!("{sections:?}"), format!("three counts of {pairs} pairs in all"))),
        }
    }

    /// Windowed layers use a rope of their own, unscaled, of base `rope.freq_base_swa`.
    pub fn local_rope(&mut self, m: &Meta, theta: f32) -> Result<(), ModelError> {
        let RopeSpec { layout, inv_freq, .. } = &self.spec.ropes[0];
        let local = rope::plain(m.positive_or(".rope.freq_base_swa", theta)?, 2 * inv_freq.len(), *layout);
        self.sliding_rope(local);
        Ok(())
    }
}
