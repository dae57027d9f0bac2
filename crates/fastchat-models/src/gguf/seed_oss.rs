//! Seed-OSS: Qwen2's rope order, biases where they are stored.

use fastchat_kernels::RopeLayout;

use super::base::{Description, standard};
use super::meta::Meta;
use crate::ModelError;

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = standard(m, RopeLayout::HalfSplit)?;
    d.middle_norm();
    Ok(d)
}
