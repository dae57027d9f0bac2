//! Every slot that a spec has, with its size: for those who write a model's tensors instead of packing them. Knows no
//! names and no files.

use fastchat_kernels::NormScope;

use crate::encoder_spec::{EncoderLayer, EncoderSpec, NormOrder, Positions};
use crate::names::Slot;
use crate::spec::{
    Attention, Bias, Cross, DecoderSpec, Dense, GatedDeltaNet, Head, Mixer, Mla, Mlp, Moe, Norm, Shared, Sinks,
};
use crate::spec::{LayerSpec, OutputGate};

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    Matrix,
    Vector,
    Bias,
}

/// One slot of one layer, with all its experts or heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Use {
    pub slot: Slot,
    pub form: Form,
    pub layer: usize,
    /// Experts or heads; 1 for other slots.
    pub parts: usize,
    /// Of one part.
    pub rows: usize,
    pub cols: usize,
}

/// All slots of an encoder but those of a head that scores.
pub(crate) fn encoder_slots(spec: &EncoderSpec) -> Vec<Use> {
    let hidden = spec.hidden_size;
    let mut all = Slots { uses: Vec::new(), layer: 0, hidden };
    all.matrix(Slot::Embed, spec.vocab_size, hidden);
    if let Positions::Learned { rows, .. } = spec.positions {
        all.matrix(Slot::Positions, rows, hidden);
    }
    if spec.token_type == Bias::Present {
        all.matrix(Slot::TokenType, 1, hidden);
    }
    all.norm(Slot::EmbedNorm, Some(spec.embed_norm));
    all.norm(Slot::FinalNorm, spec.final_norm);
    for (index, layer) in spec.layers.iter().enumerate() {
        all.layer = index;
        let EncoderLayer { order, attn_norm, mlp_norm, attention, mlp } = layer;
        let (attn_slot, mlp_slot) = match order {
            NormOrder::Pre => (Slot::PreAttn, Slot::PreMlp),
            NormOrder::Post => (Slot::PostAttn, Slot::PostMlp),
        };
        all.norm(attn_slot, *attn_norm);
        all.attention(attention);
        all.norm(mlp_slot, Some(*mlp_norm));
        all.mlp(mlp);
    }
    all.uses
}

/// All slots of a decoder.
pub(crate) fn slots(spec: &DecoderSpec) -> Vec<Use> {
    let hidden = spec.hidden_size;
    let mut all = Slots { uses: Vec::new(), layer: 0, hidden };
    all.matrix(Slot::Embed, spec.vocab_size, hidden);
    if spec.head == Head::Separate {
        all.matrix(Slot::Head, spec.vocab_size, hidden);
    }
    all.norm(Slot::FinalNorm, Some(spec.final_norm));
    for (layer, spec) in spec.layers.iter().enumerate() {
        all.layer = layer;
        all.layer(spec);
    }
    all.uses
}

struct Slots {
    uses: Vec<Use>,
    layer: usize,
    hidden: usize,
}

impl Slots {
    fn add(&mut self, slot: Slot, form: Form, parts: usize, (rows, cols): (usize, usize)) {
        self.uses.push(Use { slot, form, layer: self.layer, parts, rows, cols });
    }

    fn matrix(&mut self, slot: Slot, rows: usize, cols: usize) {
        self.add(slot, Form::Matrix, 1, (rows, cols));
    }

    fn vector(&mut self, slot: Slot, len: usize) {
        self.add(slot, Form::Vector, 1, (len, 1));
    }

    /// `rows` of every part, and their biases.
    fn linear(&mut self, slot: Slot, parts: usize, (rows, cols): (usize, usize), bias: Bias) {
        self.add(slot, Form::Matrix, parts, (rows, cols));
        if bias == Bias::Present {
            self.add(slot, Form::Bias, parts, (rows, 1));
        }
    }

    fn norm(&mut self, slot: Slot, norm: Option<Norm>) {
        let Some(norm) = norm else { return };
        self.vector(slot, self.hidden);
        if let Norm::Layer { bias: Bias::Present, .. } = norm {
            self.add(slot, Form::Bias, 1, (self.hidden, 1));
        }
    }

    fn layer(&mut self, layer: &LayerSpec) {
        self.norm(Slot::PreAttn, layer.pre_attn);
        self.norm(Slot::PostAttn, layer.post_attn);
        self.norm(Slot::PreMlp, layer.pre_mlp);
        self.norm(Slot::PostMlp, layer.post_mlp);
        match &layer.mixer {
            Mixer::Attention(attention) => self.attention(attention),
            Mixer::Mla(mla) => self.mla(mla),
            Mixer::GatedDeltaNet(delta) => self.delta(delta),
            Mixer::Cross(cross) => self.cross(cross),
        }
        self.mlp(&layer.mlp);
    }

