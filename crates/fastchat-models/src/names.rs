//! Which stored tensor fills which slot of a decoder, and how its rows must be cut or reordered on the way. Filled in by
//! `hf` and `gguf`; knows no sizes but those its rows need and no model names.

use std::collections::BTreeMap;
use std::ops::Range;

/// A place in a decoder that a stored tensor fills. Per-expert slots are also used per head (`LatentKey`, `LatentValue`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // the names are those of the layers
pub enum Slot {
    Embed,
    Head,
    FinalNorm,
    /// Rows added by position.
    Positions,
    /// Row added to every token: the type of a text that stands alone.
    TokenType,
    /// The same for the second text of a pair.
    SecondType,
    EmbedNorm,
    /// First row to the row that is scored.
    ScoreDense,
    /// To the score.
    ScoreOut,
    PreAttn,
    PostAttn,
    PreMlp,
    PostMlp,
    Q,
    K,
    V,
    O,
    AttnGate,
    QNorm,
    KNorm,
    Sinks,
    QDown,
    QDownNorm,
    QUp,
    KvDown,
    KvDownNorm,
    /// Per head `[kv_lora_rank, nope_dim]`.
    LatentKey,
    /// Per head `[v_dim, kv_lora_rank]`.
    LatentValue,
    /// q, k and v before the convolution, in this order.
    DeltaQkv,
    DeltaZ,
    DeltaA,
    DeltaB,
    DeltaConv,
    /// `-exp(A_log)`.
    DeltaDecay,
    DeltaBias,
    DeltaNorm,
    DeltaOut,
    Gate,
    Up,
    Down,
    Router,
    ScoreBias,
    ExpertGate,
    ExpertUp,
    ExpertDown,
    SharedGate,
    SharedUp,
    SharedDown,
    SharedSwitch,
    /// Queries, keys, values, output and norms of layers that look at pictures.
    CrossQ,
    CrossK,
    CrossV,
    CrossO,
    CrossQNorm,
    CrossKNorm,
    /// Factors on the halves of a layer.
    AttnFactor,
    MlpFactor,
    ClassToken,
    TilesBefore,
    TilesBeforeFactor,
    TilePositions,
    TilePositionsFactor,
    TilesAfter,
    TilesAfterFactor,
    ProjNorm,
    ProjFirst,
    ProjSecond,
    DeepNorm,
    DeepFirst,
    DeepSecond,
}

impl Slot {
    /// Whether its tensors lie under the second of a layout's prefixes.
    pub fn beside_the_body(self) -> bool {
        matches!(
            self,
            Self::Head | Self::ScoreDense | Self::ScoreOut | Self::ProjNorm | Self::ProjFirst | Self::ProjSecond
        )
    }
}

/// One change on the way from the stored matrix to the slot's.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Of a stack of matrices, the one of the expert or head that is asked for.
    Pick,
    /// Of a matrix made of equal blocks of `stride` rows, the rows `within` the block of the expert or head asked for.
    Block {
        /// Rows of a block.
        stride: usize,
        /// Rows wanted of it.
        within: Range<usize>,
    },
    /// A range of rows of a matrix that must have `total`.
    Range {
        /// Rows wanted.
        rows: Range<usize>,
        /// Rows stored.
        total: usize,
    },
    /// Of every block of `stride` rows, first the rows of the first range for all blocks, then of the next.
    Groups {
        /// Rows of a block.
        stride: usize,
        /// Ranges within a block.
        within: Vec<Range<usize>>,
    },
    /// Heads whose first `rotary_dim` rows are interleaved pairs go back to the order of halves.
    #[allow(dead_code)] // a GGUF layout
    Unpair {
        /// Rows of a head.
        head_dim: usize,
        /// Rows of it that are rotated.
        rotary_dim: usize,
    },
    /// Rows and columns change places.
    Transpose,
    /// Every element plus one.
    AddOne,
    /// Every element `a` becomes `-exp(a)`.
    NegExp,
    /// Every element `a` becomes `tanh(a)`.
    Tanh,
    /// All dimensions but the first become one: a convolution over patches that do not overlap is a matrix.
    Flatten,
}

impl Step {
    /// Of every block of `stride` rows, the rows `within`.
    pub fn part_of(stride: usize, within: Range<usize>) -> Self {
        Self::Groups { stride, within: Vec::from([within]) }
    }
}

/// Where a slot's tensor comes from. `{l}` stands for the layer, `{e}` for the expert, `{s}` for the name of the stack.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Name of the stored weight.
    pub weight: String,
    /// Name of the stored bias, asked for only when the spec says there is one.
    pub bias: String,
    /// Changes, first to last; for a bias `Transpose` is skipped.
    pub steps: Vec<Step>,
}

impl Source {
    /// `stem.weight` and `stem.bias`.
    pub fn stem(stem: &str) -> Self {
        Self { weight: format!("{stem}.weight"), bias: format!("{stem}.bias"), steps: Vec::new() }
    }

    /// A tensor without the usual suffix.
    pub fn exact(weight: &str, bias: &str) -> Self {
        Self { weight: weight.to_owned(), bias: bias.to_owned(), steps: Vec::new() }
    }

    /// The same with one more step.
    pub fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

/// The whole map of one checkpoint layout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Names {
    /// Names of stacks of layers, where there are several.
    pub stacks: Vec<&'static str>,
    /// (prefix of the body, prefix of the head): the first under which the embedding lies is used.
    pub roots: Vec<(&'static str, &'static str)>,
    /// Slot to tensor.
    pub sources: BTreeMap<Slot, Source>,
    /// Substrings of tensors that may be left over: buffers, other modalities, draft heads.
    pub ignored: Vec<String>,
}

impl Names {
    /// Sets or replaces one source.
    pub fn set(&mut self, slot: Slot, source: Source) {
        self.sources.insert(slot, source);
    }

    /// Adds a step to a slot's source; a slot without a source is a bug of the map.
    pub fn push(&mut self, slot: Slot, step: Step) {
        self.sources.get_mut(&slot).expect("a step for a slot without a source; this is a bug").steps.push(step);
    }

    /// Adds a step to several slots.
    pub fn push_all(&mut self, slots: &[Slot], step: &Step) {
        for &slot in slots {
            self.push(slot, step.clone());
        }
    }

    /// Splits one stored tensor into slots by consecutive rows.
    pub fn fuse(&mut self, stem: &str, parts: &[(Slot, usize)]) {
        let total = parts.iter().map(|(_, rows)| rows).sum();
        let mut start = 0;
        for &(slot, rows) in parts {
            self.set(slot, Source::stem(stem).then(Step::Range { rows: start..start + rows, total }));
            start += rows;
        }
    }
}
