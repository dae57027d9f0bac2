//! Rope fields of a config.json, old (`rope_theta`, `rope_scaling`) and new (`rope_parameters`, also one table per layer
//! type), to resolved tables.

use fastchat_kernels::RopeLayout;

use super::config::Config;
use crate::ModelError;
use crate::rope::{Scaling, frequencies, yarn_mscale};
use crate::spec::RopeSpec;

/// Above any head in use; a table of frequencies has half as many numbers.
const MAX_HEAD_DIM: usize = 1 << 14;

/// The rope tables of a config and what else follows from their fields.
#[derive(Debug)]
pub struct Rope {
    /// The table.
    pub spec: RopeSpec,
    /// Factor on the attention scale that yarn's `mscale_all_dim` asks for where a family honours it.
    pub scale: f32,
    /// Longest sequence the table serves when it stretches past `max_position_embeddings`.
    pub reach: usize,
}

/// The rope of layers of type `kind` (`None` where a config has one rope for all) with heads of `head_dim`.
pub fn read(c: &Config, kind: Option<&str>, head_dim: usize) -> Result<Rope, ModelError> {
    let whole = match c.table("rope_parameters")? {
        Some(table) => Some(table),
        None => c.table("rope_scaling")?,
    };
    // One table per layer type, or one for all.
    let table = match (&whole, kind) {
        (Some(whole), Some(kind)) if whole.get(kind).is_some() => whole.table(kind)?,
        _ => whole.clone(),
    };
    let table = table.unwrap_or_else(|| c.empty());
    let theta = match table.float_opt("rope_theta")? {
        Some(_) => table.positive_or("rope_theta", 0.0)?,
        None => c.positive_or("rope_theta", 10_000.0)?,
    };
    let fraction = match table.float_opt("partial_rotary_factor")? {
        Some(fraction) => fraction,
        None => c.float_or("partial_rotary_factor", 1.0)?,
    };
    let dim = (head_dim as f32 * fraction) as usize;
    if head_dim > MAX_HEAD_DIM {
        return Err(c.bad("head_dim", head_dim, format!("at most {MAX_HEAD_DIM} where heads are rotated")));
    }
    if dim == 0 || dim > head_dim || !dim.is_multiple_of(2) {
        return Err(table.bad("partial_rotary_factor", fraction, format!("an even part of head_dim {head_dim}")));
    }
    resolve(c, &table, theta, dim)
}

/// A default rope of its own base, for layers that do not follow the config's scaling.
pub fn plain(theta: f32, dim: usize) -> RopeSpec {
    spec(theta, dim, &Scaling::Default)
}

fn spec(theta: f32, dim: usize, scaling: &Scaling) -> RopeSpec {
    RopeSpec {
        kind: scaling.kind(),
        layout: RopeLayout::HalfSplit,
        inv_freq: frequencies(theta, dim, scaling),
        axes: Vec::new(),
        attention_factor: scaling.attention_factor(),
        theta,
        scaling: scaling.clone(),
    }
}

