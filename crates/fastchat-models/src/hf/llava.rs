//! LLaVA: a CLIP or Pixtral tower, an early layer's patches, two matrices.

use fastchat_kernels::{Activation, RopeLayout};
use serde_json::{Value, json};

use super::base::{Description, bias};
use super::config::Config;
use super::llama;
use super::vision_base::{self as base, Parts, Tower};
use crate::ModelError;
use crate::names::{Slot, Source, Step};
use crate::rope::{Scaling, frequencies};
use crate::spec::{Bias, Dense, Mlp, Norm, RopeSpec};
use crate::vision::placement::{Framing, Placement, Sight, Turns};
use crate::vision::processor::{ProcessorSpec, SizeRule};
use crate::vision::resample::Filter;
use crate::vision::spec::{
    Join, PatchPositions, PatchSpec, Projection, ProjectorSpec, VisionDescription, VisionLayer, VisionSpec,
};

/// Llama inside of LLaVA: the published configs leave its sizes to their class.
pub fn describe_llama(c: &Config) -> Result<Description, ModelError> {
    if c.outer.as_deref() != Some("llava") {
        return llama::describe(c);
    }
    llama::describe(&c.with_defaults(json!({
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "hidden_act": "silu", "max_position_embeddings": 2048, "vocab_size": 32_000,
    })))
}

const ROOTS: [(&str, &str); 4] = [
    ("vision_tower.", "multi_modal_projector."),
    ("vision_tower.vision_model.", "multi_modal_projector."),
    ("model.vision_tower.", "model.multi_modal_projector."),
    ("model.vision_tower.vision_model.", "model.multi_modal_projector."),
];

pub fn describe_vision(parts: &Parts) -> Result<VisionDescription, ModelError> {
    let c = parts.whole;
    let mut d = match parts.vision.text("model_type")?.unwrap_or("clip_vision_model") {
        "clip_vision_model" => clip(parts)?,
        "pixtral" => pixtral(parts)?,
        other => return Err(parts.vision.unsupported("model_type", other, "clip_vision_model and pixtral are")),
    };
    let act = match c.text("projector_hidden_act")? {
        None => Activation::Gelu,
        Some(_) => c.activation("projector_hidden_act")?,
    };
    let biased = bias(c.flag_or("multimodal_projector_bias", true)?);
    d.spec.projector.layers = Projection::Mlp(Dense { inter: parts.out, act, bias: biased });
    d.names.set(Slot::ProjFirst, Source::stem("linear_1"));
    d.names.set(Slot::ProjSecond, Source::stem("linear_2"));
    Ok(d)
}

/// Of `all` layers those that `vision_feature_layer` needs.
fn used(c: &Config, all: usize) -> Result<usize, ModelError> {
    let Some(value) = c.get("vision_feature_layer") else { return Ok(all.saturating_sub(1)) };
    // The first of the layers' states is their input.
    let states = all as i64 + 1;
    match value.as_i64() {
        Some(layer) if (-states..states).contains(&layer) => Ok(layer.rem_euclid(states) as usize),
        _ => Err(c.unsupported("vision_feature_layer", value, format!("one number from -{states} to {all} is"))),
    }
}

struct Shape {
    patch: PatchSpec,
    class_token: Bias,
    positions: PatchPositions,
    ropes: Vec<RopeSpec>,
    framing: Framing,
}

fn spec(
    parts: &Parts,
    processor: ProcessorSpec,
    hidden: usize,
    layers: Vec<VisionLayer>,
    shape: Shape,
) -> Result<VisionSpec, ModelError> {
    let token = parts.whole.size_or("image_token_index", 32_000)? as u32;
    Ok(VisionSpec {
        processor,
        patch: shape.patch,
        hidden_size: hidden,
        class_token: shape.class_token,
        positions: shape.positions,
        tiles: None,
        pre_norm: layers.first().map(|layer| layer.attn_norm),
        ropes: shape.ropes,
        layers,
        post_norm: None,
        taps: Vec::new(),
        projector: ProjectorSpec {
            norm: None,
            join: Join::Concat,
            joined_norm: None,
            layers: Projection::Linear(Bias::Present),
            out: parts.out,
        },
        deepstack: Vec::new(),
        deepstack_projector: None,
        placement: Placement {
            marker: token,
            token,
            framing: shape.framing,
            turns: Turns::Sequential,
            sight: Sight::Causal,
        },
    })
}

