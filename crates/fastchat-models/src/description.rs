//! A spec together with the names of its tensors, and the edits families make to both. Knows neither config fields nor
//! model names; `hf` and `gguf` start from a standard decoder and edit it.

use fastchat_kernels::NormScope;

use crate::names::{Names, Slot, Step};
use crate::spec::{Attention, Bias, DecoderSpec, Dense, Head, LayerSpec, Mixer, Mlp, Moe, QkNorm, RopeSpec};

/// A spec and the names of its tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// What to compute.
    pub spec: DecoderSpec,
    /// From which tensors.
    pub names: Names,
}

impl Description {
    /// Edits every layer.
    pub fn layers(&mut self, mut edit: impl FnMut(usize, &mut LayerSpec)) {
        self.spec.layers.iter_mut().enumerate().for_each(|(i, layer)| edit(i, layer));
    }

    /// The same without its output matrix, should that be stored under `stem`: rows become vectors, not logits.
    #[must_use]
    pub fn without_head(mut self, stem: &str) -> Self {
        self.spec.head = Head::Tied;
        self.names.ignored.push(format!("{stem}."));
        self
    }

    /// Edits the attention of every layer that has one.
    pub fn attention(&mut self, mut edit: impl FnMut(usize, &mut Attention)) {
        self.layers(|i, layer| {
            if let Mixer::Attention(attention) = &mut layer.mixer {
                edit(i, attention);
            }
        });
    }

    /// Edits the dense MLP of every layer that has one.
    pub fn dense(&mut self, mut edit: impl FnMut(&mut Dense)) {
        self.layers(|_, layer| {
            if let Mlp::Gated(dense) | Mlp::Plain(dense) = &mut layer.mlp {
                edit(dense);
            }
        });
    }

    /// Biases of q, k, v and of the output projection.
    pub fn attention_bias(&mut self, qkv: bool, out: bool) {
        self.attention(|_, a| (a.qkv_bias, a.out_bias) = (bias(qkv), bias(out)));
    }

    /// Norm of q and k.
    pub fn qk_norm(&mut self, scope: NormScope) {
        let eps = self.spec.final_norm.eps();
        self.attention(|_, a| a.qk_norm = Some(QkNorm { eps, scope }));
    }

    /// Layers of type `sliding_attention` use their own rope, the second table.
    pub fn sliding_rope(&mut self, rope: RopeSpec) {
        self.spec.ropes.push(rope);
        self.attention(|_, a| a.rope = Some(usize::from(a.window.is_some())));
    }

    /// Replaces the MLP of the layers for which `sparse` holds.
    pub fn experts(&mut self, moe: &Moe, sparse: impl Fn(usize) -> bool) {
        self.layers(|i, layer| {
            if sparse(i) {
                layer.mlp = Mlp::Moe(moe.clone());
            }
        });
    }

    /// Norm weights stored as their difference from one.
    pub fn norms_from_one(&mut self, slots: &[Slot]) {
        self.names.push_all(slots, &Step::AddOne);
    }
}

/// A flag as the spec's enum.
pub fn bias(present: bool) -> Bias {
    if present { Bias::Present } else { Bias::Absent }
}
