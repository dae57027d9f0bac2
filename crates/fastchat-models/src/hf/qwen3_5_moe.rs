//! Qwen3.5 with routed experts, stored as stacks of gate over up, beside a switched shared one.

use serde_json::json;

use super::base::{Description, layer_source};
use super::{config::Config, qwen2_moe, qwen3_5};
use crate::ModelError;
use crate::names::{Slot, Source, Step};

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    // No layer is dense, and so some files leave the width of those out.
    let mut d = qwen3_5::describe(&c.with_defaults(json!({"intermediate_size": c.size("moe_intermediate_size")?})))?;
    let moe = qwen2_moe::routed(c)?;
    let inter = moe.expert.inter;
    d.experts(&moe, |_| true);
    qwen2_moe::shared(c, &mut d)?;
    let stack = |name: &str| {
        let Source { weight, .. } = layer_source(&format!("mlp.experts.{name}"));
        Source::exact(weight.trim_end_matches(".weight"), "").then(Step::Pick)
    };
    let half = |rows| stack("gate_up_proj").then(Step::Range { rows, total: 2 * inter });
    d.names.set(Slot::ExpertGate, half(0..inter));
    d.names.set(Slot::ExpertUp, half(inter..2 * inter));
    d.names.set(Slot::ExpertDown, stack("down_proj"));
    Ok(d)
}
