//! Gemma 3's tower: SigLIP over pictures of one size, squares of patches averaged to a fixed number of rows.

use serde_json::json;

use super::vision_base::{self as base, Parts, Tower};
use crate::ModelError;
use crate::names::{Slot, Source, Step};
use crate::spec::{Bias, Norm};
use crate::vision::placement::{Framing, Piece, Placement, Sight, Turns};
use crate::vision::processor::SizeRule;
use crate::vision::resample::Filter;
use crate::vision::spec::{Join, PatchPositions, PatchSpec, Projection, ProjectorSpec, VisionDescription, VisionSpec};

pub fn describe_vision(parts: &Parts) -> Result<VisionDescription, ModelError> {
    let v = &parts.vision.with_defaults(json!({"hidden_act": "gelu_pytorch_tanh"}));
    let (c, p) = (parts.whole, &parts.processor);
    let (hidden, eps) = (v.size("hidden_size")?, v.positive_or("layer_norm_eps", 1e-6)?);
    let norm = base::layer_norm(eps);
    let tower = Tower {
        hidden,
        layers: v.layers()?,
        heads: v.size("num_attention_heads")?,
        attention_bias: true,
        norm,
        mlp: base::plain_mlp(v, v.size("intermediate_size")?)?,
        rope: None,
    };
    let (size, image) = (v.size("patch_size")?, v.size("image_size")?);
    let (lines, rows) = (image / size, c.size_or("mm_tokens_per_image", 256)?);
    let side = rows.isqrt();
    if side * side != rows || !lines.is_multiple_of(side) || lines == 0 {
        return Err(c.bad("mm_tokens_per_image", rows, format!("a square that divides {lines} x {lines} patches")));
    }
    if let Some(window) = c.size_opt("sliding_window")?.filter(|window| *window < rows) {
        return Err(c.unsupported("mm_tokens_per_image", rows, format!("at most sliding_window {window} rows are")));
    }
    let (height, width) = base::size(p, "size", image)?;
    if p.flag_or("do_pan_and_scan", false)? {
        return Err(p.unsupported("do_pan_and_scan", true, "false is"));
    }
    let mut names = base::clip_names(
        vec![
            ("vision_tower.", "multi_modal_projector."),
            ("vision_tower.vision_model.", "multi_modal_projector."),
            ("model.vision_tower.", "model.multi_modal_projector."),
            ("model.vision_tower.vision_model.", "model.multi_modal_projector."),
        ],
        &["vision_tower.head.", "vision_model.head."],
    );
    names.set(Slot::ProjNorm, Source::stem("mm_soft_emb_norm").then(Step::AddOne));
    names.set(Slot::ProjFirst, Source::exact("mm_input_projection_weight", "").then(Step::Transpose));
    let boi = c.size_or("boi_token_index", 255_999)? as u32;
    let newlines = || Piece::Text("\n\n".to_owned());
    let framing = Framing::Between {
        before: vec![newlines(), Piece::Token(boi)],
        after: vec![Piece::Token(c.size_or("eoi_token_index", 256_000)? as u32), newlines()],
    };
    let spec = VisionSpec {
        processor: base::processor(p, SizeRule::Exact { height, width }, Filter::Bilinear, base::HALVES)?,
        patch: PatchSpec { size, frames: 1, group: lines / side, bias: Bias::Present, window: None },
        hidden_size: hidden,
        class_token: Bias::Absent,
        positions: PatchPositions::Learned { lines: (0..lines).collect() },
        tiles: None,
        pre_norm: None,
        ropes: Vec::new(),
        layers: tower.layers(v)?,
        post_norm: Some(norm),
        taps: Vec::new(),
        projector: ProjectorSpec {
            norm: None,
            join: Join::Mean,
            joined_norm: Some(Norm::Rms { eps }),
            layers: Projection::Linear(Bias::Absent),
            out: parts.out,
        },
        deepstack: Vec::new(),
        deepstack_projector: None,
        placement: Placement {
            marker: boi,
            token: c.size_or("image_token_index", 262_144)? as u32,
            framing,
            turns: Turns::Sequential,
            sight: Sight::Whole,
        },
    };
    Ok(VisionDescription { spec, names })
}
