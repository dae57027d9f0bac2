//! OLMo 2: norms after each half only, q and k normed over all heads.

use fastchat_kernels::NormScope;

use super::base::{Description, standard};
use super::config::Config;
use crate::ModelError;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = standard(c)?;
    let bias = c.flag_or("attention_bias", false)?;
    d.attention_bias(bias, bias);
    d.qk_norm(NormScope::FullWidth);
    after_only(&mut d);
    Ok(d)
}

/// No norm before the halves, one after each.
pub fn after_only(d: &mut Description) {
    d.post_norms("post_attention_layernorm", "post_feedforward_layernorm");
    d.layers(|_, layer| (layer.pre_attn, layer.pre_mlp) = (None, None));
}
