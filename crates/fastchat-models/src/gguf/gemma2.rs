//! Gemma 2: scaled embeddings, four norms (stored complete), softcaps, every other layer windowed.

use fastchat_kernels::{Activation, RopeLayout};

use super::base::{Description, standard};
use super::meta::Meta;
use crate::ModelError;

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    // 27B has 46 layers.
    let mut d = base(m, 46)?;
    let softcap = m.positive_opt(".attn_logit_softcapping")?.unwrap_or(50.0);
    d.spec.logit_softcap = Some(m.positive_opt(".final_logit_softcapping")?.unwrap_or(30.0));
    d.attention(|_, a| a.softcap = Some(softcap));
    d.sliding(m, |i| i % 2 == 0)?;
    Ok(d)
}

/// What Gemma 2 and 3 share. The models of `wide` layers scale attention by the width over the heads; the format has no
/// key for it.
pub fn base(m: &Meta, wide: usize) -> Result<Description, ModelError> {
    let mut d = standard(m, RopeLayout::HalfSplit)?;
    d.spec.embed_scale = (d.spec.hidden_size as f32).sqrt();
    d.sandwich();
    d.act(Activation::GeluTanh);
    if m.get(".attention.scale").is_none() && d.spec.layers.len() == wide {
        let hidden = d.spec.hidden_size as f32;
        d.attention(|_, a| a.scale = (hidden / a.heads as f32).powf(-0.5));
    }
    Ok(d)
}
