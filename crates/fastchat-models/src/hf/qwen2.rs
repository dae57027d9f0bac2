//! Qwen2: biased q, k, v; windows on the upper layers where the config turns them on.

use super::base::{Description, FULL, SLIDING, standard};
use super::config::Config;
use crate::ModelError;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = standard(c)?;
    d.attention_bias(true, false);
    upper_windows(c, &mut d)?;
    Ok(d)
}

/// `use_sliding_window` from layer `max_window_layers` on, unless `layer_types` says otherwise.
pub fn upper_windows(c: &Config, d: &mut Description) -> Result<(), ModelError> {
    if !c.flag_or("use_sliding_window", false)? {
        return Ok(());
    }
    let first = c.count_or("max_window_layers", 0)?;
    d.windows(c, |i| if i >= first { SLIDING } else { FULL })
}
