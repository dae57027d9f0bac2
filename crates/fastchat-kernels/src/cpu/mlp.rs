//! Activations, sixteen elements at a time.

use std::ops::Range;

use candle_core::{D, Result, Tensor, bail};

use super::host::{filled_rows, slice};
use super::simd::{LANES, Simd, Task, dispatch, gelu, gelu_tanh, sigmoid};
use super::{CpuKernels, Isa};
use crate::Activation;
use crate::ops::mlp::QUICK_GELU;

/// `act(gate)`, times `up` where there is one.
#[inline(always)]
fn lanes<S: Simd>(simd: S, act: Activation, gate: S::V, up: Option<S::V>) -> S::V {
    let active = match act {
        Activation::Silu => simd.mul(gate, sigmoid(simd, gate)),
        Activation::Gelu => gelu(simd, gate),
        Activation::GeluTanh => gelu_tanh(simd, gate),
        Activation::QuickGelu => simd.mul(gate, sigmoid(simd, simd.mul(gate, simd.splat(QUICK_GELU as f32)))),
        Activation::Relu2 => {
            let positive = simd.max(gate, simd.splat(0.));
            simd.mul(positive, positive)
        }
        Activation::SwigluOai { alpha, limit } => {
            let gate = simd.min(gate, simd.splat(limit));
            simd.mul(gate, sigmoid(simd, simd.mul(gate, simd.splat(alpha))))
        }
    };
    match (act, up) {
        (_, None) => active,
        (Activation::SwigluOai { limit, .. }, Some(up)) => {
            let up = simd.max(simd.min(up, simd.splat(limit)), simd.splat(-limit));
            simd.mul(simd.add(up, simd.splat(1.)), active)
        }
        (_, Some(up)) => simd.mul(active, up),
    }
}

/// Rows of `width` results from rows of `width` (plain) or `2 * width` (gated) elements.
struct Rows<'a> {
    x: &'a [f32],
    width: usize,
    gated: bool,
    act: Activation,
    out: &'a mut [f32],
}

impl Task for Rows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, width, gated, act, out } = self;
        let stride = if gated { 2 * width } else { width };
        for (x, out) in x.chunks_exact(stride).zip(out.chunks_exact_mut(width)) {
            let (gate, up) = x.split_at(width);
            let (gates, gate_rest) = gate.as_chunks::<LANES>();
            let (outs, out_rest) = out.as_chunks_mut::<LANES>();
            let (ups, up_rest) = up.as_chunks::<LANES>();
            if gated {
                for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
                    simd.store(lanes(simd, act, simd.load(gate), Some(simd.load(up))), out);
                }
            } else {
                for (gate, out) in gates.iter().zip(outs) {
                    simd.store(lanes(simd, act, simd.load(gate), None), out);
                }
            }
            if !gate_rest.is_empty() {
                let up = if gated { Some(simd.load_part(up_rest)) } else { None };
                simd.store_part(lanes(simd, act, simd.load_part(gate_rest), up), out_rest);
            }
        }
    }
}

/// Gates and what they gate, lane by lane; the result in place of the gates.
struct Pairs<'a> {
    act: Activation,
    gates: &'a mut [[f32; LANES]],
    ups: &'a [[f32; LANES]],
}

impl Task for Pairs<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (gate, up) in self.gates.iter_mut().zip(self.ups) {
            simd.store(lanes(simd, self.act, simd.load(gate), Some(simd.load(up))), gate);
        }
    }
}

/// `gates = act(gates) * ups`.
pub(super) fn gate(isa: Isa, act: Activation, gates: &mut [[f32; LANES]], ups: &[[f32; LANES]]) {
    dispatch(isa, Pairs { act, gates, ups });
}

pub(super) fn gated_act(kernels: &CpuKernels, gate_up: &Tensor, act: Activation) -> Result<Tensor> {
    let width = gate_up.dim(D::Minus1)?;
    if !width.is_multiple_of(2) || width == 0 {
        bail!("gate and up stacked have the width {width}");
    }
    run(kernels, gate_up, width / 2, true, act)
}

pub(super) fn act(kernels: &CpuKernels, x: &Tensor, act: Activation) -> Result<Tensor> {
    if matches!(act, Activation::SwigluOai { .. }) {
        bail!("{act:?} needs a gate: it is not an elementwise activation");
    }
    run(kernels, x, x.dim(D::Minus1)?.max(1), false, act)
}

fn run(kernels: &CpuKernels, x: &Tensor, width: usize, gated: bool, act: Activation) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let elements = slice::<f32>(&storage, layout)?;
    let stride = if gated { 2 * width } else { width };
    let act_rows = |rows: Range<usize>, out: &mut [f32]| {
        let x = &elements[rows.start * stride..rows.end * stride];
        dispatch(kernels.isa, Rows { x, width, gated, act, out });
    };
    // SAFETY: `Rows` writes whole rows.
    let result = unsafe { filled_rows(&kernels.pool, (elements.len() / stride, width), act_rows) }?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    Tensor::from_vec(result, shape, x.device())
}
