//! BERT: the standard encoder.

use serde_json::json;

use super::config::Config;
use super::encoder_base::{score, standard};
use crate::ModelError;
use crate::encoder_spec::EncoderDescription;
use crate::names::Source;

pub fn describe(c: &Config) -> Result<EncoderDescription, ModelError> {
    c.only("position_embedding_type", &json!("absolute"))?;
    let mut d = standard(c)?;
    d.names.roots = vec![("", ""), ("bert.", "")];
    let head = [Source::stem("bert.pooler.dense"), Source::stem("classifier")];
    score(c, &mut d, "BertForSequenceClassification", head)?;
    Ok(d)
}