fn clip(parts: &Parts) -> Result<VisionDescription, ModelError> {
    let v = &parts.vision.with_defaults(json!({
        "hidden_act": "quick_gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "patch_size": 14, "image_size": 336,
    }));
    let (c, p) = (parts.whole, &parts.processor);
    c.only("vision_feature_select_strategy", &Value::from("default"))?;
    let hidden = v.size("hidden_size")?;
    let all = v.layers()?;
    let layers = used(c, all)?;
    let tower = Tower {
        hidden,
        layers,
        heads: v.size("num_attention_heads")?,
        attention_bias: true,
        norm: base::layer_norm(v.positive_or("layer_norm_eps", 1e-5)?),
        mlp: base::plain_mlp(v, v.size("intermediate_size")?)?,
        rope: None,
    };
    let (size, image) = (v.size("patch_size")?, v.size("image_size")?);
    let (height, width) = base::size(p, "crop_size", image)?;
    let rule = SizeRule::ShortestThenCrop { shortest: base::size(p, "size", image)?.0, height, width };
    p.only("do_center_crop", &true.into())?;
    let shape = Shape {
        patch: PatchSpec { size, frames: 1, group: 1, bias: Bias::Absent, window: None },
        class_token: Bias::Present,
        positions: PatchPositions::Learned { lines: (0..image / size).collect() },
        ropes: Vec::new(),
        framing: Framing::plain(),
    };
    let processor = base::processor(p, rule, Filter::Bicubic, base::CLIP)?;
    let spec = spec(parts, processor, hidden, tower.layers(v)?, shape)?;
    let mut names = base::clip_names(ROOTS.to_vec(), &["post_layernorm.", "embeddings.position_ids"]);
    names.ignored.extend((layers..all).map(|layer| format!("encoder.layers.{layer}.")));
    Ok(VisionDescription { spec, names })
}

fn pixtral(parts: &Parts) -> Result<VisionDescription, ModelError> {
    let v = &parts.vision.with_defaults(json!({
        "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "patch_size": 16, "image_size": 1024, "rope_theta": 10_000.0,
    }));
    let (c, p) = (parts.whole, &parts.processor);
    c.only("vision_feature_select_strategy", &Value::from("full"))?;
    let hidden = v.size("hidden_size")?;
    let all = v.layers()?;
    let layers = used(c, all)?;
    let heads = v.size("num_attention_heads")?;
    let dense = Dense { inter: v.size("intermediate_size")?, act: v.activation("hidden_act")?, bias: Bias::Absent };
    let tower = Tower {
        hidden,
        layers,
        heads,
        attention_bias: false,
        norm: Norm::Rms { eps: 1e-5 },
        mlp: Mlp::Gated(dense),
        rope: Some(0),
    };
    let size = v.size("patch_size")?;
    let rule = SizeRule::WithinThenPatches { longest: base::size(p, "size", v.size("image_size")?)?.0, patch: size };
    // Lines turn by every other frequency from the first on, columns by the others.
    let theta = v.positive_or("rope_theta", 10_000.0)?;
    let all_freqs = frequencies(theta, hidden / heads.min(hidden), &Scaling::Default);
    let every_other = |from: usize| all_freqs.iter().skip(from).step_by(2).copied();
    let axes = [vec![1; every_other(0).count()], vec![2; every_other(1).count()]].concat();
    let rope = RopeSpec {
        kind: "axial",
        layout: RopeLayout::HalfSplit,
        inv_freq: every_other(0).chain(every_other(1)).collect(),
        axes,
        attention_factor: 1.0,
        theta,
        scaling: Scaling::Default,
    };
    let shape = Shape {
        patch: PatchSpec { size, frames: 1, group: 1, bias: Bias::Absent, window: None },
        class_token: Bias::Absent,
        positions: PatchPositions::Rotary,
        ropes: vec![rope],
        framing: Framing::Lines { line_end: "[IMG_BREAK]".to_owned(), end: "[IMG_END]".to_owned() },
    };
    let processor = base::processor(p, rule, Filter::Bicubic, base::CLIP)?;
    let spec = spec(parts, processor, hidden, tower.layers(v)?, shape)?;
    let mut names = base::clip_names(ROOTS.to_vec(), &[]);
    names.ignored.extend((layers..all).map(|layer| format!("transformer.layers.{layer}.")));
    names.set(Slot::Embed, Source::stem("patch_conv").then(Step::Flatten));
    names.set(Slot::EmbedNorm, Source::stem("ln_pre"));
    for (slot, stem) in [
        (Slot::PreAttn, "attention_norm"),
        (Slot::PreMlp, "ffn_norm"),
        (Slot::Q, "attention.q_proj"),
        (Slot::K, "attention.k_proj"),
        (Slot::V, "attention.v_proj"),
        (Slot::O, "attention.o_proj"),
        (Slot::Gate, "feed_forward.gate_proj"),
        (Slot::Up, "feed_forward.up_proj"),
        (Slot::Down, "feed_forward.down_proj"),
    ] {
        names.set(slot, Source::stem(&format!("transformer.layers.{{l}}.{stem}")));
    }
    Ok(VisionDescription { spec, names })
}
