//! Gemma 3: Gemma 2's shape with normed q and k, five windowed layers to a global one, each kind with its rope.

use fastchat_kernels::NormScope;

use super::base::Description;
use super::gemma2;
use super::meta::Meta;
use crate::ModelError;

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    // 27B has 62 layers.
    let mut d = gemma2::base(m, 62)?;
    d.qk_norm(NormScope::PerHead);
    d.spec.logit_softcap = m.positive_opt(".final_logit_softcapping")?;
    d.sliding(m, |i| !(i + 1).is_multiple_of(6))?;
    d.local_rope(m, 10_000.0)?;
    Ok(d)
}
