//! Qwen3-MoE: Qwen3 with routed experts.

use super::base::Description;
use super::qwen2_moe::{routed, sparse_layers};
use super::{config::Config, qwen3};
use crate::ModelError;
use crate::spec::Moe;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = qwen3::describe(c)?;
    let moe = Moe { renormalize: c.flag_or("norm_topk_prob", false)?, ..routed(c)? };
    sparse_layers(c, &mut d, &moe)?;
    Ok(d)
}
