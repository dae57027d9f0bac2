//! What vision towers of several families share: a processor's fields, plain layers, and the names of their tensors.
//! Knows no family.

use fastchat_kernels::RopeLayout;

use super::base::bias;
use super::config::Config;
use crate::ModelError;
use crate::names::{Names, Slot, Source, Step};
use crate::rope::{Scaling, frequencies};
use crate::spec::{Attention, Bias, Dense, Mlp, Norm, OutputGate, RopeSpec, Sinks};
use crate::vision::processor::{ProcessorSpec, SizeRule};
use crate::vision::resample::Filter;
use crate::vision::spec::{View, VisionLayer};

/// The tables a tower is described by.
pub struct Parts<'a> {
    /// The whole config, the decoder's fields at the top.
    pub whole: &'a Config,
    /// `vision_config`.
    pub vision: Config,
    /// preprocessor_config.json.
    pub processor: Config,
    /// Width of the decoder's stream.
    pub out: usize,
}

/// Means and deviations of the pictures CLIP was trained on.
pub const CLIP: ([f32; 3], [f32; 3]) =
    ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1]);
/// From -1 to 1.
pub const HALVES: ([f32; 3], [f32; 3]) = ([0.5; 3], [0.5; 3]);

/// The processor of a rule, with a family's defaults.
pub fn processor(
    p: &Config,
    rule: SizeRule,
    filter: Filter,
    (mean, std): ([f32; 3], [f32; 3]),
) -> Result<ProcessorSpec, ModelError> {
    for step in ["do_resize", "do_rescale", "do_normalize"] {
        p.only(step, &true.into())?;
    }
    let filter = match p.get("resample").map(|_| p.count_or("resample", 0)).transpose()? {
        None => filter,
        Some(0) => Filter::Nearest,
        Some(1) => Filter::Lanczos,
        Some(2) => Filter::Bilinear,
        Some(3) => Filter::Bicubic,
        Some(4) => Filter::Box,
        Some(other) => return Err(p.unsupported("resample", other, "0 to 4 are")),
    };
    let three = |field: &str, default: [f32; 3]| -> Result<[f32; 3], ModelError> {
        if p.get(field).is_none() {
            return Ok(default);
        }
        let list = p.floats(field)?;
        <[f32; 3]>::try_from(list).map_err(|list| p.bad(field, format!("{} numbers", list.len()), "3 numbers"))
    };
    Ok(ProcessorSpec {
        rule,
        filter,
        scale: p.positive_or("rescale_factor", 1.0 / 255.0)?,
        mean: three("image_mean", mean)?,
        std: three("image_std", std)?,
    })
}

/// (height, width) of a size field: a table of both, of one edge, or a number.
pub fn size(p: &Config, field: &str, default: usize) -> Result<(usize, usize), ModelError> {
    if p.get(field).is_some_and(serde_json::Value::is_number) {
        let both = p.size(field)?;
        return Ok((both, both));
    }
    let Some(table) = p.table(field)? else { return Ok((default, default)) };
    for edge in ["shortest_edge", "longest_edge"] {
        if let Some(both) = table.size_opt(edge)? {
            return Ok((both, both));
        }
    }
    Ok((table.size("height")?, table.size("width")?))
}

/// Sizes of a plain tower.
pub struct Tower {
    /// Width of its stream.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Biases of q, k, v and of the output.
    pub attention_bias: bool,
    /// Of all layers.
    pub norm: Norm,
    /// Of all layers.
    pub mlp: Mlp,
    /// Index of the rope, if there is one.
    pub rope: Option<usize>,
}

impl Tower {
    /// Its layers, all alike.
    pub fn layers(&self, v: &Config) -> Result<Vec<VisionLayer>, ModelError> {
        if !self.hidden.is_multiple_of(self.heads) {
            return Err(v.bad("num_attention_heads", self.heads, format!("a divisor of hidden_size {}", self.hidden)));
        }
        if self.layers > super::config::MAX_LAYERS {
            let limit = format!("at most {}", super::config::MAX_LAYERS);
            return Err(v.bad("num_hidden_layers", self.layers, limit));
        }
        let head_dim = self.hidden / self.heads;
        let attention = Attention {
            heads: self.heads,
            kv_heads: self.heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            qkv_bias: bias(self.attention_bias),
            out_bias: bias(self.attention_bias),
            qk_norm: None,
            rope: self.rope,
            window: None,
            softcap: None,
            sinks: Sinks::Absent,
            gate: OutputGate::Absent,
        };
        let layer = |index| VisionLayer {
            name: (0, index),
            attn_norm: self.norm,
            mlp_norm: self.norm,
            attention: attention.clone(),
            mlp: self.mlp.clone(),
            view: View::Whole,
            factors: Bias::Absent,
        };
        Ok((0..self.layers).map(layer).collect())
    }
}

/// `down(act(up x))` with biases.
pub fn plain_mlp(v: &Config, inter: usize) -> Result<Mlp, ModelError> {
    Ok(Mlp::Plain(Dense { inter, act: v.activation("hidden_act")?, bias: Bias::Present }))
}

/// A norm by mean and variance with a bias.
pub fn layer_norm(eps: f32) -> Norm {
    Norm::Layer { eps, bias: Bias::Present }
}

/// A rope that turns half of the pairs by lines and half by columns, both with the same frequencies.
pub fn two_axes(theta: f32, head_dim: usize) -> RopeSpec {
    let half = frequencies(theta, head_dim / 2, &Scaling::Default);
    RopeSpec {
        kind: "axial",
        layout: RopeLayout::HalfSplit,
        axes: [vec![1; half.len()], vec![2; half.len()]].concat(),
        inv_freq: half.repeat(2),
        attention_factor: 1.0,
        theta,
        scaling: Scaling::Default,
    }
}

/// The tensors of CLIP's and SigLIP's layers.
pub fn clip_names(roots: Vec<(&'static str, &'static str)>, ignored: &[&str]) -> Names {
    let mut names = Names { roots, ignored: ignored.iter().map(|&part| part.to_owned()).collect(), ..Names::default() };
    names.set(Slot::Embed, Source::stem("embeddings.patch_embedding").then(Step::Flatten));
    names.set(Slot::ClassToken, Source::exact("embeddings.class_embedding", ""));
    names.set(Slot::Positions, Source::stem("embeddings.position_embedding"));
    names.set(Slot::EmbedNorm, Source::stem("pre_layrnorm"));
    names.set(Slot::FinalNorm, Source::stem("post_layernorm"));
    for (slot, stem) in [
        (Slot::PreAttn, "layer_norm1"),
        (Slot::PreMlp, "layer_norm2"),
        (Slot::Q, "self_attn.q_proj"),
        (Slot::K, "self_attn.k_proj"),
        (Slot::V, "self_attn.v_proj"),
        (Slot::O, "self_attn.out_proj"),
        (Slot::Up, "mlp.fc1"),
        (Slot::Down, "mlp.fc2"),
    ] {
        names.set(slot, Source::stem(&format!("encoder.layers.{{l}}.{stem}")));
    }
    names
}
