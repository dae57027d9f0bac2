//! Qwen3-VL's tower: learnt places stretched over the picture beside ropes, and the outputs of some layers for the
//! decoder's first ones.

use serde_json::json;

use super::qwen2_5_vl::common;
use super::vision_base::{self as base, Parts};
use crate::ModelError;
use crate::names::{Slot, Source};
use crate::spec::{Bias, Dense};
use crate::vision::spec::{Join, PatchPositions, Projection, ProjectorSpec, VisionDescription};

pub fn describe_vision(parts: &Parts) -> Result<VisionDescription, ModelError> {
    let v = &parts.vision.with_defaults(json!({"hidden_act": "gelu_pytorch_tanh"}));
    let norm = base::layer_norm(1e-6);
    let mut d = common(parts, v, norm, base::plain_mlp(v, v.size("intermediate_size")?)?)?;
    let spec = &mut d.spec;
    spec.patch.bias = Bias::Present;
    let places = v.size_or("num_position_embeddings", 2304)?;
    if places.isqrt().pow(2) != places {
        return Err(v.bad("num_position_embeddings", places, "the square of a whole number"));
    }
    spec.positions = PatchPositions::Stretched { side: places.isqrt() };
    spec.deepstack = v.counts("deepstack_visual_indexes")?;
    if let Some(layer) = spec.deepstack.iter().find(|&&layer| layer >= spec.layers.len()) {
        return Err(v.bad("deepstack_visual_indexes", layer, format!("one of {} layers", spec.layers.len())));
    }
    let inter = spec.hidden_size * spec.patch.group * spec.patch.group;
    let dense = Dense { inter, act: fastchat_kernels::Activation::Gelu, bias: Bias::Present };
    let projector = |norm, joined_norm| ProjectorSpec {
        norm,
        join: Join::Concat,
        joined_norm,
        layers: Projection::Mlp(dense),
        out: parts.out,
    };
    spec.projector = projector(Some(norm), None);
    spec.deepstack_projector = Some(projector(None, Some(norm)));
    let names = &mut d.names;
    names.set(Slot::Positions, Source::stem("pos_embed"));
    names.set(Slot::Up, Source::stem("blocks.{l}.mlp.linear_fc1"));
    names.set(Slot::Down, Source::stem("blocks.{l}.mlp.linear_fc2"));
    let both = [
        (Slot::ProjNorm, Slot::DeepNorm, "norm"),
        (Slot::ProjFirst, Slot::DeepFirst, "linear_fc1"),
        (Slot::ProjSecond, Slot::DeepSecond, "linear_fc2"),
    ];
    for (last, deep, stem) in both {
        names.set(last, Source::stem(stem));
        names.set(deep, Source::stem(&format!("deepstack_merger_list.{{l}}.{stem}")));
    }
    Ok(d)
}
