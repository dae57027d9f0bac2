//! SmolLM3: Llama with some layers without positions.

use super::base::Description;
use super::{config::Config, llama, qwen2};
use crate::ModelError;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = llama::describe(c)?;
    d.tie(c, true)?;
    qwen2::upper_windows(c, &mut d)?;
    // 1 marks a layer that is rotated, 0 one that is not.
    let rotated = c.counts("no_rope_layers")?;
    let interval = c.size_or("no_rope_layer_interval", 4)?;
    if !rotated.is_empty() && rotated.len() < d.spec.layers.len() {
        let expected = format!("{} entries", d.spec.layers.len());
        return Err(c.bad("no_rope_layers", format!("{} entries", rotated.len()), expected));
    }
    d.attention(|i, a| {
        let rotate = rotated.get(i).map_or(!(i + 1).is_multiple_of(interval), |&flag| flag != 0);
        a.rope = rotate.then_some(0);
    });
    Ok(d)
}
