//! Seed-OSS: Llama with separate switches for its biases.

use super::base::Description;
use super::{config::Config, llama};
use crate::ModelError;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = llama::describe(c)?;
    d.attention_bias(c.flag_or("attention_bias", true)?, c.flag_or("attention_out_bias", false)?);
    Ok(d)
}
