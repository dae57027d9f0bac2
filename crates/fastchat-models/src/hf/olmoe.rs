//! OLMoE: q and k normed over all heads, routed experts in every layer.

use fastchat_kernels::NormScope;

use super::base::{Description, softmax_moe, standard};
use super::config::Config;
use crate::ModelError;
use crate::spec::Moe;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = standard(c)?;
    c.only("clip_qkv", &serde_json::Value::Null)?;
    let bias = c.flag_or("attention_bias", false)?;
    d.attention_bias(bias, bias);
    d.qk_norm(NormScope::FullWidth);
    let routed = softmax_moe(c, c.size("intermediate_size")?, c.activation("hidden_act")?)?;
    let moe = Moe { renormalize: c.flag_or("norm_topk_prob", false)?, ..routed };
    d.experts(&moe, |_| true);
    Ok(d)
}
