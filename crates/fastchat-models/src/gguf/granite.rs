//! Granite: Llama with four multipliers.

use super::base::Description;
use super::llama;
use super::meta::Meta;
use crate::ModelError;

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = llama::describe(m)?;
    d.spec.embed_scale = m.positive_or(".embedding_scale", 1.0)?;
    d.spec.logit_scale = 1.0 / m.positive_or(".logit_scale", 1.0)?;
    let residual = m.positive_or(".residual_scale", 1.0)?;
    d.layers(|_, layer| layer.residual_scale = residual);
    Ok(d)
}
