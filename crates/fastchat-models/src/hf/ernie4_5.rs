//! ERNIE 4.5 (dense): Llama with interleaved rope and one switch for all biases.

use fastchat_kernels::RopeLayout;

use super::base::{Description, bias, standard};
use super::config::Config;
use crate::ModelError;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = standard(c)?;
    d.tie(c, true)?;
    d.spec.ropes[0].layout = RopeLayout::Interleaved;
    let all = c.flag_or("use_bias", false)?;
    d.attention_bias(all, all);
    d.dense(|dense| dense.bias = bias(all));
    Ok(d)
}
