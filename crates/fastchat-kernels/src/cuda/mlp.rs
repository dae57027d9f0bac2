//! Activations.

use candle_core::{D, Result, Tensor, bail};

use super::CudaKernels;
use super::launchers::ActivationArgs;
use crate::Activation;

impl From<Activation> for ActivationArgs {
    fn from(act: Activation) -> Self {
        let kind = |kind| Self { kind, alpha: 0., limit: 0. };
        match act {
            Activation::Silu => kind(0),
            Activation::Gelu => kind(1),
            Activation::GeluTanh => kind(2),
            Activation::Relu2 => kind(3),
            Activation::QuickGelu => kind(5),
            Activation::SwigluOai { alpha, limit } => Self { kind: 4, alpha, limit },
        }
    }
}

pub(super) fn gated_act(kernels: &CudaKernels, gate_up: &Tensor, act: Activation) -> Result<Tensor> {
    let width = gate_up.dim(D::Minus1)?;
    if !width.is_multiple_of(2) || width == 0 {
        bail!("gate and up stacked have the width {width}");
    }
    let x = gate_up.contiguous()?;
    let rows = x.elem_count() / width;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = width / 2;
    }
    let out = kernels.empty(&shape)?;
    let (from, to, act) = (kernels.floats(&x)?, kernels.floats(&out)?, ActivationArgs::from(act));
    let half = i32::try_from(width / 2)?;
    kernels.launch("gated_act", |launchers, stream| {
        // SAFETY: `rows` rows of twice `half` and of `half` elements.
        unsafe { (launchers.gated_act)(from, to, rows as i64, half, &raw const act, stream) }
    })?;
    Ok(out)
}

pub(super) fn act(kernels: &CudaKernels, x: &Tensor, act: Activation) -> Result<Tensor> {
    if matches!(act, Activation::SwigluOai { .. }) {
        bail!("{act:?} needs a gate: it is not an elementwise activation");
    }
    let x = x.contiguous()?;
    let out = kernels.empty(x.dims())?;
    let (from, to, act) = (kernels.floats(&x)?, kernels.floats(&out)?, ActivationArgs::from(act));
    let count = x.elem_count() as i64;
    kernels.launch("act", |launchers, stream| {
        // SAFETY: both have `count` elements.
        unsafe { (launchers.act)(from, to, count, &raw const act, stream) }
    })?;
    Ok(out)
}
