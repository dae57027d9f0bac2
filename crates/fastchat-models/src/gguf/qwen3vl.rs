//! Qwen3-VL's decoder: Qwen3 with pairs that turn by time, lines and columns, interleaved.

use super::base::Description;
use super::meta::Meta;
use super::qwen3;
use crate::ModelError;

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = qwen3::describe(m)?;
    d.sections(m, true)?;
    Ok(d)
}
