//! Gemma 2: scaled embeddings, four norms stored from one, softcaps, every other layer windowed.

use super::base::{Description, FULL, SLIDING, standard};
use super::config::Config;
use crate::ModelError;
use crate::names::Slot;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = base(c)?;
    d.windows(c, |i| if i % 2 == 0 { SLIDING } else { FULL })?;
    Ok(d)
}

/// What Gemma 2 and 3 share.
pub fn base(c: &Config) -> Result<Description, ModelError> {
    let mut d = standard(c)?;
    d.tie(c, true)?;
    d.spec.embed_scale = (d.spec.hidden_size as f32).sqrt();
    d.spec.logit_softcap = c.float_opt("final_logit_softcapping")?;
    d.sandwich_norms("pre_feedforward_layernorm", "post_attention_layernorm", "post_feedforward_layernorm");
    d.norms_from_one(&[Slot::PreAttn, Slot::PostAttn, Slot::PreMlp, Slot::PostMlp, Slot::FinalNorm]);
    let scale = c.positive_or("query_pre_attn_scalar", 256.0)?.powf(-0.5);
    let softcap = c.float_opt("attn_logit_softcapping")?;
    let bias = c.flag_or("attention_bias", false)?;
    d.attention_bias(bias, bias);
    d.attention(|_, a| (a.scale, a.softcap) = (scale, softcap));
    Ok(d)
}
