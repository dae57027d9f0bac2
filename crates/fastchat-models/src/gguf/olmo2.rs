//! OLMo 2 and 3: norms after each half only, q and k normed over all heads; OLMo 3 has three windowed layers, with an
//! unscaled rope, to a global one.

use fastchat_kernels::{NormScope, RopeLayout};

use super::base::{Description, standard};
use super::meta::Meta;
use crate::ModelError;

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = standard(m, RopeLayout::HalfSplit)?;
    d.qk_norm(NormScope::FullWidth);
    d.after_only();
    if m.count_or(".attention.sliding_window", 0)? > 0 {
        d.sliding(m, |i| !(i + 1).is_multiple_of(4))?;
        d.local_rope(m, m.positive_or(".rope.freq_base", 500_000.0)?)?;
    }
    Ok(d)
}
