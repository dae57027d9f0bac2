//! Qwen2.5-VL's decoder: Qwen2 with pairs that turn by time, lines and columns, in blocks.

use super::base::Description;
use super::meta::Meta;
use super::qwen2;
use crate::ModelError;

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = qwen2::describe(m)?;
    d.sections(m, false)?;
    Ok(d)
}
