//! Command R7B: both halves read one bias-free layer norm; windowed layers are rotated, global ones have no positions.

use fastchat_kernels::RopeLayout;

use super::base::{Description, standard};
use super::meta::Meta;
use crate::ModelError;
use crate::spec::{Bias, Norm, Residual};

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = standard(m, RopeLayout::Interleaved)?;
    d.spec.logit_scale = m.positive_or(".logit_scale", 1.0)?;
    let norm = Norm::Layer { eps: m.positive_or(".attention.layer_norm_epsilon", 1e-5)?, bias: Bias::Absent };
    d.spec.final_norm = norm;
    d.layers(|_, layer| {
        (layer.residual, layer.pre_attn, layer.pre_mlp) = (Residual::Parallel, Some(norm), None);
    });
    d.sliding(m, |i| !(i + 1).is_multiple_of(4))?;
    d.attention(|_, a| a.rope = a.window.map(|_| 0));
    Ok(d)
}
