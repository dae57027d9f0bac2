//! Llama, Mistral, Mixtral and what is built like them: rotated pairs lie side by side, as exporters permute the rows of
//! q and k (ERNIE 4.5 is published that way).

use fastchat_kernels::{Activation, RopeLayout};

use super::base::{Description, moe, standard};
use super::meta::Meta;
use crate::ModelError;
use crate::description::bias;

pub fn describe(m: &Meta) -> Result<Description, ModelError> {
    let mut d = standard(m, RopeLayout::Interleaved)?;
    let mlp = bias(m.has("blk.0.ffn_gate.bias"));
    d.dense(|dense| dense.bias = mlp);
    d.sliding(m, |_| true)?;
    if m.count_or(".expert_count", 0)? > 0 {
        let moe = moe(m, Activation::Silu)?;
        d.routed(m, &moe);
    }
    Ok(d)
}
