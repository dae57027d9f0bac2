//! Qwen2.5-VL's tower: patches of two equal frames, ropes by lines and columns, most layers within windows.

use serde_json::json;

use super::config::Config;
use super::vision_base::{self as base, Parts, Tower};
use crate::ModelError;
use crate::names::{Names, Slot, Source, Step};
use crate::spec::{Bias, Dense, Mlp, Norm};
use crate::vision::placement::{Framing, Placement, Sight, Turns};
use crate::vision::processor::SizeRule;
use crate::vision::resample::Filter;
use crate::vision::spec::{
    Join, PatchPositions, PatchSpec, Projection, ProjectorSpec, View, VisionDescription, VisionSpec,
};

pub fn describe_vision(parts: &Parts) -> Result<VisionDescription, ModelError> {
    let v = &parts.vision.with_defaults(json!({"hidden_act": "silu"}));
    let norm = Norm::Rms { eps: 1e-6 };
    let dense = Dense { inter: v.size("intermediate_size")?, act: v.activation("hidden_act")?, bias: Bias::Present };
    let mut d = common(parts, v, norm, Mlp::Gated(dense))?;
    let spec = &mut d.spec;
    let side = spec.patch.size * spec.patch.group;
    let window = v.size_or("window_size", 112)?;
    if window < side {
        return Err(v.bad("window_size", window, format!("at least {side}, one row of the decoder")));
    }
    spec.patch.window = Some(window / side);
    let whole = v.counts("fullatt_block_indexes")?;
    spec.layers.iter_mut().enumerate().filter(|(i, _)| !whole.contains(i)).for_each(|(_, l)| l.view = View::Window);
    let hidden = spec.hidden_size;
    let joined = hidden * spec.patch.group * spec.patch.group;
    spec.projector = ProjectorSpec {
        norm: Some(norm),
        join: Join::Concat,
        joined_norm: None,
        layers: Projection::Mlp(Dense { inter: joined, act: fastchat_kernels::Activation::Gelu, bias: Bias::Present }),
        out: parts.out,
    };
    let names = &mut d.names;
    names.set(Slot::ProjNorm, Source::stem("ln_q"));
    names.set(Slot::ProjFirst, Source::stem("mlp.0"));
    names.set(Slot::ProjSecond, Source::stem("mlp.2"));
    for (slot, stem) in [(Slot::Gate, "gate_proj"), (Slot::Up, "up_proj"), (Slot::Down, "down_proj")] {
        names.set(slot, Source::stem(&format!("blocks.{{l}}.mlp.{stem}")));
    }
    Ok(d)
}

/// What this family and the next share.
pub fn common(parts: &Parts, v: &Config, norm: Norm, mlp: Mlp) -> Result<VisionDescription, ModelError> {
    let (p, c) = (&parts.processor, parts.whole);
    let hidden = v.size("hidden_size")?;
    let tower = Tower {
        hidden,
        layers: v.size("depth")?,
        heads: v.size("num_heads")?,
        attention_bias: true,
        norm,
        mlp,
        rope: Some(0),
    };
    let head_dim = hidden / tower.heads.min(hidden);
    if !head_dim.is_multiple_of(4) {
        return Err(v.bad("num_heads", tower.heads, "heads of a multiple of 4 elements"));
    }
    let patch = PatchSpec {
        size: v.size("patch_size")?,
        frames: v.size_or("temporal_patch_size", 2)?,
        group: v.size_or("spatial_merge_size", 2)?,
        bias: Bias::Absent,
        window: None,
    };
    let factor = patch.size * patch.group;
    let area = |field: &str, edge: &str, default: usize| -> Result<usize, ModelError> {
        let size = p.table("size")?;
        let by_size = size.as_ref().map(|size| size.size_opt(edge)).transpose()?.flatten();
        Ok(p.size_opt(field)?.or(by_size).unwrap_or(default))
    };
    let rule = SizeRule::Multiples {
        factor,
        least: area("min_pixels", "shortest_edge", 4 * factor * factor)?,
        most: area("max_pixels", "longest_edge", 1280 * factor * factor)?,
    };
    let token = c.size_or("image_token_id", 151_655)? as u32;
    let mut names = Names {
        roots: vec![("visual.", "visual.merger."), ("model.visual.", "model.visual.merger.")],
        ..Names::default()
    };
    names.set(Slot::Embed, Source::stem("patch_embed.proj").then(Step::Flatten));
    names.set(Slot::PreAttn, Source::stem("blocks.{l}.norm1"));
    names.set(Slot::PreMlp, Source::stem("blocks.{l}.norm2"));
    names.fuse("blocks.{l}.attn.qkv", &[(Slot::Q, hidden), (Slot::K, hidden), (Slot::V, hidden)]);
    names.set(Slot::O, Source::stem("blocks.{l}.attn.proj"));
    let spec = VisionSpec {
        processor: base::processor(p, rule, Filter::Bicubic, base::CLIP)?,
        patch,
        hidden_size: hidden,
        class_token: Bias::Absent,
        positions: PatchPositions::Rotary,
        tiles: None,
        pre_norm: None,
        ropes: vec![base::two_axes(10_000.0, head_dim)],
        layers: tower.layers(v)?,
        post_norm: None,
        taps: Vec::new(),
        projector: ProjectorSpec {
            norm: None,
            join: Join::Concat,
            joined_norm: None,
            layers: Projection::Linear(Bias::Absent),
            out: parts.out,
        },
        deepstack: Vec::new(),
        deepstack_projector: None,
        placement: Placement {
            marker: token,
            token,
            framing: Framing::plain(),
            turns: Turns::Grid,
            sight: Sight::Causal,
        },
    };
    Ok(VisionDescription { spec, names })
}
