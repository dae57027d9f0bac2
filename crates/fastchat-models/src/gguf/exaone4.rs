//! EXAONE 4: norms after each half, q and k normed per head; with windows, global layers have no positions.

use fastchat_kernels::{NormScope, RopeLayout};

use super::base::{Description, standard};
use super::meta::Meta;
use crate::ModelError;

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = standard(m, RopeLayout::HalfSplit)?;
    d.qk_norm(NormScope::PerHead);
    d.after_only();
    if m.count_or(".attention.sliding_window", 0)? > 0 {
        d.sliding(m, |i| !(i + 1).is_multiple_of(4))?;
        d.attention(|_, a| a.rope = a.window.map(|_| 0));
    }
    Ok(d)
}
