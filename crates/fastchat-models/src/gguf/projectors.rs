//! Which tower a file's kind of projector belongs to: what its keys do not say, and where its tensors differ.

use serde_json::json;

use super::tower::{Said, Tower, names};
use crate::ModelError;
use crate::names::{Names, Slot, Source, Step};

type Projector = fn(&Tower) -> Result<Said, ModelError>;

/// `clip.projector_type` to mapping.
const PROJECTORS: &[(&str, Projector)] = &[
    ("gemma3", gemma3),
    ("idefics3", idefics3),
    ("mlp", llava),
    ("pixtral", pixtral),
    ("qwen2.5vl_merger", qwen2_5_vl),
    ("qwen3vl_merger", qwen3_vl),
];

/// The tower of a file.
pub fn describe(t: &Tower) -> Result<Said, ModelError> {
    // Files for several senses have a kind for each; the oldest have a flag.
    let key = if t.m.get(".projector_type").is_some() { ".projector_type" } else { ".vision.projector_type" };
    let old = if t.m.flag_or(".has_llava_projector", false)? { Some("mlp") } else { None };
    let name = t.m.text(key)?.or(old);
    let name = name.ok_or_else(|| t.m.bad(".projector_type", "nothing", "the name of a projector"))?;
    let Some((_, projector)) = PROJECTORS.iter().find(|(known, _)| *known == name) else {
        let known: Vec<_> = PROJECTORS.iter().map(|(known, _)| *known).collect();
        return Err(t.m.unsupported(key, name, format!("{} are", known.join(", "))));
    };
    let mut said = projector(t)?;
    // The oldest files call the matrices of the MLP the other way round.
    let hidden = t.m.size(".vision.embedding_length")?;
    let down = t.m.tensor("v.blk.0.ffn_down.weight").map(|stored| &stored.shape[..]);
    if let Some([inter, cols]) = down
        && (*inter != hidden && *cols == hidden)
    {
        said.names.set(Slot::Up, Source::stem("v.blk.{l}.ffn_down"));
        said.names.set(Slot::Down, Source::stem("v.blk.{l}.ffn_up"));
    }
    Ok(said)
}

fn two_matrices(first: &str, second: &str) -> Names {
    let mut names = names();
    names.set(Slot::ProjFirst, Source::stem(first));
    names.set(Slot::ProjSecond, Source::stem(second));
    names
}

fn gemma3(t: &Tower) -> Result<Said, ModelError> {
    let side = t.m.size(".vision.image_size")? / t.m.size(".vision.patch_size")?;
    let rows = (side / t.m.size_or(".vision.projector.scale_factor", 4)?).pow(2);
    let mut names = names();
    names.set(Slot::ProjNorm, Source::stem("mm.soft_emb_norm"));
    names.set(Slot::ProjFirst, Source::stem("mm.input_projection").then(Step::Transpose));
    Ok(Said {
        model_type: "gemma3",
        whole: json!({
            "mm_tokens_per_image": rows,
            "sliding_window": t.window(),
            "boi_token_index": t.token("<start_of_image>")?,
            "eoi_token_index": t.token("<end_of_image>")?,
            "image_token_index": t.token_or_spare("<image_soft_token>")?,
        }),
        vision: json!({"hidden_act": t.act("gelu_pytorch_tanh")?}),
        processor: json!({}),
        names,
    })
}

fn idefics3(t: &Tower) -> Result<Said, ModelError> {
    let tile = t.m.size(".vision.image_size")?;
    let longest = t.m.size_or(".vision.preproc_image_size", 4 * tile)?;
    let mut names = names();
    names.set(Slot::ProjFirst, Source::stem("mm.model.fc"));
    Ok(Said {
        model_type: "idefics3",
        whole: json!({
            "scale_factor": t.m.size_or(".vision.projector.scale_factor", 2)?,
            "image_token_id": t.token("<image>")?,
        }),
        vision: json!({"hidden_act": t.act("gelu_pytorch_tanh")?}),
        processor: json!({"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": tile}}),
        names,
    })
}

fn llava(t: &Tower) -> Result<Said, ModelError> {
    const LAYERS: &str = ".vision.feature_layer";
    if t.m.get(".vision.image_grid_pinpoints").is_some() {
        return Err(t.m.unsupported(".vision.image_grid_pinpoints", "a list", "pictures of one size are"));
    }
    // What the tower was cut down to is all that is stored.
    let all = t.m.size(".vision.block_count")?;
    let layer = match t.m.wholes(LAYERS, 64)?[..] {
        [] => all,
        [layer] => usize::try_from(layer).unwrap_or(usize::MAX),
        ref several => return Err(t.m.unsupported(LAYERS, format!("{several:?}"), "one layer is")),
    };
    let size = t.m.size(".vision.image_size")?;
    let mut names = two_matrices("mm.0", "mm.2");
    names.ignored.push("v.post_ln.".to_owned());
    names.ignored.extend((layer..all.min(1 << 16)).map(|layer| format!("v.blk.{layer}.")));
    Ok(Said {
        model_type: "llava",
        whole: json!({
            "vision_feature_layer": layer,
            "image_token_index": t.token_or_spare("<image>")?,
            "multimodal_projector_bias": t.m.has("mm.0.bias"),
        }),
        vision: json!({"model_type": "clip_vision_model", "hidden_act": t.act("gelu")?}),
        processor: json!({"size": {"shortest_edge": size}, "crop_size": size}),
        names,
    })
}

