//! Llama: the standard decoder with optional biases.

use super::base::{Description, bias, standard};
use super::config::Config;
use crate::ModelError;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = standard(c)?;
    let all = c.flag_or("attention_bias", false)?;
    d.attention_bias(all, all);
    let mlp = bias(c.flag_or("mlp_bias", false)?);
    d.dense(|dense| dense.bias = mlp);
    Ok(d)
}
