//! StarCoder2: layer norms with bias, a plain MLP, biases everywhere.

use fastchat_kernels::{Activation, RopeLayout};

use super::base::{Description, standard};
use super::meta::Meta;
use crate::ModelError;
use crate::description::bias;
use crate::spec::{Bias, Dense, Mlp, Norm};

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = standard(m, RopeLayout::HalfSplit)?;
    let norm = Norm::Layer { eps: m.positive_or(".attention.layer_norm_epsilon", 1e-5)?, bias: Bias::Present };
    let all = bias(m.has("blk.0.ffn_up.bias"));
    d.spec.final_norm = norm;
    d.layers(|_, layer| {
        if let Mlp::Gated(dense) = layer.mlp {
            layer.mlp = Mlp::Plain(Dense { act: Activation::GeluTanh, bias: all, ..dense });
        }
        (layer.pre_attn, layer.pre_mlp) = (Some(norm), Some(norm));
    });
    d.sliding(m, |_| true)?;
    Ok(d)
}
