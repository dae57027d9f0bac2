//! Qwen2: biased q, k, v.

use fastchat_kernels::RopeLayout;

use super::base::{Description, standard};
use super::meta::Meta;
use crate::ModelError;

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = standard(m, RopeLayout::HalfSplit)?;
    d.attention_bias(true, false);
    Ok(d)
}
