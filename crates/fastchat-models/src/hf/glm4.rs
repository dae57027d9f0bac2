//! GLM-4: four norms, interleaved partial rope, fused gate and up.

use fastchat_kernels::RopeLayout;

use super::base::{Description, standard};
use super::{config::Config, phi3};
use crate::ModelError;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = standard(c)?;
    d.attention_bias(c.flag_or("attention_bias", false)?, false);
    d.spec.ropes[0].layout = RopeLayout::Interleaved;
    d.sandwich_norms("post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm");
    phi3::fuse_gate_up(c, &mut d)?;
    Ok(d)
}
