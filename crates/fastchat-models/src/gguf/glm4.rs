//! GLM-4: four norms, interleaved partial rope, fused gate and up.

use fastchat_kernels::RopeLayout;

use super::base::{Description, standard};
use super::meta::Meta;
use crate::ModelError;

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = standard(m, RopeLayout::Interleaved)?;
    d.sandwich();
    d.fused_qkv(m);
    d.fused_gate_up(m)?;
    Ok(d)
}
