//! A vision tower's weights in their slots, packed once at load.

use candle_core::Tensor;
use fastchat_kernels::Linear;

use super::projector::{Projector, ProjectorSlots};
use super::spec::{PatchPositions, TileSpec, VisionLayer, VisionSpec};
use crate::ModelError;
use crate::layers::{AttentionWeights, Builder, MlpWeights, NormWeights};
use crate::names::Slot;
use crate::spec::Bias;
use crate::weights::At;

type Result<T> = std::result::Result<T, ModelError>;

/// Everything a tower computes with.
#[derive(Debug)]
pub(crate) struct TowerWeights {
    pub patch: Linear,
    /// `[hidden]`.
    pub class_token: Option<Tensor>,
    /// `[places, hidden]`, the class token's first.
    pub positions: Option<Tensor>,
    pub tiles: Option<TileWeights>,
    pub pre_norm: Option<NormWeights>,
    pub layers: Vec<LayerWeights>,
    pub post_norm: Option<NormWeights>,
    pub projector: Projector,
    pub deepstack: Vec<Projector>,
}

/// Learnt rows of the tiles of each arrangement, and their factors.
#[derive(Debug)]
pub(crate) struct TileWeights {
    /// `[arrangements, count * hidden]`.
    pub before: (Linear, f32),
    /// `[arrangements, count * places * hidden]`; one minus its factor is that of `positions`.
    pub positions: (Linear, f32),
    /// `[arrangements, count * hidden]`.
    pub after: (Linear, f32),
}

#[derive(Debug)]
pub(crate) struct LayerWeights {
    pub attn_norm: NormWeights,
    pub attention: AttentionWeights,
    pub mlp_norm: NormWeights,
    pub mlp: MlpWeights,
    /// Factors on the halves.
    pub factors: Option<(f32, f32)>,
}

/// Fills every slot of a tower; tensors beneath its prefixes that fill none are an error.
pub(crate) fn build(b: &Builder, spec: &VisionSpec) -> Result<TowerWeights> {
    let (at, hidden) = (At::default(), spec.hidden_size);
    let patch = spec.patch;
    let columns = 3 * patch.frames * patch.size * patch.size;
    let class = usize::from(spec.class_token == Bias::Present);
    let table = |rows: usize| -> Result<Tensor> {
        let values = b.weights.matrix(Slot::Positions, at, rows, hidden)?.to_f32()?;
        Ok(Tensor::from_vec(values, (rows, hidden), b.device())?)
    };
    let (positions, places) = match &spec.positions {
        PatchPositions::Rotary => (None, 0),
        PatchPositions::Learned { lines } => {
            let places = class + lines.len() * lines.len();
            (Some(table(places)?), places)
        }
        PatchPositions::Stretched { side } => (Some(table(side * side)?), side * side),
    };
    let main = ProjectorSlots { norm: Slot::ProjNorm, first: Slot::ProjFirst, second: Slot::ProjSecond };
    let deep = ProjectorSlots { norm: Slot::DeepNorm, first: Slot::DeepFirst, second: Slot::DeepSecond };
    let width = hidden * (1 + spec.taps.len());
    let mut deepstack = Vec::with_capacity(spec.deepstack.len());
    if let Some(projector) = &spec.deepstack_projector {
        for (layer, &part) in spec.deepstack.iter().enumerate() {
            deepstack.push(Projector::new(b, projector, &deep, (hidden, spec.group()), At { layer, part })?);
        }
    }
    let weights = TowerWeights {
        patch: b.pack(&[(Slot::Embed, hidden)], at, columns, patch.bias)?,
        class_token: match spec.class_token {
            Bias::Absent => None,
            Bias::Present => Some(b.weights.tensor(Slot::ClassToken, at, hidden, b.device())?),
        },
        positions,
        tiles: spec.tiles.as_ref().map(|tiles| tile_weights(b, tiles, hidden, places)).transpose()?,
        pre_norm: spec.pre_norm.map(|norm| b.norm(norm, Slot::EmbedNorm, at, hidden)).transpose()?,
        layers: spec.layers.iter().map(|layer| layer_weights(b, layer, hidden)).collect::<Result<_>>()?,
        post_norm: spec.post_norm.map(|norm| b.norm(norm, Slot::FinalNorm, at, hidden)).transpose()?,
        projector: Projector::new(b, &spec.projector, &main, (width, spec.group()), at)?,
        deepstack,
    };
    b.weights.finish_within_roots()?;
    Ok(weights)
}

fn factor(b: &Builder, slot: Slot, at: At) -> Result<f32> {
    Ok(b.weights.vector(slot, at, 1)?[0])
}

fn tile_weights(b: &Builder, tiles: &TileSpec, hidden: usize, places: usize) -> Result<TileWeights> {
    let (at, rows) = (At::default(), tiles.arrangements.len() + 1);
    let table = |slot, columns, gate| -> Result<(Linear, f32)> {
        Ok((b.pack(&[(slot, rows)], at, tiles.count * columns, Bias::Absent)?, factor(b, gate, at)?))
    };
    Ok(TileWeights {
        before: table(Slot::TilesBefore, hidden, Slot::TilesBeforeFactor)?,
        positions: table(Slot::TilePositions, places * hidden, Slot::TilePositionsFactor)?,
        after: table(Slot::TilesAfter, hidden, Slot::TilesAfterFactor)?,
    })
}

fn layer_weights(b: &Builder, layer: &VisionLayer, hidden: usize) -> Result<LayerWeights> {
    let at = At { layer: layer.name.1, part: layer.name.0 };
    Ok(LayerWeights {
        attn_norm: b.norm(layer.attn_norm, Slot::PreAttn, at, hidden)?,
        attention: b.attention(&layer.attention, at)?,
        mlp_norm: b.norm(layer.mlp_norm, Slot::PreMlp, at, hidden)?,
        mlp: b.mlp(&layer.mlp, at)?,
        factors: match layer.factors {
            Bias::Absent => None,
            Bias::Present => Some((factor(b, Slot::AttnFactor, at)?, factor(b, Slot::MlpFactor, at)?)),
        },
    })
}