fn resolve(c: &Config, t: &Config, theta: f32, dim: usize) -> Result<Rope, ModelError> {
    let max = c.size("max_position_embeddings")?;
    let trained = match t.size_opt("original_max_position_embeddings")? {
        Some(trained) => Some(trained),
        None => c.size_opt("original_max_position_embeddings")?,
    };
    let field = if t.get("rope_type").is_some() { "rope_type" } else { "type" };
    let (mut scale, mut reach) = (1.0, max);
    let scaling = match t.text(field)?.unwrap_or("default") {
        // With text only, the three sections of mrope see equal positions: the default.
        "default" | "mrope" => Scaling::Default,
        "linear" => Scaling::Linear(factor(t)?),
        "dynamic" => {
            let factor = factor(t)?;
            reach = (max as f32 * factor) as usize;
            Scaling::Dynamic(factor, max as f32, c.max_model_len.unwrap_or(reach) as f32)
        }
        "llama3" => Scaling::Llama3 {
            factor: factor(t)?,
            low: t.positive_or("low_freq_factor", 1.0)?,
            high: t.positive_or("high_freq_factor", 4.0)?,
            original: trained.unwrap_or(8192) as f32,
        },
        "yarn" => {
            let trained = trained.unwrap_or(max);
            let stretch = if t.get("factor").is_some() { factor(t)? } else { max as f32 / trained as f32 };
            reach = max.max((trained as f32 * stretch) as usize);
            scale = yarn_scale(t, stretch)?;
            yarn(t, stretch, trained)?
        }
        "longrope" | "su" => {
            let trained = trained.unwrap_or(max);
            longrope(c, t, (dim, max, trained))?
        }
        other => return Err(t.unsupported(field, other, "default, linear, dynamic, llama3, yarn and longrope are")),
    };
    if let Scaling::Llama3 { low, high, .. } = scaling
        && low >= high
    {
        return Err(t.bad("high_freq_factor", high, format!("above low_freq_factor {low}")));
    }
    let spec = RopeSpec { axes: axes(t, dim / 2)?, ..spec(theta, dim, &scaling) };
    Ok(Rope { spec, scale, reach })
}

/// Axis of each pair by `mrope_section`.
fn axes(t: &Config, pairs: usize) -> Result<Vec<u8>, ModelError> {
    match t.counts("mrope_section")?[..] {
        [] => Ok(Vec::new()),
        [time, lines, columns] if time + lines + columns == pairs => {
            Ok(crate::rope::axes([time, lines, columns], t.flag_or("mrope_interleaved", false)?))
        }
        ref sections => {
            let expected = format!("three counts of {pairs} pairs in all");
            Err(t.bad("mrope_section", format!("{sections:?}"), expected))
        }
    }
}

fn factor(t: &Config) -> Result<f32, ModelError> {
    t.float("factor")?;
    t.positive_or("factor", 1.0)
}

fn yarn(t: &Config, factor: f32, trained: usize) -> Result<Scaling, ModelError> {
    let attention_factor =
        match (t.float_opt("attention_factor")?, t.float_opt("mscale")?, t.float_opt("mscale_all_dim")?) {
            (Some(given), ..) => given,
            (None, Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => {
                yarn_mscale(factor, mscale) / yarn_mscale(factor, all)
            }
            _ => yarn_mscale(factor, 1.0),
        };
    Ok(Scaling::Yarn {
        factor,
        original: trained as f32,
        beta_fast: t.positive_or("beta_fast", 32.0)?,
        beta_slow: t.positive_or("beta_slow", 1.0)?,
        truncate: t.flag_or("truncate", true)?,
        attention_factor,
    })
}

/// The square of yarn's factor by `mscale_all_dim`, for latent attention's scale.
fn yarn_scale(t: &Config, factor: f32) -> Result<f32, ModelError> {
    let mscale = t.float_or("mscale_all_dim", 0.0)?;
    Ok(if mscale == 0.0 { 1.0 } else { yarn_mscale(factor, mscale).powi(2) })
}

fn longrope(c: &Config, t: &Config, (dim, max, trained): (usize, usize, usize)) -> Result<Scaling, ModelError> {
    let factors = |field| match t.floats(field)? {
        factors if factors.len() == dim / 2 => Ok(factors),
        factors => Err(t.bad(field, format!("{} numbers", factors.len()), format!("{} numbers", dim / 2))),
    };
    let stretch = t.float_or("factor", max as f32 / trained as f32)?;
    let by_length = || if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / (trained as f32).ln()).sqrt() };
    Ok(Scaling::LongRope {
        short: factors("short_factor")?,
        long: factors("long_factor")?,
        is_long: c.max_model_len.unwrap_or(max) > trained,
        original: trained as f32,
        attention_factor: t.float_opt("attention_factor")?.unwrap_or_else(by_length),
    })
}