    fn mlp(&mut self, mlp: &Mlp) {
        match mlp {
            Mlp::Gated(dense) => self.gated([Slot::Gate, Slot::Up, Slot::Down], 1, *dense),
            Mlp::Plain(Dense { inter, bias, .. }) => {
                self.linear(Slot::Up, 1, (*inter, self.hidden), *bias);
                self.linear(Slot::Down, 1, (self.hidden, *inter), *bias);
            }
            Mlp::Moe(moe) => self.moe(moe),
        }
    }

    fn attention(&mut self, a: &Attention) {
        let (hidden, q, kv) = (self.hidden, a.heads * a.head_dim, a.kv_heads * a.head_dim);
        for (slot, rows) in [(Slot::Q, q), (Slot::K, kv), (Slot::V, kv)] {
            self.linear(slot, 1, (rows, hidden), a.qkv_bias);
        }
        if a.gate == OutputGate::Sigmoid {
            self.linear(Slot::AttnGate, 1, (q, hidden), a.qkv_bias);
        }
        self.linear(Slot::O, 1, (hidden, q), a.out_bias);
        if let Some(norm) = a.qk_norm {
            let width = |all| if norm.scope == NormScope::PerHead { a.head_dim } else { all };
            self.vector(Slot::QNorm, width(q));
            self.vector(Slot::KNorm, width(kv));
        }
        if a.sinks == Sinks::PerHead {
            self.vector(Slot::Sinks, a.heads);
        }
    }

    fn cross(&mut self, c: &Cross) {
        let (hidden, q, kv) = (self.hidden, c.heads * c.head_dim, c.kv_heads * c.head_dim);
        self.matrix(Slot::CrossQ, q, hidden);
        self.matrix(Slot::CrossK, kv, hidden);
        self.matrix(Slot::CrossV, kv, hidden);
        self.matrix(Slot::CrossO, hidden, q);
        self.vector(Slot::CrossQNorm, c.head_dim);
        self.vector(Slot::CrossKNorm, c.head_dim);
        self.vector(Slot::AttnFactor, 1);
        self.vector(Slot::MlpFactor, 1);
    }

    fn mla(&mut self, m: &Mla) {
        let (hidden, q) = (self.hidden, m.heads * (m.nope_dim + m.rope_dim));
        match m.q_lora_rank {
            None => self.matrix(Slot::Q, q, hidden),
            Some(rank) => {
                self.matrix(Slot::QDown, rank, hidden);
                self.vector(Slot::QDownNorm, rank);
                self.matrix(Slot::QUp, q, rank);
            }
        }
        self.matrix(Slot::KvDown, m.kv_lora_rank + m.rope_dim, hidden);
        self.vector(Slot::KvDownNorm, m.kv_lora_rank);
        self.add(Slot::LatentKey, Form::Matrix, m.heads, (m.kv_lora_rank, m.nope_dim));
        self.add(Slot::LatentValue, Form::Matrix, m.heads, (m.v_dim, m.kv_lora_rank));
        self.matrix(Slot::O, hidden, m.heads * m.v_dim);
    }

    fn delta(&mut self, d: &GatedDeltaNet) {
        let (hidden, values) = (self.hidden, d.v_heads * d.v_dim);
        self.matrix(Slot::DeltaQkv, d.conv_channels(), hidden);
        self.matrix(Slot::DeltaZ, values, hidden);
        self.matrix(Slot::DeltaB, d.v_heads, hidden);
        self.matrix(Slot::DeltaA, d.v_heads, hidden);
        self.matrix(Slot::DeltaConv, d.conv_channels(), d.conv_taps);
        self.vector(Slot::DeltaDecay, d.v_heads);
        self.vector(Slot::DeltaBias, d.v_heads);
        self.vector(Slot::DeltaNorm, d.v_dim);
        self.matrix(Slot::DeltaOut, hidden, values);
    }

    fn gated(&mut self, [gate, up, down]: [Slot; 3], parts: usize, dense: Dense) {
        let (hidden, inter) = (self.hidden, dense.inter);
        self.linear(gate, parts, (inter, hidden), dense.bias);
        self.linear(up, parts, (inter, hidden), dense.bias);
        self.linear(down, parts, (hidden, inter), dense.bias);
    }

    fn moe(&mut self, moe: &Moe) {
        self.linear(Slot::Router, 1, (moe.experts, self.hidden), moe.expert.bias);
        if moe.score_bias == Bias::Present {
            self.vector(Slot::ScoreBias, moe.experts);
        }
        self.gated([Slot::ExpertGate, Slot::ExpertUp, Slot::ExpertDown], moe.experts, moe.expert);
        let (Shared::Always(inter) | Shared::Gated(inter)) = moe.shared else { return };
        let shared = Dense { inter, bias: Bias::Absent, ..moe.expert };
        self.gated([Slot::SharedGate, Slot::SharedUp, Slot::SharedDown], 1, shared);
        if let Shared::Gated(_) = moe.shared {
            self.matrix(Slot::SharedSwitch, 1, self.hidden);
        }
    }
}
