//! Gemma 3: Gemma 2's shape with normed q and k, five windowed layers to a global one, each kind with its rope.

use fastchat_kernels::NormScope;

use super::base::{Description, FULL, SLIDING};
use super::{config::Config, gemma2, rope};
use crate::ModelError;
use crate::names::Slot;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = gemma2::base(c)?;
    d.qk_norm(NormScope::PerHead);
    d.norms_from_one(&[Slot::QNorm, Slot::KNorm]);
    let pattern = c.size_or("sliding_window_pattern", 6)?;
    d.windows(c, |i| if (i + 1).is_multiple_of(pattern) { FULL } else { SLIDING })?;
    let head_dim = c.size_or("head_dim", 256)?;
    let local = match c.float_opt("rope_local_base_freq")? {
        Some(theta) => rope::plain(theta, head_dim),
        None => rope::read(c, Some(SLIDING), head_dim)?.spec,
    };
    d.sliding_rope(local);
    Ok(d)
}
