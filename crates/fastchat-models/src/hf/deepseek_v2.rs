//! DeepSeek-V2: latent attention, softmax routing among all experts or those of the best groups, shared experts, dense
//! first layers.

use super::base::{Description, softmax_moe};
use super::{config::Config, deepseek_v3};
use crate::ModelError;
use crate::spec::{Moe, Shared};

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    c.only("norm_topk_prob", &false.into())?;
    let inter = c.size("moe_intermediate_size")?;
    let moe = softmax_moe(c, inter, c.activation("hidden_act")?)?;
    let groups = match c.text("topk_method")?.unwrap_or("greedy") {
        "greedy" => None,
        "group_limited_greedy" => {
            let (groups, kept) = (c.size("n_group")?, c.size("topk_group")?);
            if !moe.experts.is_multiple_of(groups) || kept > groups || moe.top_k > moe.experts / groups * kept {
                let expected = format!("a divisor of {} experts with topk_group {kept} at most", moe.experts);
                return Err(c.bad("n_group", groups, expected));
            }
            Some((groups, kept)).filter(|_| groups > 1)
        }
        other => return Err(c.unsupported("topk_method", other, "greedy and group_limited_greedy are")),
    };
    let shared = c.count_or("n_shared_experts", 0)? * inter;
    deepseek_v3::latent(
        c,
        &Moe {
            renormalize: false,
            scaling: c.positive_or("routed_scaling_factor", 1.0)?,
            groups,
            shared: if shared == 0 { Shared::Absent } else { Shared::Always(shared) },
            ..moe
        },
    )
}
