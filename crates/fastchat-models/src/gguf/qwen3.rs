//! Qwen3: q and k normed per head.

use fastchat_kernels::{NormScope, RopeLayout};

use super::base::{Description, standard};
use super::meta::Meta;
use crate::ModelError;

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = standard(m, RopeLayout::HalfSplit)?;
    d.qk_norm(NormScope::PerHead);
    Ok(d)
}
