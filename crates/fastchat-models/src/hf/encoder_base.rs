//! The encoder most families start from (learnt positions, token types, norms after each half) in the names they share.
//! Knows no family.

use serde_json::Value;

use super::base::{attention, bias};
use super::config::Config;
use crate::ModelError;
use crate::encoder_spec::{
    EncoderDescription, EncoderLayer, EncoderSpec, NormOrder, Positions, ScoreActivation, Scorer,
};
use crate::names::{Names, Slot, Source, Step};
use crate::spec::{Bias, Dense, Mlp, Norm};

/// The common encoder of a config: biases everywhere, a plain MLP, positions from the first row of their table on.
pub fn standard(c: &Config) -> Result<EncoderDescription, ModelError> {
    let hidden = c.size("hidden_size")?;
    let (mut attention, _) = attention(c, hidden)?;
    (attention.qkv_bias, attention.out_bias, attention.rope) = (Bias::Present, Bias::Present, None);
    let norm = Norm::Layer { eps: c.positive_or("layer_norm_eps", 1e-12)?, bias: Bias::Present };
    let inter = c.size("intermediate_size")?;
    let mlp = Mlp::Plain(Dense { inter, act: c.activation("hidden_act")?, bias: Bias::Present });
    let layer = EncoderLayer { order: NormOrder::Post, attn_norm: Some(norm), mlp_norm: norm, attention, mlp };
    let rows = c.size("max_position_embeddings")?;
    let token_types = c.count_or("type_vocab_size", 2)?;
    let spec = EncoderSpec {
        vocab_size: c.size("vocab_size")?,
        hidden_size: hidden,
        max_positions: rows,
        positions: Positions::Learned { rows, first: 0 },
        token_type: bias(token_types > 0),
        embed_norm: norm,
        final_norm: None,
        ropes: Vec::new(),
        layers: vec![layer; c.layers()?],
        scorer: None,
    };
    Ok(EncoderDescription { spec, names: names(token_types) })
}

/// Makes a cross-encoder of an encoder whose config has the architecture `class`: `[dense, out]` are the stems of its head.
pub fn score(c: &Config, d: &mut EncoderDescription, class: &str, [dense, out]: [Source; 2]) -> Result<(), ModelError> {
    let classes = c.get("architectures").and_then(Value::as_array);
    if !classes.is_some_and(|classes| classes.iter().any(|name| name == class)) {
        return Ok(());
    }
    // A config lists its labels, and says nothing of their number where it is two.
    let labels = c.get("id2label").and_then(Value::as_object).map(serde_json::Map::len);
    let labels = c.count_or("num_labels", labels.unwrap_or(2))?;
    if labels != 1 {
        return Err(c.unsupported("num_labels", labels, "one label, the score of a cross-encoder, is"));
    }
    let token_types = c.count_or("type_vocab_size", 2)?;
    let second_type = bias(token_types > 1);
    d.names.set(Slot::ScoreDense, dense);
    d.names.set(Slot::ScoreOut, out);
    if token_types > 1 {
        let second = Step::Range { rows: 1..2, total: token_types };
        d.names.set(Slot::SecondType, Source::stem("embeddings.token_type_embeddings").then(second));
    }
    d.spec.scorer = Some(Scorer { second_type, activation: activation(c)? });
    Ok(())
}

/// Where sentence-transformers keeps the function of a cross-encoder, by its name in torch; else that of one label.
fn activation(c: &Config) -> Result<ScoreActivation, ModelError> {
    let table = c.table("sentence_transformers")?;
    let (at, field) = match &table {
        Some(table) if table.get("activation_fn").is_some() => (table, "activation_fn"),
        _ => (c, "sbert_ce_default_activation_function"),
    };
    match at.text(field)? {
        None | Some("torch.nn.modules.activation.Sigmoid") => Ok(ScoreActivation::Sigmoid),
        Some("torch.nn.modules.linear.Identity") => Ok(ScoreActivation::Identity),
        Some(other) => Err(at.unsupported(field, other, "Sigmoid and Identity are")),
    }
}

fn names(token_types: usize) -> Names {
    let ignored = ["pooler.", "embeddings.position_ids", "cls.", "lm_head."];
    let mut names = Names { roots: vec![("", "")], ignored: ignored.map(str::to_owned).to_vec(), ..Names::default() };
    let first_type = Step::Range { rows: 0..1, total: token_types };
    names.set(Slot::Embed, Source::stem("embeddings.word_embeddings"));
    names.set(Slot::Positions, Source::stem("embeddings.position_embeddings"));
    names.set(Slot::TokenType, Source::stem("embeddings.token_type_embeddings").then(first_type));
    names.set(Slot::EmbedNorm, Source::stem("embeddings.LayerNorm"));
    for (slot, stem) in [
        (Slot::Q, "attention.self.query"),
        (Slot::K, "attention.self.key"),
        (Slot::V, "attention.self.value"),
        (Slot::O, "attention.output.dense"),
        (Slot::PostAttn, "attention.output.LayerNorm"),
        (Slot::Up, "intermediate.dense"),
        (Slot::Down, "output.dense"),
        (Slot::PostMlp, "output.LayerNorm"),
    ] {
        names.set(slot, Source::stem(&format!("encoder.layer.{{l}}.{stem}")));
    }
    names
}
