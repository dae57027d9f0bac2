//! Mixtral: Mistral with routed experts.

use super::base::{Description, layer_source, softmax_moe};
use super::{config::Config, mistral};
use crate::ModelError;
use crate::names::Slot;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = mistral::describe(c)?;
    let moe = softmax_moe(c, c.size("intermediate_size")?, c.activation("hidden_act")?)?;
    d.experts(&moe, |_| true);
    d.names.set(Slot::Router, layer_source("block_sparse_moe.gate"));
    d.names.set(Slot::ExpertGate, layer_source("block_sparse_moe.experts.{e}.w1"));
    d.names.set(Slot::ExpertDown, layer_source("block_sparse_moe.experts.{e}.w2"));
    d.names.set(Slot::ExpertUp, layer_source("block_sparse_moe.experts.{e}.w3"));
    Ok(d)
}
