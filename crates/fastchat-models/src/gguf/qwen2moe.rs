//! Qwen2-MoE: Qwen2 with routed experts and a switched shared one.

use fastchat_kernels::Activation;

use super::base::{Description, moe};
use super::meta::Meta;
use super::qwen2;
use crate::ModelError;
use crate::spec::{Moe, Shared};

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = qwen2::describe(m)?;
    let routed = Moe { renormalize: m.flag_or(".expert_weights_norm", false)?, ..moe(m, Activation::Silu)? };
    d.routed(m, &Moe { shared: switched(m)?, ..routed });
    Ok(d)
}

/// The shared expert with its switch.
pub fn switched(m: &Meta) -> Result<Shared, ModelError> {
    Ok(Shared::Gated(m.size(".expert_shared_feed_forward_length")?))
}
