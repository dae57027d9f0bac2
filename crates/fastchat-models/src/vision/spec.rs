//! What a vision tower is, as closed data: pictures to pixels to patches, the layers over them, and the projector that
//! makes rows of a decoder's stream. Knows no model names, files or tensors.

use serde::Serialize;

use super::placement::{Grid, Piece, Placement};
use super::processor::{Fitting, Pixels, ProcessorSpec};
use crate::names::Names;
use crate::spec::{Attention, Bias, Dense, Mlp, Norm, RopeSpec};

/// A whole vision tower.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VisionSpec {
    /// From a picture to pixels.
    pub processor: ProcessorSpec,
    /// From pixels to rows.
    pub patch: PatchSpec,
    /// Width of the tower's stream.
    pub hidden_size: usize,
    /// Whether a learnt row stands before the patches of each tile.
    pub class_token: Bias,
    /// What is added to patches for their place.
    pub positions: PatchPositions,
    /// How several tiles form one sequence; `None`: each tile is one.
    pub tiles: Option<TileSpec>,
    /// Norm before the first layer.
    pub pre_norm: Option<Norm>,
    /// Rope tables by rows and columns; layers refer to them by index.
    pub ropes: Vec<RopeSpec>,
    /// One entry per layer, in order.
    pub layers: Vec<VisionLayer>,
    /// Norm after the last layer, or with `tiles` after the last of the first stack.
    pub post_norm: Option<Norm>,
    /// Layers whose outputs are put beside the last one's, element by element.
    pub taps: Vec<usize>,
    /// From the tower's rows to the decoder's.
    pub projector: ProjectorSpec,
    /// Layers whose projected outputs are added after the decoder's first layers (arXiv 2406.04334).
    pub deepstack: Vec<usize>,
    /// Their projector.
    pub deepstack_projector: Option<ProjectorSpec>,
    /// Where the rows stand among the tokens.
    pub placement: Placement,
}

/// From pixels to rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PatchSpec {
    /// Pixels of a side.
    pub size: usize,
    /// Times that a still picture is repeated.
    pub frames: usize,
    /// Patches of a side of the square that the projector makes one row of; patches of a square follow one another.
    pub group: usize,
    /// Whether the projection has a bias.
    pub bias: Bias,
    /// Groups of a side of the squares that layers with [`View::Window`] look at.
    pub window: Option<usize>,
}

/// What is added to patches for their place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum PatchPositions {
    /// Nothing: ropes do it.
    Rotary,
    /// A row per place of a square tile.
    Learned {
        /// Row (of the square) that each line of patches takes its rows from, and likewise each column.
        lines: Vec<usize>,
    },
    /// The rows of a square table, stretched over the picture with its corners on the picture's.
    Stretched {
        /// Rows of a side.
        side: usize,
    },
}

/// How several tiles form one sequence, with learnt rows for each tile of each arrangement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TileSpec {
    /// Tiles of a sequence; those the picture does not fill are there all the same.
    pub count: usize,
    /// (rows, columns) of the arrangements in the order of their learnt rows, of which the first belongs to none.
    pub arrangements: Vec<(usize, usize)>,
    /// A tile's patches are filled up to a multiple of this.
    pub multiple: usize,
    /// First layer of the second stack.
    pub second_stack: usize,
}

/// One layer; its norms stand before each half.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VisionLayer {
    /// Which stack its tensors are named after, and its number there.
    pub name: (usize, usize),
    /// Norm of the attention half.
    pub attn_norm: Norm,
    /// Norm of the MLP half.
    pub mlp_norm: Norm,
    /// Mixing over patches.
    pub attention: Attention,
    /// Mixing over channels.
    pub mlp: Mlp,
    /// Which patches see each other.
    pub view: View,
    /// Whether each half has a learnt factor.
    pub factors: Bias,
}

/// Which patches see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum View {
    /// All of a sequence.
    Whole,
    /// Those of a window.
    Window,
}

/// From the tower's rows to the decoder's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProjectorSpec {
    /// Norm of the tower's rows.
    pub norm: Option<Norm>,
    /// How the patches of a group become one row.
    pub join: Join,
    /// Norm of the joined rows.
    pub joined_norm: Option<Norm>,
    /// The layers after that.
    pub layers: Projection,
    /// Width of the decoder's stream.
    pub out: usize,
}

/// How the patches of a group become one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Join {
    /// One after the other.
    Concat,
    /// Their mean.
    Mean,
}

/// Layers of a projector.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum Projection {
    /// One matrix.
    Linear(Bias),
    /// `down(act(up x))`.
    Mlp(Dense),
}

/// A spec and the names of its tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionDescription {
    /// What to compute.
    pub spec: VisionSpec,
    /// From which tensors.
    pub names: Names,
}

impl VisionSpec {
    /// Patches of a group.
    pub fn group(&self) -> usize {
        self.patch.group * self.patch.group
    }

    /// Groups of one tile.
    pub fn grid(&self, fitting: &Fitting) -> Grid {
        self.groups(fitting.tile)
    }

    /// Groups of one tile of these pixels.
    pub fn grid_of(&self, pixels: &Pixels) -> Grid {
        self.groups((pixels.width, pixels.height))
    }

    fn groups(&self, (width, height): (usize, usize)) -> Grid {
        let side = self.patch.size * self.patch.group;
        Grid { lines: height / side, columns: width / side }
    }

    /// What replaces the marker of a picture of this fitting.
    pub fn pieces(&self, fitting: &Fitting) -> Vec<Piece> {
        self.placement.pieces(fitting, self.grid(fitting))
    }
}
