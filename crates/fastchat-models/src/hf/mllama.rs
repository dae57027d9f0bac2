//! Llama 3.2 Vision: a decoder with layers that look at pictures, and a tower of two stacks over an arrangement of tiles.

use serde_json::json;

use super::base::{Description, layer_source, standard};
use super::config::Config;
use super::vision_base::{self as base, Parts, Tower};
use crate::ModelError;
use crate::names::{Names, Slot, Source, Step};
use crate::spec::{Bias, Cross, Mixer};
use crate::vision::placement::{Framing, Placement, Sight, Turns};
use crate::vision::processor::{SizeRule, arrangements};
use crate::vision::resample::Filter;
use crate::vision::spec::{
    Join, PatchPositions, PatchSpec, Projection, ProjectorSpec, TileSpec, VisionDescription, VisionSpec,
};

/// Rows of the embedding table past the vocabulary, the picture's marker among them.
const ADDED_ROWS: usize = 8;
/// A tile's patches are filled up to a multiple of this.
const MULTIPLE: usize = 8;

pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = standard(c)?;
    d.spec.added_rows = ADDED_ROWS;
    let eps = d.spec.final_norm.eps();
    let looking = c.counts("cross_attention_layers")?;
    d.layers(|i, layer| {
        if let Mixer::Attention(attention) = &layer.mixer
            && looking.contains(&i)
        {
            layer.mixer = Mixer::Cross(Cross {
                heads: attention.heads,
                kv_heads: attention.kv_heads,
                head_dim: attention.head_dim,
                scale: attention.scale,
                eps,
            });
        }
    });
    for (slot, stem) in [
        (Slot::CrossQ, "q_proj"),
        (Slot::CrossK, "k_proj"),
        (Slot::CrossV, "v_proj"),
        (Slot::CrossO, "o_proj"),
        (Slot::CrossQNorm, "q_norm"),
        (Slot::CrossKNorm, "k_norm"),
    ] {
        d.names.set(slot, layer_source(&format!("cross_attn.{stem}")));
    }
    d.names.set(Slot::AttnFactor, Source::exact("layers.{l}.cross_attn_attn_gate", "").then(Step::Tanh));
    d.names.set(Slot::MlpFactor, Source::exact("layers.{l}.cross_attn_mlp_gate", "").then(Step::Tanh));
    Ok(d)
}

pub fn describe_vision(parts: &Parts) -> Result<VisionDescription, ModelError> {
    let v = &parts.vision.with_defaults(json!({
        "hidden_act": "gelu", "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
        "num_global_layers": 8, "attention_heads": 16, "patch_size": 14, "image_size": 448, "max_num_tiles": 4,
        "intermediate_layers_indices": [3, 7, 15, 23, 30],
    }));
    let (c, p) = (parts.whole, &parts.processor);
    let hidden = v.size("hidden_size")?;
    let norm = base::layer_norm(v.positive_or("norm_eps", 1e-5)?);
    let (first, second) = (v.layers()?, v.size("num_global_layers")?);
    let tower = Tower {
        hidden,
        layers: first + second,
        heads: v.size("attention_heads")?,
        attention_bias: false,
        norm,
        mlp: base::plain_mlp(v, v.size("intermediate_size")?)?,
        rope: None,
    };
    let mut layers = tower.layers(v)?;
    for (i, layer) in layers[first..].iter_mut().enumerate() {
        (layer.name, layer.factors) = ((1, i), Bias::Present);
    }
    let taps = v.counts("intermediate_layers_indices")?;
    if taps.iter().any(|&tap| tap >= first) || !taps.is_sorted() {
        return Err(v.bad("intermediate_layers_indices", format!("{taps:?}"), format!("ascending, below {first}")));
    }
    let (size, image, count) = (v.size("patch_size")?, v.size("image_size")?, v.size("max_num_tiles")?);
    let tiles: Vec<(usize, usize)> = arrangements(count.min(64)).collect();
    let ratios = v.list("supported_aspect_ratios")?.map_or(tiles.len(), <[_]>::len);
    if ratios != tiles.len() {
        return Err(v.unsupported(
            "supported_aspect_ratios",
            ratios,
            format!("all {} of {count} tiles are", tiles.len()),
        ));
    }
    let most = p.size_or("max_image_tiles", count)?.min(count);
    let rule = SizeRule::Canvas { tile: base::size(p, "size", image)?.0, count: most };
    let marker = c.size_or("image_token_index", 128_256)? as u32;
    let spec = VisionSpec {
        processor: base::processor(p, rule, Filter::Bilinear, base::HALVES)?,
        patch: PatchSpec { size, frames: 1, group: 1, bias: Bias::Absent, window: None },
        hidden_size: hidden,
        class_token: Bias::Present,
        positions: PatchPositions::Learned { lines: (0..image / size).collect() },
        tiles: Some(TileSpec { count, arrangements: tiles, multiple: MULTIPLE, second_stack: first }),
        pre_norm: Some(norm),
        ropes: Vec::new(),
        layers,
        post_norm: Some(norm),
        taps,
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
            marker,
            token: marker,
            framing: Framing::Marker,
            turns: Turns::Sequential,
            sight: Sight::Causal,
        },
    };
    Ok(VisionDescription { spec, names: names() })
}

fn names() -> Names {
    let mut names = Names {
        roots: vec![
            ("vision_model.", "multi_modal_projector."),
            ("model.vision_model.", "model.multi_modal_projector."),
        ],
        stacks: vec!["transformer", "global_transformer"],
        ..Names::default()
    };
    names.set(Slot::Embed, Source::stem("patch_embedding").then(Step::Flatten));
    names.set(Slot::ClassToken, Source::exact("class_embedding", ""));
    names.set(Slot::Positions, Source::exact("gated_positional_embedding.embedding", ""));
    names.set(Slot::EmbedNorm, Source::stem("layernorm_pre"));
    names.set(Slot::FinalNorm, Source::stem("layernorm_post"));
    names.set(Slot::ProjFirst, Source::exact("weight", "bias"));
    for (table, factor, stem, name) in [
        (Slot::TilesBefore, Slot::TilesBeforeFactor, "pre_tile_positional_embedding", "embedding"),
        (Slot::TilePositions, Slot::TilePositionsFactor, "gated_positional_embedding", "tile_embedding"),
        (Slot::TilesAfter, Slot::TilesAfterFactor, "post_tile_positional_embedding", "embedding"),
    ] {
        names.set(table, Source::stem(&format!("{stem}.{name}")));
        names.set(factor, Source::exact(&format!("{stem}.gate"), "").then(Step::Tanh));
    }
    for (slot, stem) in [
        (Slot::PreAttn, "input_layernorm"),
        (Slot::PreMlp, "post_attention_layernorm"),
        (Slot::Q, "self_attn.q_proj"),
        (Slot::K, "self_attn.k_proj"),
        (Slot::V, "self_attn.v_proj"),
        (Slot::O, "self_attn.o_proj"),
        (Slot::Up, "mlp.fc1"),
        (Slot::Down, "mlp.fc2"),
    ] {
        names.set(slot, Source::stem(&format!("{{s}}.layers.{{l}}.{stem}")));
    }
    for (slot, name) in [(Slot::AttnFactor, "gate_attn"), (Slot::MlpFactor, "gate_ffn")] {
        names.set(slot, Source::exact(&format!("{{s}}.layers.{{l}}.{name}"), "").then(Step::Tanh));
    }
    names
}
