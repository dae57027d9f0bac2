//! OLMo 3: OLMo 2 with three windowed layers to a global one; only global layers follow the rope's scaling.

use super::base::{Description, FULL, SLIDING};
use super::{config::Config, olmo2, rope};
use crate::ModelError;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = olmo2::describe(c)?;
    d.windows(c, |i| if (i + 1).is_multiple_of(4) { FULL } else { SLIDING })?;
    let head_dim = 2 * d.spec.ropes[0].inv_freq.len();
    let local = match c.table("rope_parameters")? {
        Some(table) if table.get(SLIDING).is_some() => rope::read(c, Some(SLIDING), head_dim)?.spec,
        Some(table) if table.get("rope_theta").is_some() => {
            rope::plain(table.positive_or("rope_theta", 0.0)?, head_dim)
        }
        _ => rope::plain(c.positive_or("rope_theta", 500_000.0)?, head_dim),
    };
    d.sliding_rope(local);
    Ok(d)
}
