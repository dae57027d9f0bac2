//! Phi-3: fused q, k, v and gate, up; one window for all layers where the file has one.

use fastchat_kernels::RopeLayout;

use super::base::{Description, standard};
use super::meta::Meta;
use crate::ModelError;

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = standard(m, RopeLayout::HalfSplit)?;
    d.fused_qkv(m);
    d.fused_gate_up(m)?;
    d.sliding(m, |_| true)?;
    Ok(d)
}
