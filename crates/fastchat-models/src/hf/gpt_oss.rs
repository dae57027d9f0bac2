//! gpt-oss: sinks, every other layer windowed, biased experts with a clamped activation, stored as stacks.

use fastchat_kernels::{Activation, RouterScore};

use super::base::{Description, FULL, SLIDING, layer_source, softmax_moe, standard};
use super::config::Config;
use super::quantized::{self, Method};
use crate::ModelError;
use crate::names::{Slot, Source, Step};
use crate::spec::{Bias, Dense, Sinks};

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = standard(c)?;
    let bias = c.flag_or("attention_bias", true)?;
    d.attention_bias(bias, bias);
    d.attention(|_, a| a.sinks = Sinks::PerHead);
    d.windows(c, |i| if i % 2 == 0 { SLIDING } else { FULL })?;
    let act = Activation::SwigluOai {
        alpha: c.positive_or("swiglu_alpha", 1.702)?,
        limit: c.positive_or("swiglu_limit", 7.0)?,
    };
    let mut moe = softmax_moe(c, c.size("intermediate_size")?, act)?;
    moe.expert = Dense { bias: Bias::Present, ..moe.expert };
    moe.score = RouterScore::SoftmaxTopK;
    d.experts(&moe, |_| true);
    d.names.set(Slot::Sinks, Source::exact("layers.{l}.self_attn.sinks", ""));
    d.names.set(Slot::Router, layer_source("mlp.router"));
    // Stacks of `x W` matrices, or where the elements are MXFP4 of `W`; gate and up alternate.
    let coded = quantized::method(c)? == Some(Method::Mxfp4);
    let stack = |name: &str| {
        let stem = format!("layers.{{l}}.mlp.experts.{name}");
        let source = Source::exact(&stem, &format!("{stem}_bias")).then(Step::Pick);
        if coded { source } else { source.then(Step::Transpose) }
    };
    let every_other = |first: usize| Step::part_of(2, first..first + 1);
    d.names.set(Slot::ExpertGate, stack("gate_up_proj").then(every_other(0)));
    d.names.set(Slot::ExpertUp, stack("gate_up_proj").then(every_other(1)));
    d.names.set(Slot::ExpertDown, stack("down_proj"));
    Ok(d)
}
