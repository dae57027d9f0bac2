//! Gemma 3: Gemma 2's shape with normed q and k, five windowed layers to a global one, each kind with its rope.

use fastchat_kernels::NormScope;
use serde_json::json;

use super::base::{Description, FULL, SLIDING};
use super::{config::Config, gemma2, rope};
use crate::ModelError;
use crate::names::Slot;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    // The published multimodal configs leave these to their class.
    let c = &c.with_defaults(json!({
        "vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "max_position_embeddings": 131_072, "rope_theta": 1_000_000.0, "hidden_activation": "gelu_pytorch_tanh",
    }));
    let mut d = gemma2::base(c)?;
    d.qk_norm(NormScope::PerHead);
    d.norms_from_one(&[Slot::QNorm, Slot::KNorm]);
    let pattern = c.size_or("sliding_window_pattern", 6)?;
    d.windows(c, |i| if (i + 1).is_multiple_of(pattern) { FULL } else { SLIDING })?;
    let head_dim = c.size("head_dim")?;
    let local = match c.table("rope_parameters")? {
        Some(table) if table.get(SLIDING).is_some() => rope::read(c, Some(SLIDING), head_dim)?.spec,
        _ => rope::plain(c.positive_or("rope_local_base_freq", 10_000.0)?, head_dim),
    };
    d.sliding_rope(local);
    Ok(d)
}
