//! BERT: the standard encoder.

use serde_json::json;

use super::config::Config;
use super::encoder_base::standard;
use crate::ModelError;
use crate::encoder_spec::EncoderDescription;

pub fn describe(c: &Config) -> Result<EncoderDescription, ModelError> {
    c.only("position_embedding_type", &json!("absolute"))?;
    let mut d = standard(c)?;
    d.names.roots = vec![("", ""), ("bert.", "")];
    Ok(d)
}
