//! Qwen3: q and k normed per head.

use fastchat_kernels::NormScope;

use super::base::{Description, standard};
use super::{config::Config, qwen2};
use crate::ModelError;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = standard(c)?;
    let all = c.flag_or("attention_bias", false)?;
    d.attention_bias(all, all);
    d.qk_norm(NormScope::PerHead);
    qwen2::upper_windows(c, &mut d)?;
    Ok(d)
}
