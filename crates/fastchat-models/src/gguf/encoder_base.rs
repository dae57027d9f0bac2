//! The encoder that architectures start from (positions, token types, norms after each half) in GGUF's keys and tensor
//! names, and how a file says that its rows are pooled. Knows no architecture.

use std::path::Path;

use fastchat_kernels::Activation;

use super::base::{attention, layer_source, vocab_size};
use super::meta::Meta;
use crate::ModelError;
use crate::description::bias;
use crate::encoder_spec::{EncoderDescription, EncoderLayer, EncoderSpec, NormOrder, Pooling, PoolingMode, Positions};
use crate::names::{Names, Slot, Source, Step};
use crate::spec::{Bias, Dense, Mlp, Norm};

/// The common encoder of a file: a plain MLP, learnt positions where they are stored, biases likewise.
pub fn standard(m: &Meta) -> Result<EncoderDescription, ModelError> {
    if m.flag_or(".attention.causal", true)? {
        return Err(m.unsupported(".attention.causal", true, "for an encoder false is"));
    }
    let hidden = m.size(".embedding_length")?;
    let norm = Norm::Layer { eps: m.positive_or(".attention.layer_norm_epsilon", 1e-12)?, bias: Bias::Present };
    let mlp = Mlp::Plain(Dense {
        inter: m.size(".feed_forward_length")?,
        act: Activation::Gelu,
        bias: bias(m.has("blk.0.ffn_up.bias")),
    });
    let layer = |mut attention: crate::spec::Attention| {
        attention.rope = None;
        EncoderLayer { order: NormOrder::Post, attn_norm: Some(norm), mlp_norm: norm, attention, mlp: mlp.clone() }
    };
    let rows = |name: &str| m.tensor(name).and_then(|stored| stored.shape.first()).copied();
    let context = m.size(".context_length")?;
    let (positions, max_positions) = match rows("position_embd.weight") {
        Some(rows) => (Positions::Learned { rows, first: 0 }, rows.min(context)),
        None => (Positions::Rotary, context),
    };
    let token_types = rows("token_types.weight").unwrap_or(0);
    let spec = EncoderSpec {
        vocab_size: vocab_size(m)?,
        hidden_size: hidden,
        max_positions,
        positions,
        token_type: bias(token_types > 0),
        embed_norm: norm,
        final_norm: None,
        ropes: Vec::new(),
        layers: attention(m)?.into_iter().map(layer).collect(),
        scorer: None,
    };
    Ok(EncoderDescription { spec, names: names(token_types) })
}

/// How the file says that its rows become one vector; `None` where it says nothing. Vectors have length one, as
/// llama.cpp's server gives them.
pub fn pooling(m: &Meta) -> Result<Option<Pooling>, ModelError> {
    let mode = match m.count_or(".pooling_type", 0)? {
        0 => return Ok(None),
        1 => PoolingMode::Mean,
        2 => PoolingMode::Cls,
        3 => PoolingMode::Last,
        other => return Err(m.unsupported(".pooling_type", other, "1 (mean), 2 (first) and 3 (last) are")),
    };
    Ok(Some(Pooling { mode, normalize: true }))
}

/// The key's value for a way to pool, for a model read from `path`.
pub fn pooling_type(path: &Path, pooling: Pooling) -> Result<usize, ModelError> {
    if !pooling.normalize {
        let expected = "readers of GGUF bring vectors to length one";
        return Err(ModelError::unsupported(path, "pooling.normalize", false, expected));
    }
    match pooling.mode {
        PoolingMode::Mean => Ok(1),
        PoolingMode::Cls => Ok(2),
        PoolingMode::Last => Ok(3),
        other @ (PoolingMode::MeanSqrtLen | PoolingMode::Max) => {
            let expected = "GGUF has numbers for Mean, Cls and Last";
            Err(ModelError::unsupported(path, "pooling.mode", format!("{other:?}"), expected))
        }
    }
}

fn names(token_types: usize) -> Names {
    let mut names = Names { roots: vec![("", "")], ..Names::default() };
    let first_type = Step::Range { rows: 0..1, total: token_types };
    names.set(Slot::Embed, Source::stem("token_embd"));
    names.set(Slot::Positions, Source::stem("position_embd"));
    names.set(Slot::TokenType, Source::stem("token_types").then(first_type));
    names.set(Slot::EmbedNorm, Source::stem("token_embd_norm"));
    for (slot, stem) in [
        (Slot::Q, "attn_q"),
        (Slot::K, "attn_k"),
        (Slot::V, "attn_v"),
        (Slot::O, "attn_output"),
        (Slot::PostAttn, "attn_output_norm"),
        (Slot::Gate, "ffn_gate"),
        (Slot::Up, "ffn_up"),
        (Slot::Down, "ffn_down"),
        (Slot::PostMlp, "layer_output_norm"),
    ] {
        names.set(slot, layer_source(stem));
    }
    names
}
