//! The decoder most families start from (pre-norm, grouped attention, gated MLP) in Hugging Face's names, and the edits
//! families make to it. Knows fields and tensor names that several families share, no family.

use fastchat_kernels::{Activation, RouterScore};

use super::{config::Config, rope};
use crate::ModelError;
pub use crate::description::{Description, bias};
use crate::names::{Names, Slot, Source};
use crate::spec::{
    Attention, Bias, DecoderSpec, Dense, Head, LayerSpec, Mixer, Mlp, Moe, Norm, OutputGate, Residual, Shared, Sinks,
};

/// Rows of all heads of one layer together; the widest models in use have 24,576.
const MAX_HEAD_ROWS: usize = 1 << 18;

/// The common decoder of a config: every field that several families share, no biases, no q/k norm.
pub fn standard(c: &Config) -> Result<Description, ModelError> {
    let hidden = c.size("hidden_size")?;
    let layers = c.layers()?;
    let norm = Norm::Rms { eps: c.positive_or("rms_norm_eps", 1e-6)? };
    let (attention, rope) = attention(c, hidden)?;
    let act = if c.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    let layer = LayerSpec {
        residual: Residual::Sequential,
        residual_scale: 1.0,
        pre_attn: Some(norm),
        post_attn: None,
        pre_mlp: Some(norm),
        post_mlp: None,
        mixer: Mixer::Attention(attention),
        mlp: Mlp::Gated(Dense { inter: c.size("intermediate_size")?, act: c.activation(act)?, bias: Bias::Absent }),
    };
    let spec = DecoderSpec {
        vocab_size: c.size("vocab_size")?,
        added_rows: 0,
        hidden_size: hidden,
        max_positions: rope.reach,
        embed_scale: 1.0,
        head: Head::Separate,
        final_norm: norm,
        logit_scale: 1.0,
        logit_softcap: None,
        ropes: vec![rope.spec],
        layers: vec![layer; layers],
    };
    let mut description = Description { spec, names: names() };
    description.tie(c, false)?;
    Ok(description)
}

/// The attention of a config, without biases, and the rope of its full layers.
pub fn attention(c: &Config, hidden: usize) -> Result<(Attention, rope::Rope), ModelError> {
    let heads = c.size("num_attention_heads")?;
    let kv_heads = c.size_or("num_key_value_heads", heads)?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(c.bad("num_key_value_heads", kv_heads, format!("a divisor of num_attention_heads {heads}")));
    }
    let head_dim = match c.size_opt("head_dim")? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(c.bad("num_attention_heads", heads, format!("a divisor of hidden_size {hidden}"))),
    };
    if heads * head_dim > MAX_HEAD_ROWS {
        return Err(c.bad("num_attention_heads", heads, format!("at most {MAX_HEAD_ROWS} rows of heads")));
    }
    let kind = c.get("rope_parameters").and_then(|all| all.get("full_attention")).map(|_| "full_attention");
    let attention = Attention {
        heads,
        kv_heads,
        head_dim,
        scale: (head_dim as f32).powf(-0.5),
        qkv_bias: Bias::Absent,
        out_bias: Bias::Absent,
        qk_norm: None,
        rope: Some(0),
        window: None,
        softcap: None,
        sinks: Sinks::Absent,
        gate: OutputGate::Absent,
    };
    Ok((attention, rope::read(c, kind, head_dim)?))
}

/// Hugging Face's names for everything that several families store the same way.
fn names() -> Names {
    let roots = vec![
        ("model.", ""),
        ("language_model.model.", "language_model."),
        ("model.language_model.", ""),
        ("model.text_model.", ""),
        ("", ""),
    ];
    // What belongs to towers of other senses is accounted for there.
    let ignored = [
        "rotary_emb.inv_freq",
        "mtp.",
        "vision_tower.",
        "vision_model.",
        "visual.",
        "multi_modal_projector.",
        "connector.",
    ];
    let mut names = Names { roots, ignored: ignored.map(str::to_owned).to_vec(), ..Names::default() };
    names.set(Slot::Embed, Source::stem("embed_tokens"));
    names.set(Slot::Head, Source::stem("lm_head"));
    names.set(Slot::FinalNorm, Source::stem("norm"));
    let in_layer = [
        (Slot::PreAttn, "input_layernorm"),
        (Slot::PreMlp, "post_attention_layernorm"),
        (Slot::Q, "self_attn.q_proj"),
        (Slot::K, "self_attn.k_proj"),
        (Slot::V, "self_attn.v_proj"),
        (Slot::O, "self_attn.o_proj"),
        (Slot::QNorm, "self_attn.q_norm"),
        (Slot::KNorm, "self_attn.k_norm"),
        (Slot::Gate, "mlp.gate_proj"),
        (Slot::Up, "mlp.up_proj"),
        (Slot::Down, "mlp.down_proj"),
        (Slot::Router, "mlp.gate"),
        (Slot::ExpertGate, "mlp.experts.{e}.gate_proj"),
        (Slot::ExpertUp, "mlp.experts.{e}.up_proj"),
        (Slot::ExpertDown, "mlp.experts.{e}.down_proj"),
        (Slot::SharedGate, "mlp.shared_experts.gate_proj"),
        (Slot::SharedUp, "mlp.shared_experts.up_proj"),
        (Slot::SharedDown, "mlp.shared_experts.down_proj"),
        (Slot::SharedSwitch, "mlp.shared_expert_gate"),
    ];
    for (slot, stem) in in_layer {
        names.set(slot, layer_source(stem));
    }
    let score_bias = "layers.{l}.mlp.gate.e_score_correction_bias";
    names.set(Slot::ScoreBias, Source::exact(score_bias, ""));
    names
}

