//! gpt-oss: sinks, every other layer windowed, biased experts with a clamped activation.

use fastchat_kernels::{Activation, RopeLayout, RouterScore};

use super::base::{Description, moe, standard};
use super::meta::Meta;
use super::rope;
use crate::ModelError;
use crate::spec::{Bias, Dense, Moe, Sinks};

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = standard(m, RopeLayout::HalfSplit)?;
    let head_dim = 2 * d.spec.ropes[0].inv_freq.len();
    d.spec.ropes = vec![rope::untruncated(m, RopeLayout::HalfSplit, head_dim)?.spec];
    d.attention_bias(true, true);
    d.attention(|_, a| a.sinks = Sinks::PerHead);
    d.middle_norm();
    d.sliding(m, |i| i % 2 == 0)?;
    let routed = moe(m, Activation::SwigluOai { alpha: 1.702, limit: 7.0 })?;
    let expert = Dense { bias: Bias::Present, ..routed.expert };
    d.routed(m, &Moe { expert, score: RouterScore::SoftmaxTopK, ..routed });
    Ok(d)
}
