//! Norms.

use std::ptr::{null, null_mut};

use candle_core::{D, Result, Tensor, bail};

use super::CudaKernels;

/// (rows, width) of a tensor normed by `weight`, as a launcher takes them.
fn shape(x: &Tensor, weight: &Tensor) -> Result<(i32, i32)> {
    let width = x.dim(D::Minus1)?;
    if weight.dims() != [width] {
        bail!("a norm weight {:?} for rows of {width}", weight.dims());
    }
    let rows = x.elem_count().checked_div(width).unwrap_or(0);
    Ok((i32::try_from(rows)?, i32::try_from(width)?))
}

pub(super) fn rms_norm(kernels: &CudaKernels, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (rows, width) = shape(x, weight)?;
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let out = kernels.empty(x.dims())?;
    let (x, w, y) = (kernels.floats(&x)?, kernels.floats(&weight)?, kernels.floats(&out)?);
    kernels.launch("rms_norm", |launchers, stream| {
        // SAFETY: the tensors have `rows` rows of `width`; without a residual there is no sum.
        unsafe { (launchers.rms_norm)(x, null(), w, null_mut(), y, rows, width, eps, stream) }
    })?;
    Ok(out)
}

pub(super) fn add_rms_norm(
    kernels: &CudaKernels,
    x: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<(Tensor, Tensor)> {
    let (rows, width) = shape(x, weight)?;
    if x.dims() != residual.dims() {
        bail!("a residual {:?} to rows {:?}", residual.dims(), x.dims());
    }
    let (x, residual, weight) = (x.contiguous()?, residual.contiguous()?, weight.contiguous()?);
    let (sum, out) = (kernels.empty(x.dims())?, kernels.empty(x.dims())?);
    let (x, r, w) = (kernels.floats(&x)?, kernels.floats(&residual)?, kernels.floats(&weight)?);
    let (s, y) = (kernels.floats(&sum)?, kernels.floats(&out)?);
    kernels.launch("rms_norm", |launchers, stream| {
        // SAFETY: all but the weight have `rows` rows of `width`.
        unsafe { (launchers.rms_norm)(x, r, w, s, y, rows, width, eps, stream) }
    })?;
    Ok((sum, out))
}

pub(super) fn layer_norm(
    kernels: &CudaKernels,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f32,
) -> Result<Tensor> {
    let (rows, width) = shape(x, weight)?;
    if let Some(bias) = bias
        && bias.dims() != weight.dims()
    {
        bail!("a norm bias {:?} for rows of {width}", bias.dims());
    }
    let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.map(Tensor::contiguous).transpose()?);
    let out = kernels.empty(x.dims())?;
    let (x, w, y) = (kernels.floats(&x)?, kernels.floats(&weight)?, kernels.floats(&out)?);
    let b = bias.as_ref().map_or(Ok(null_mut()), |bias| kernels.floats(bias))?;
    kernels.launch("layer_norm", |launchers, stream| {
        // SAFETY: the tensors have `rows` rows of `width`; weight and bias one.
        unsafe { (launchers.layer_norm)(x, w, b, y, rows, width, eps, stream) }
    })?;
    Ok(out)
}
