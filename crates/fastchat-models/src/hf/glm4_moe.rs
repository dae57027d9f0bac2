//! GLM-4-MoE: partial rope, optional q/k norm, sigmoid-routed experts after dense first layers.

use fastchat_kernels::NormScope;

use super::base::{Description, grouped_moe, standard};
use super::{config::Config, deepseek_v3};
use crate::ModelError;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = standard(c)?;
    d.attention_bias(c.flag_or("attention_bias", false)?, false);
    if c.flag_or("use_qk_norm", false)? {
        d.qk_norm(NormScope::PerHead);
    }
    let first_sparse = c.count_or("first_k_dense_replace", 1)?;
    d.experts(&grouped_moe(c)?, |i| i >= first_sparse);
    deepseek_v3::skip_draft_layers(c, &mut d)?;
    Ok(d)
}
