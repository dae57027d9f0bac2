//! DeepSeek-V3: latent attention, sigmoid routing in groups, a shared expert, dense first layers.

use fastchat_kernels::RopeLayout;

use super::base::{Description, grouped_moe, layer_source, standard};
use super::{config::Config, rope};
use crate::ModelError;
use crate::names::{Slot, Step};
use crate::spec::{Mixer, Mla, Moe};

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    latent(c, &grouped_moe(c)?)
}

/// Latent attention, and experts after the dense first layers.
pub fn latent(c: &Config, moe: &Moe) -> Result<Description, ModelError> {
    let mut d = standard(c)?;
    c.only("attention_bias", &false.into())?;
    let (nope_dim, rope_dim) = (c.size("qk_nope_head_dim")?, c.size("qk_rope_head_dim")?);
    let (v_dim, kv_lora_rank) = (c.size("v_head_dim")?, c.size("kv_lora_rank")?);
    let mut rope = rope::read(c, None, rope_dim)?;
    if c.flag_or("rope_interleave", true)? {
        rope.spec.layout = RopeLayout::Interleaved;
    }
    let eps = d.spec.final_norm.eps();
    let mla = Mla {
        heads: c.size("num_attention_heads")?,
        q_lora_rank: c.size_opt("q_lora_rank")?,
        kv_lora_rank,
        nope_dim,
        rope_dim,
        v_dim,
        scale: ((nope_dim + rope_dim) as f32).powf(-0.5) * rope.scale,
        rope: 0,
        eps,
    };
    d.spec.ropes = vec![rope.spec];
    d.layers(|_, layer| layer.mixer = Mixer::Mla(mla.clone()));
    let first_sparse = c.count_or("first_k_dense_replace", 0)?;
    d.experts(moe, |i| i >= first_sparse);
    skip_draft_layers(c, &mut d)?;
    latent_names(&mut d, nope_dim, v_dim);
    Ok(d)
}

/// Layers past the last belong to multi-token prediction, which this engine does not run.
pub fn skip_draft_layers(c: &Config, d: &mut Description) -> Result<(), ModelError> {
    let (layers, drafts) = (d.spec.layers.len(), c.count_or("num_nextn_predict_layers", 0)?.min(16));
    d.names.ignored.extend((layers..layers + drafts).map(|i| format!("layers.{i}.")));
    Ok(())
}

fn latent_names(d: &mut Description, nope_dim: usize, v_dim: usize) {
    let rows = [
        (Slot::QDown, "q_a_proj"),
        (Slot::QDownNorm, "q_a_layernorm"),
        (Slot::QUp, "q_b_proj"),
        (Slot::KvDown, "kv_a_proj_with_mqa"),
        (Slot::KvDownNorm, "kv_a_layernorm"),
    ];
    for (slot, stem) in rows {
        d.names.set(slot, layer_source(&format!("self_attn.{stem}")));
    }
    let block = |within| layer_source("self_attn.kv_b_proj").then(Step::Block { stride: nope_dim + v_dim, within });
    d.names.set(Slot::LatentKey, block(0..nope_dim).then(Step::Transpose));
    d.names.set(Slot::LatentValue, block(nope_dim..nope_dim + v_dim));
}
