//! RoBERTa and XLM-RoBERTa: BERT whose positions begin behind the padding token's row.

use serde_json::json;

use super::config::Config;
use super::encoder_base::{score, standard};
use crate::ModelError;
use crate::encoder_spec::{EncoderDescription, Positions};
use crate::names::Source;

pub fn describe(c: &Config) -> Result<EncoderDescription, ModelError> {
    c.only("position_embedding_type", &json!("absolute"))?;
    let mut d = standard(c)?;
    let (rows, first) = (d.spec.max_positions, c.count_or("pad_token_id", 1)? + 1);
    if first >= rows {
        return Err(c.bad("pad_token_id", first - 1, format!("below max_position_embeddings {rows} by two")));
    }
    d.spec.positions = Positions::Learned { rows, first };
    d.spec.max_positions = rows - first;
    d.names.roots = vec![("", ""), ("roberta.", "")];
    for class in ["XLMRobertaForSequenceClassification", "RobertaForSequenceClassification"] {
        let head = [Source::stem("classifier.dense"), Source::stem("classifier.out_proj")];
        score(c, &mut d, class, head)?;
    }
    Ok(d)
}