/// A source inside a layer.
pub fn layer_source(stem: &str) -> Source {
    Source::stem(&format!("layers.{{l}}.{stem}"))
}

impl Description {
    /// Tied or separate output matrix by `tie_word_embeddings`; exporters often store the tied matrix all the same.
    pub fn tie(&mut self, c: &Config, default: bool) -> Result<(), ModelError> {
        let tied = c.flag_or("tie_word_embeddings", default)?;
        self.spec.head = if tied { Head::Tied } else { Head::Separate };
        self.names.ignored.retain(|part| part != "lm_head.weight");
        if tied {
            self.names.ignored.push("lm_head.weight".to_owned());
        }
        Ok(())
    }

    /// The window `sliding_window` on the layers that are of type `sliding_attention`.
    pub fn windows(&mut self, c: &Config, default: impl Fn(usize) -> &'static str) -> Result<(), ModelError> {
        let types = c.layer_types(&[SLIDING, FULL], default)?;
        let window = c.size_opt("sliding_window")?;
        if types.contains(&SLIDING) && window.is_none() {
            return Err(c.bad("sliding_window", "nothing", "a size, as layer_types asks for sliding_attention"));
        }
        self.attention(|i, a| a.window = window.filter(|_| types[i] == SLIDING));
        Ok(())
    }

    /// Four norms a layer, two before and two after, in the names of this layout.
    pub fn sandwich_norms(&mut self, pre_mlp: &str, post_attn: &str, post_mlp: &str) {
        self.names.set(Slot::PreMlp, layer_source(pre_mlp));
        self.post_norms(post_attn, post_mlp);
    }

    /// Norms after each half.
    pub fn post_norms(&mut self, post_attn: &str, post_mlp: &str) {
        let norm = self.spec.final_norm;
        self.names.set(Slot::PostAttn, layer_source(post_attn));
        self.names.set(Slot::PostMlp, layer_source(post_mlp));
        self.layers(|_, layer| (layer.post_attn, layer.post_mlp) = (Some(norm), Some(norm)));
    }
}

/// Layer type with a window.
pub const SLIDING: &str = "sliding_attention";
/// Layer type without.
pub const FULL: &str = "full_attention";
/// Layer type with a recurrent state.
pub const LINEAR: &str = "linear_attention";

/// Softmax-routed experts by the fields most families share.
pub fn softmax_moe(c: &Config, inter: usize, act: Activation) -> Result<Moe, ModelError> {
    let experts = c.experts(&["num_experts", "num_local_experts", "n_routed_experts"])?;
    let top_k = c.size("num_experts_per_tok")?;
    if top_k > experts {
        return Err(c.bad("num_experts_per_tok", top_k, format!("at most the {experts} experts")));
    }
    Ok(Moe {
        experts,
        top_k,
        expert: Dense { inter, act, bias: Bias::Absent },
        score: RouterScore::Softmax,
        score_bias: Bias::Absent,
        renormalize: true,
        scaling: 1.0,
        groups: None,
        shared: Shared::Absent,
    })
}

/// Sigmoid-routed experts in groups beside shared ones (arXiv 2412.19437).
pub fn grouped_moe(c: &Config) -> Result<Moe, ModelError> {
    let inter = c.size("moe_intermediate_size")?;
    let mut moe = softmax_moe(c, inter, c.activation("hidden_act")?)?;
    let (groups, kept) = (c.size_or("n_group", 1)?, c.size_or("topk_group", 1)?);
    if !moe.experts.is_multiple_of(groups) || kept > groups || moe.top_k > moe.experts / groups * kept {
        return Err(c.bad(
            "n_group",
            groups,
            format!("a divisor of {} experts with topk_group {kept} at most", moe.experts),
        ));
    }
    moe.score = RouterScore::Sigmoid;
    moe.score_bias = Bias::Present;
    moe.renormalize = c.flag_or("norm_topk_prob", true)?;
    moe.scaling = c.positive_or("routed_scaling_factor", 1.0)?;
    moe.groups = (groups > 1).then_some((groups, kept));
    let shared = c.count_or("n_shared_experts", 0)? * inter;
    moe.shared = if shared == 0 { Shared::Absent } else { Shared::Always(shared) };
    Ok(moe)
}
