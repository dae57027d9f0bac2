//! Mistral: one window for all layers.

use super::base::{Description, standard};
use super::config::Config;
use crate::ModelError;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = standard(c)?;
    let window = c.size_opt("sliding_window")?;
    d.attention(|_, a| a.window = window);
    Ok(d)
}
