//! Idefics 3 and SmolVLM: SigLIP over tiles and the whole, squares of patches joined to one row.

use serde_json::json;

use super::vision_base::{self as base, Parts, Tower};
use crate::ModelError;
use crate::names::{Slot, Source};
use crate::spec::Bias;
use crate::vision::placement::{Framing, Placement, Sight, Turns};
use crate::vision::processor::SizeRule;
use crate::vision::resample::Filter;
use crate::vision::spec::{Join, PatchPositions, PatchSpec, Projection, ProjectorSpec, VisionDescription, VisionSpec};

pub fn describe_vision(parts: &Parts) -> Result<VisionDescription, ModelError> {
    let v = &parts.vision.with_defaults(json!({
        "hidden_act": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 16, "patch_size": 32, "image_size": 224,
    }));
    let (c, p) = (parts.whole, &parts.processor);
    let hidden = v.size("hidden_size")?;
    let norm = base::layer_norm(v.positive_or("layer_norm_eps", 1e-6)?);
    let tower = Tower {
        hidden,
        layers: v.layers()?,
        heads: v.size("num_attention_heads")?,
        attention_bias: true,
        norm,
        mlp: base::plain_mlp(v, v.size("intermediate_size")?)?,
        rope: None,
    };
    let (size, image, group) = (v.size("patch_size")?, v.size("image_size")?, c.size_or("scale_factor", 2)?);
    let lines = image / size;
    if !lines.is_multiple_of(group) || lines == 0 {
        return Err(c.bad("scale_factor", group, format!("a divisor of {lines}, the patches of a side")));
    }
    let rule = SizeRule::TilesAndWhole {
        longest: base::size(p, "size", 4 * image)?.0,
        tile: base::size(p, "max_image_size", image)?.0,
        split: p.flag_or("do_image_splitting", true)?,
    };
    let mut names = base::clip_names(
        vec![
            ("model.vision_model.", "model.connector.modality_projection."),
            ("vision_model.", "connector.modality_projection."),
        ],
        &[],
    );
    names.set(Slot::ProjFirst, Source::stem("proj"));
    let token = c.size_or("image_token_id", 128_257)? as u32;
    let spec = VisionSpec {
        processor: base::processor(p, rule, Filter::Lanczos, base::HALVES)?,
        patch: PatchSpec { size, frames: 1, group, bias: Bias::Present, window: None },
        hidden_size: hidden,
        class_token: Bias::Absent,
        positions: PatchPositions::Learned { lines: bucketed(lines) },
        tiles: None,
        pre_norm: None,
        ropes: Vec::new(),
        layers: tower.layers(v)?,
        post_norm: Some(norm),
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
            framing: Framing::NamedTiles {
                fence: "<fake_token_around_image>".to_owned(),
                whole: "<global-img>".to_owned(),
            },
            turns: Turns::Sequential,
            sight: Sight::Causal,
        },
    };
    Ok(VisionDescription { spec, names })
}

/// Line of the table for each line of a full tile. The reference sorts fractions into buckets in f32, which for some
/// sides puts a line into its neighbour's bucket; the weights were trained that way.
fn bucketed(lines: usize) -> Vec<usize> {
    let step = 1.0 / lines as f64;
    let borders = (0..).map(|i| (step + f64::from(i) * step, i)).take_while(|(border, _)| *border < 1.0);
    let borders: Vec<f32> = borders.map(|(border, _)| border as f32).collect();
    let at = |line: usize| (line as f32 * (1.0 / lines as f32)).min(1.0 - 1e-6);
    let bucket = |line| borders.iter().filter(|border| **border <= at(line)).count().min(lines - 1);
    (0..lines).map(bucket).collect()
}
