//! Qwen3-MoE: Qwen3 with routed experts.

use fastchat_kernels::Activation;

use super::base::{Description, moe};
use super::meta::Meta;
use super::qwen3;
use crate::ModelError;

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = qwen3::describe(m)?;
    d.routed(m, &moe(m, Activation::Silu)?);
    Ok(d)
}
