//! OLMoE: q and k normed over all heads, routed experts in every layer.

use fastchat_kernels::{Activation, NormScope, RopeLayout};

use super::base::{Description, moe, standard};
use super::meta::Meta;
use crate::ModelError;
use crate::spec::Moe;

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = standard(m, RopeLayout::HalfSplit)?;
    d.qk_norm(NormScope::FullWidth);
    let renormalize = m.flag_or(".expert_weights_norm", false)?;
    d.routed(m, &Moe { renormalize, ..moe(m, Activation::Silu)? });
    Ok(d)
}
