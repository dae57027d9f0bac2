//! The encoder most families start from (learnt positions, token types, norms after each half) in the names they share.
//! Knows no family.

use super::base::{attention, bias};
use super::config::Config;
use crate::ModelError;
use crate::encoder_spec::{EncoderDescription, EncoderLayer, EncoderSpec, NormOrder, Positions};
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
    };
    Ok(EncoderDescription { spec, names: names(token_types) })
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