fn pixtral(t: &Tower) -> Result<Said, ModelError> {
    let merge = t.m.size_or(".vision.spatial_merge_size", 1)?;
    if merge != 1 {
        return Err(t.m.unsupported(".vision.spatial_merge_size", merge, "1 is"));
    }
    let heads = t.m.size(".vision.attention.head_count")?;
    let head_dim = t.m.size(".vision.embedding_length")? / heads;
    if head_dim == 0 || head_dim % 4 != 0 {
        return Err(t.m.bad(".vision.attention.head_count", heads, "heads of a multiple of 4 elements"));
    }
    let mut names = two_matrices("mm.1", "mm.2");
    // The row of the text model that ends a line.
    names.ignored.push("v.token_embd.img_break".to_owned());
    names.push_all(&[Slot::Q, Slot::K], &Step::Unpair { head_dim, rotary_dim: head_dim });
    Ok(Said {
        model_type: "llava",
        whole: json!({
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "image_token_index": t.token("[IMG]")?,
            "multimodal_projector_bias": t.m.has("mm.1.bias"),
        }),
        vision: json!({
            "model_type": "pixtral",
            "hidden_act": t.act("gelu")?,
            "rope_theta": t.m.positive_or(".rope.freq_base", 10_000.0)?,
        }),
        processor: json!({}),
        names,
    })
}

fn qwen2_5_vl(t: &Tower) -> Result<Said, ModelError> {
    let (layers, period) = (t.m.size(".vision.block_count")?, t.m.count_or(".vision.n_wa_pattern", 0)?);
    // Every period ends with a layer that sees all; without one all do.
    let whole: Vec<usize> = (0..layers.min(1 << 16)).filter(|i| (i + 1).is_multiple_of(period.max(1))).collect();
    let mut names = two_matrices("mm.0", "mm.2");
    names.set(Slot::ProjNorm, Source::stem("v.post_ln"));
    let vision = json!({
        "hidden_act": t.act("gelu")?,
        "fullatt_block_indexes": whole,
        "window_size": t.m.size_or(".vision.window_size", 112)?,
    });
    merging(t, "qwen2_5_vl", vision, names)
}

fn qwen3_vl(t: &Tower) -> Result<Said, ModelError> {
    let layers = t.m.size(".vision.block_count")?.min(1 << 16);
    let deep: Vec<usize> = (0..layers).filter(|layer| t.m.has(&format!("v.deepstack.{layer}.norm.weight"))).collect();
    let places = t.m.tensor("v.position_embd.weight").and_then(|stored| stored.shape.first().copied());
    let hidden = t.m.size(".vision.embedding_length")?;
    let mut names = two_matrices("mm.0", "mm.2");
    names.set(Slot::ProjNorm, Source::stem("v.post_ln"));
    names.fuse("v.blk.{l}.attn_qkv", &[(Slot::Q, hidden), (Slot::K, hidden), (Slot::V, hidden)]);
    for (slot, stem) in [(Slot::DeepNorm, "norm"), (Slot::DeepFirst, "fc1"), (Slot::DeepSecond, "fc2")] {
        names.set(slot, Source::stem(&format!("v.deepstack.{{e}}.{stem}")));
    }
    let vision = json!({
        "hidden_act": t.act("gelu_pytorch_tanh")?,
        "deepstack_visual_indexes": deep,
        "num_position_embeddings": places,
    });
    merging(t, "qwen3_vl", vision, names)
}

/// Squares of patches become rows; what the file does not bound are 8 to 4096 rows, as llama.cpp has it.
fn merging(
    t: &Tower,
    model_type: &'static str,
    mut vision: serde_json::Value,
    names: Names,
) -> Result<Said, ModelError> {
    let merge = t.m.size_or(".vision.spatial_merge_size", 2)?;
    let row = (t.m.size(".vision.patch_size")? * merge).pow(2);
    vision["spatial_merge_size"] = merge.into();
    Ok(Said {
        model_type,
        whole: json!({"image_token_id": t.token("<|image_pad|>")?}),
        vision,
        processor: json!({
            "min_pixels": t.m.size_or(".vision.image_min_pixels", 8 * row)?,
            "max_pixels": t.m.size_or(".vision.image_max_pixels", 4096 * row)?,
        }),
        names,
    })
}
