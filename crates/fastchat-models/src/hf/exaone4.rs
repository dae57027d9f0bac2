//! EXAONE 4: norms after each half, q and k normed per head; with windows, global layers have no positions.

use fastchat_kernels::NormScope;

use super::base::{Description, FULL, SLIDING, standard};
use super::{config::Config, olmo2};
use crate::ModelError;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = standard(c)?;
    d.qk_norm(NormScope::PerHead);
    olmo2::after_only(&mut d);
    if c.size_opt("sliding_window")?.is_some() {
        let period = match c.get("sliding_window_pattern").and_then(serde_json::Value::as_str) {
            // `LLLG`, always with the global layer last.
            Some(pattern) => pattern.len().max(1),
            None => c.size_or("sliding_window_pattern", 4)?,
        };
        d.windows(c, |i| if (i + 1).is_multiple_of(period) { FULL } else { SLIDING })?;
        d.attention(|_, a| a.rope = a.window.map(|_| 0));
    }
    Ok(d)
}
