//! StarCoder2: layer norms with bias, a plain MLP, biases everywhere.

use super::base::{Description, bias, layer_source, standard};
use super::config::Config;
use crate::ModelError;
use crate::names::Slot;
use crate::spec::{Bias, Dense, Mlp, Norm};

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = standard(c)?;
    d.tie(c, true)?;
    let all = c.flag_or("use_bias", true)?;
    d.attention_bias(all, all);
    let window = c.size_opt("sliding_window")?;
    d.attention(|_, a| a.window = window);
    let norm = Norm::Layer { eps: c.positive_or("norm_epsilon", 1e-5)?, bias: Bias::Present };
    let dense = Dense { inter: c.size("intermediate_size")?, act: c.activation("hidden_act")?, bias: bias(all) };
    d.spec.final_norm = norm;
    d.layers(|_, layer| {
        (layer.pre_attn, layer.pre_mlp, layer.mlp) = (Some(norm), Some(norm), Mlp::Plain(dense));
    });
    d.names.set(Slot::Up, layer_source("mlp.c_fc"));
    d.names.set(Slot::Down, layer_source("mlp.c_proj"));
    Ok(d)
}
