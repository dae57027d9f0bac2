//! Command R7B: both halves read one bias-free layer norm; windowed layers are rotated, global ones have no positions.

use fastchat_kernels::RopeLayout;

use super::base::{Description, FULL, SLIDING, standard};
use super::config::Config;
use crate::ModelError;
use crate::spec::{Bias, Norm, Residual};

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = standard(c)?;
    d.tie(c, true)?;
    c.only("use_qk_norm", &false.into())?;
    let bias = c.flag_or("attention_bias", false)?;
    d.attention_bias(bias, bias);
    d.spec.logit_scale = c.positive_or("logit_scale", 0.0625)?;
    d.spec.ropes[0].layout = RopeLayout::Interleaved;
    let norm = Norm::Layer { eps: c.positive_or("layer_norm_eps", 1e-5)?, bias: Bias::Absent };
    d.spec.final_norm = norm;
    d.layers(|_, layer| {
        (layer.residual, layer.pre_attn, layer.pre_mlp) = (Residual::Parallel, Some(norm), None);
    });
    let pattern = c.size_or("sliding_window_pattern", 4)?;
    d.windows(c, |i| if (i + 1).is_multiple_of(pattern) { FULL } else { SLIDING })?;
    d.attention(|_, a| a.rope = a.window.map(|_| 0));
    Ok(d)
}
