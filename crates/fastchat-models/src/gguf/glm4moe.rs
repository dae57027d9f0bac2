//! GLM-4-MoE: partial rope, optional q/k norm, sigmoid-routed experts after dense first layers.

use fastchat_kernels::{NormScope, RopeLayout};

use super::base::{Description, standard};
use super::deepseek2;
use super::meta::Meta;
use crate::ModelError;

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = standard(m, RopeLayout::HalfSplit)?;
    if m.has("blk.0.attn_q_norm.weight") {
        d.qk_norm(NormScope::PerHead);
    }
    d.middle_norm();
    d.routed(m, &deepseek2::experts(m)?);
    Ok(d)
}
