//! Granite: Llama with four multipliers.

use super::base::Description;
use super::{config::Config, llama};
use crate::ModelError;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = llama::describe(c)?;
    d.spec.embed_scale = c.positive_or("embedding_multiplier", 1.0)?;
    d.spec.logit_scale = 1.0 / c.positive_or("logits_scaling", 1.0)?;
    let scale = c.positive_or("attention_multiplier", 1.0)?;
    d.attention(|_, a| a.scale = scale);
    let residual = c.positive_or("residual_multiplier", 1.0)?;
    d.layers(|_, layer| layer.residual_scale = residual);
    Ok(d)
}
