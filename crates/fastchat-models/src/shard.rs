//! One rank's share of a decoder that several devices compute together (tensor parallelism, arXiv 1909.08053): heads and
//! the widths of MLPs are dealt out evenly, and the results of a half that is dealt out are summed over the ranks. What
//! cannot be dealt evenly every rank computes whole. Knows no tensors.

use std::ops::Range;

use fastchat_kernels::NormScope;

use crate::spec::{Attention, DecoderSpec, Dense, GatedDeltaNet, LayerSpec, Mixer, Mla, Mlp, Moe, Shared};

/// Which of how many ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    pub rank: usize,
    pub size: usize,
    /// Columns between which matrices are cut: elements of the largest block that one is stored in.
    pub block: usize,
}

/// The part of an axis that a rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Length of the whole axis.
    pub whole: usize,
    pub own: Range<usize>,
}

impl From<usize> for Span {
    fn from(whole: usize) -> Self {
        Self { whole, own: 0..whole }
    }
}

impl Span {
    pub fn is_part(&self) -> bool {
        self.own.len() < self.whole
    }

    pub fn len(&self) -> usize {
        self.own.len()
    }

    /// The same part of an axis on which it lies `before` in, with `after` behind it.
    pub fn within(self, before: usize, after: usize) -> Self {
        Self { whole: before + self.whole + after, own: before + self.own.start..before + self.own.end }
    }
}

impl Shard {
    /// The only rank.
    pub const ALONE: Self = Self { rank: 0, size: 1, block: 1 };

    /// `own` of `whole` things of `width` each. Where there are fewer things than ranks, neighbours hold the same.
    pub fn span(self, whole: usize, own: usize, width: usize) -> Span {
        let start = if own == whole { 0 } else { self.rank * whole / self.size };
        Span { whole: whole * width, own: start * width..(start + own) * width }
    }

    /// The rank's part of an MLP's width, in whole blocks: some ranks have one block more where it does not come out even.
    pub fn inter(self, whole: usize) -> Span {
        let blocks = whole / self.block;
        if !whole.is_multiple_of(self.block) || blocks < self.size {
            return whole.into();
        }
        let start = |rank| rank * blocks / self.size * self.block;
        Span { whole, own: start(self.rank)..start(self.rank + 1) }
    }

    /// Rows of the output matrix that the rank computes: all, if they cannot be dealt evenly.
    pub fn logits(self, vocab: usize) -> Span {
        self.span(vocab, self.even(vocab).unwrap_or(vocab), 1)
    }

    /// The decoder as the rank computes it.
    pub fn cut(self, spec: &DecoderSpec) -> DecoderSpec {
        let layer = |layer: &LayerSpec| LayerSpec {
            mixer: self.mixer(&layer.mixer),
            mlp: self.mlp(&layer.mlp),
            ..layer.clone()
        };
        DecoderSpec { layers: spec.layers.iter().map(layer).collect(), ..spec.clone() }
    }

    pub fn mixer(self, mixer: &Mixer) -> Mixer {
        match mixer {
            Mixer::Attention(spec) => Mixer::Attention(self.attention(spec)),
            Mixer::Mla(spec) => Mixer::Mla(self.mla(spec)),
            Mixer::GatedDeltaNet(spec) => Mixer::GatedDeltaNet(self.delta(spec)),
            Mixer::Cross(spec) => Mixer::Cross(spec.clone()),
        }
    }

    /// A norm over the width of all heads needs all of them.
    pub fn attention(self, spec: &Attention) -> Attention {
        let needs_all = spec.qk_norm.is_some_and(|norm| norm.scope == NormScope::FullWidth);
        let heads = self.even_heads(spec.heads, spec.head_dim).filter(|_| !needs_all);
        let own = heads.zip(self.even_or_one(spec.kv_heads));
        let (heads, kv_heads) = own.unwrap_or((spec.heads, spec.kv_heads));
        Attention { heads, kv_heads, ..spec.clone() }
    }

    /// Every rank keeps the latent, and its own heads' ways in and out of it.
    pub fn mla(self, spec: &Mla) -> Mla {
        Mla { heads: self.even_heads(spec.heads, spec.v_dim).unwrap_or(spec.heads), ..spec.clone() }
    }

    pub fn delta(self, spec: &GatedDeltaNet) -> GatedDeltaNet {
        let own = self.even(spec.k_heads).zip(self.even_heads(spec.v_heads, spec.v_dim));
        let (k_heads, v_heads) = own.unwrap_or((spec.k_heads, spec.v_heads));
        GatedDeltaNet { k_heads, v_heads, ..spec.clone() }
    }

    pub fn mlp(self, mlp: &Mlp) -> Mlp {
        match mlp {
            Mlp::Gated(dense) => Mlp::Gated(self.dense(*dense)),
            Mlp::Plain(dense) => Mlp::Plain(self.dense(*dense)),
            Mlp::Moe(moe) => Mlp::Moe(self.moe(moe)),
        }
    }

    pub fn dense(self, dense: Dense) -> Dense {
        Dense { inter: self.inter(dense.inter).len(), ..dense }
    }

    /// Each rank has a part of every expert, so that ranks have the same to do whatever the router chooses. Routed and
    /// shared experts are summed together: both are dealt out, or neither is.
    pub fn moe(self, moe: &Moe) -> Moe {
        let (expert, width) = (self.dense(moe.expert), self.inter(moe.shared.inter()).len());
        let shared = match moe.shared {
            Shared::Absent => Shared::Absent,
            Shared::Always(_) => Shared::Always(width),
            Shared::Gated(_) => Shared::Gated(width),
        };
        if expert == moe.expert || (shared == moe.shared && shared != Shared::Absent) {
            return moe.clone();
        }
        Moe { expert, shared, ..moe.clone() }
    }

    fn even(self, count: usize) -> Option<usize> {
        count.is_multiple_of(self.size).then_some(count / self.size)
    }

    /// As `even`, for heads that become the columns of a matrix.
    fn even_heads(self, count: usize, width: usize) -> Option<usize> {
        self.even(count).filter(|own| (own * width).is_multiple_of(self.block))
    }

    /// As `even`, or one for several ranks.
    fn even_or_one(self, count: usize) -> Option<usize> {
        self.even(count).or_else(|| self.size.is_multiple_of(count).then_some(1))
    }
}
