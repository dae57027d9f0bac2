//! SmolLM3: Llama with no positions in every fourth layer; the format has no key for which.

use super::base::Description;
use super::llama;
use super::meta::Meta;
use crate::ModelError;

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = llama::describe(m)?;
    d.attention(|i, a| a.rope = (!(i + 1).is_multiple_of(4)).then_some(0));
    Ok(d)
}
