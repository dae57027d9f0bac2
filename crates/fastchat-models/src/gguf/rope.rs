//! Rope keys and factor tensors of a GGUF file to a resolved table. Knows no architecture.

use fastchat_kernels::RopeLayout;

use super::meta::Meta;
use crate::ModelError;
use crate::rope::{Scaling, frequencies, yarn_mscale};
use crate::spec::RopeSpec;

/// Above any stretch in use; the longest reach is 40 times the trained one.
const MAX_STRETCH: f32 = 65536.0;

/// A rope table and the longest sequence it serves.
#[derive(Debug)]
pub struct Rope {
    pub spec: RopeSpec,
    pub reach: usize,
}

/// A default rope of its own base.
pub fn plain(theta: f32, dim: usize, layout: RopeLayout) -> RopeSpec {
    table(theta, dim, layout, &Scaling::Default)
}

fn table(theta: f32, dim: usize, layout: RopeLayout, scaling: &Scaling) -> RopeSpec {
    RopeSpec {
        kind: scaling.kind(),
        layout,
        axes: Vec::new(),
        inv_freq: frequencies(theta, dim, scaling),
        attention_factor: scaling.attention_factor(),
        theta,
        scaling: scaling.clone(),
    }
}

/// The stretch of positions, 1 for none.
pub fn stretch(m: &Meta) -> Result<f32, ModelError> {
    // Files older than the scaling keys.
    let key = if m.get(".rope.scaling.factor").is_some() { ".rope.scaling.factor" } else { ".rope.scale_linear" };
    match m.float_opt(key)? {
        None | Some(0.0) => Ok(1.0),
        Some(factor) if (0.0..=MAX_STRETCH).contains(&factor) => Ok(factor),
        Some(factor) => Err(m.bad(key, factor, format!("a number up to {MAX_STRETCH}, 0 for none"))),
    }
}

/// The rope of the file, over `dim` elements of heads of `head_dim`.
pub fn read(m: &Meta, layout: RopeLayout, dim: usize, head_dim: usize) -> Result<Rope, ModelError> {
    resolve(m, layout, (dim, head_dim), true)
}

/// The same where yarn's ramp does not end at whole pairs; the format has no key for it.
pub fn untruncated(m: &Meta, layout: RopeLayout, dim: usize) -> Result<Rope, ModelError> {
    resolve(m, layout, (dim, dim), false)
}

fn resolve(m: &Meta, layout: RopeLayout, (dim, head_dim): (usize, usize), truncate: bool) -> Result<Rope, ModelError> {
    if dim > head_dim || !dim.is_multiple_of(2) {
        let expected = format!("an even number of at most {head_dim}, the elements of a head");
        return Err(m.bad(".rope.dimension_count", dim, expected));
    }
    let theta = m.positive_or(".rope.freq_base", 10_000.0)?;
    let context = m.size(".context_length")?;
    let trained = m.size_or(".rope.scaling.original_context_length", context)?;
    let factor = stretch(m)?;
    let given = m.positive_or(".rope.scaling.attn_factor", 1.0)?;
    let kind = m.text(".rope.scaling.type")?.unwrap_or("linear");
    let divided = |factors: Vec<f32>| factors.into_iter().map(|x| x * factor).collect();
    let mut reach = context;
    let scaling = match kind {
        // Factors by length come with or without the word.
        "none" | "linear" | "longrope" if m.has("rope_factors_long.weight") => {
            let long = m.max_model_len.unwrap_or(context) > trained;
            let name = if long { "rope_factors_long.weight" } else { "rope_factors_short.weight" };
            let factors = m.factors(name, dim / 2)?;
            let factors = factors.ok_or_else(|| ModelError::tensor(m.file, name, "is missing"))?;
            Scaling::Factors(factors, given)
        }
        "none" | "linear" => match m.factors("rope_freqs.weight", dim / 2)? {
            Some(factors) => Scaling::Factors(divided(factors), given),
            #[allow(clippy::float_cmp)] // exactly 1 is how a file says that there is no factor
            None if factor == 1.0 || kind == "none" => Scaling::Default,
            None => Scaling::Linear(factor),
        },
        "yarn" => {
            reach = context.max((trained as f32 * factor) as usize);
            Scaling::Yarn {
                factor,
                original: trained as f32,
                beta_fast: m.positive_or(".rope.scaling.yarn_beta_fast", 32.0)?,
                beta_slow: m.positive_or(".rope.scaling.yarn_beta_slow", 1.0)?,
                truncate,
                attention_factor: given * yarn_mscale(factor, 1.0),
            }
        }
        "longrope" => return Err(ModelError::tensor(m.file, "rope_factors_long.weight", "is missing")),
        other => return Err(m.unsupported(".rope.scaling.type", other, "none, linear, yarn and longrope are")),
    };
    Ok(Rope { spec: table(theta, dim, layout, &scaling), reach })
}
