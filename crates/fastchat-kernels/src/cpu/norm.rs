//! Norms of rows: one pass for the sums, one for the result.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::CpuKernels;
use super::host::{Disjoint, filled, filled_rows, slice};
use super::simd::{LANES, Simd, Task, dispatch};

/// Sum of squares of a row, in four strands.
#[inline(always)]
pub(super) fn sum_of_squares<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let mut sums = [simd.splat(0.); 4];
    let (fours, rest) = x.as_chunks::<{ 4 * LANES }>();
    for four in fours {
        let (four, _) = four.as_chunks::<LANES>();
        for i in 0..4 {
            let x = simd.load(&four[i]);
            sums[i] = simd.fma(x, x, sums[i]);
        }
    }
    let (ones, rest) = rest.as_chunks::<LANES>();
    for x in ones {
        let x = simd.load(x);
        sums[0] = simd.fma(x, x, sums[0]);
    }
    if !rest.is_empty() {
        let x = simd.load_part(rest);
        sums[1] = simd.fma(x, x, sums[1]);
    }
    simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])))
}

/// `out = x * factor * weight`.
#[inline(always)]
pub(super) fn scale<S: Simd>(simd: S, x: &[f32], factor: f32, weight: &[f32], out: &mut [f32]) {
    let splat = simd.splat(factor);
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (weight, weight_rest) = weight.as_chunks::<LANES>();
    let (out, out_rest) = out.as_chunks_mut::<LANES>();
    for ((x, weight), out) in x.iter().zip(weight).zip(out) {
        simd.store(simd.mul(simd.mul(simd.load(x), splat), simd.load(weight)), out);
    }
    for ((x, weight), out) in x_rest.iter().zip(weight_rest).zip(out_rest) {
        *out = x * factor * weight;
    }
}

/// `out = rms_norm(x)`.
#[inline(always)]
pub(super) fn rms_row<S: Simd>(simd: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let factor = 1. / (sum_of_squares(simd, x) / x.len() as f32 + eps).sqrt();
    scale(simd, x, factor, weight, out);
}

/// One range of rows of a norm.
struct Rows<'a> {
    x: &'a [f32],
    /// Added to `x` first; the sum goes to `sum`.
    residual: Option<(&'a [f32], &'a mut [f32])>,
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Task for Rows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.weight.len();
        let rows = self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width));
        if let Some((residual, sum)) = self.residual {
            for ((x, out), (residual, sum)) in rows.zip(residual.chunks_exact(width).zip(sum.chunks_exact_mut(width))) {
                for ((sum, x), residual) in sum.iter_mut().zip(x).zip(residual) {
                    *sum = x + residual;
                }
                rms_row(simd, sum, self.weight, self.eps, out);
            }
        } else {
            for (x, out) in rows {
                rms_row(simd, x, self.weight, self.eps, out);
            }
        }
    }
}

pub(super) fn rms_norm(kernels: &CpuKernels, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (sum, normed) = norm(kernels, x, None, weight, eps)?;
    debug_assert!(sum.is_none());
    Ok(normed)
}

pub(super) fn add_rms_norm(
    kernels: &CpuKernels,
    x: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<(Tensor, Tensor)> {
    match norm(kernels, x, Some(residual), weight, eps)? {
        (Some(sum), normed) => Ok((sum, normed)),
        (None, _) => bail!("a norm with a residual has a sum; this is a bug"),
    }
}

fn norm(
    kernels: &CpuKernels,
    x: &Tensor,
    residual: Option<&Tensor>,
    weight: &Tensor,
    eps: f32,
) -> Result<(Option<Tensor>, Tensor)> {
    let x = x.contiguous()?;
    let weight = weight.contiguous()?;
    let width = weight.elem_count();
    let shape = x.shape();
    if shape.dims().last() != Some(&width) || width == 0 {
        bail!("norm of {shape:?} with a weight of {width}");
    }
    let (x_storage, layout) = x.storage_and_layout();
    let x_slice = slice::<f32>(&x_storage, layout)?;
    let (weight_storage, layout) = weight.storage_and_layout();
    let weight_slice = slice::<f32>(&weight_storage, layout)?;
    let rows = (x_slice.len() / width, width);
    let mut out = Vec::new();
    let Some(residual) = residual else {
        let norm_rows = |rows: Range<usize>, out: &mut [f32]| {
            let x = &x_slice[rows.start * width..rows.end * width];
            dispatch(kernels.isa, Rows { x, residual: None, weight: weight_slice, eps, out });
        };
        // SAFETY: `Rows` writes whole rows.
        out = unsafe { filled_rows(&kernels.pool, rows, norm_rows) }?;
        return Ok((None, Tensor::from_vec(out, shape, x.device())?));
    };
    let residual = residual.contiguous()?;
    if residual.shape() != shape {
        bail!("{shape:?} and its residual {:?} differ", residual.shape());
    }
    let (storage, layout) = residual.storage_and_layout();
    let residual = slice::<f32>(&storage, layout)?;
    let fill = |sums: &Disjoint<f32>| {
        let norm_rows = |rows: Range<usize>, out: &mut [f32]| {
            let range = rows.start * width..rows.end * width;
            // SAFETY: the ranges of `filled_rows` are disjoint.
            let residual = Some((&residual[range.clone()], unsafe { sums.piece(range.clone()) }));
            dispatch(kernels.isa, Rows { x: &x_slice[range], residual, weight: weight_slice, eps, out });
        };
        // SAFETY: `Rows` writes whole rows.
        out = unsafe { filled_rows(&kernels.pool, rows, norm_rows) }?;
        Ok(())
    };
    // SAFETY: `Rows` writes whole sums, and the rows of `filled_rows` are all.
    let sum = unsafe { filled(x_slice.len(), fill) }?;
    Ok((Some(Tensor::from_vec(sum, shape, x.device())?), Tensor::from_vec(out, shape, x.device())?))
}

/// One range of rows of a layer norm.
struct LayerRows<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    out: &'a mut [f32],
}

impl Task for LayerRows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let mut sum = simd.splat(0.);
            let (lanes, rest) = x.as_chunks::<LANES>();
            for x in lanes {
                sum = simd.add(sum, simd.load(x));
            }
            let mean = (simd.sum(sum) + rest.iter().sum::<f32>()) / width as f32;
            for (out, x) in out.iter_mut().zip(x) {
                *out = x - mean;
            }
            let factor = 1. / (sum_of_squares(simd, out) / width as f32 + self.eps).sqrt();
            for (out, weight) in out.iter_mut().zip(self.weight) {
                *out = *out * factor * weight;
            }
            if let Some(bias) = self.bias {
                for (out, bias) in out.iter_mut().zip(bias) {
                    *out += bias;
                }
            }
        }
    }
}

pub(super) fn layer_norm(
    kernels: &CpuKernels,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f32,
) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let width = weight.elem_count();
    if x.dims().last() != Some(&width) || width == 0 || bias.as_ref().is_some_and(|bias| bias.elem_count() != width) {
        bail!("layer norm of {:?} with a weight of {width} and bias {:?}", x.shape(), bias.map(|b| b.elem_count()));
    }
    let (x_storage, layout) = x.storage_and_layout();
    let x_slice = slice::<f32>(&x_storage, layout)?;
    let (weight_storage, layout) = weight.storage_and_layout();
    let weight_slice = slice::<f32>(&weight_storage, layout)?;
    let bias_storage = bias.as_ref().map(Tensor::storage_and_layout);
    let bias = bias_storage.as_ref().map(|(storage, layout)| slice::<f32>(storage, layout)).transpose()?;
    let norm_rows = |rows: Range<usize>, out: &mut [f32]| {
        let x = &x_slice[rows.start * width..rows.end * width];
        dispatch(kernels.isa, LayerRows { x, weight: weight_slice, bias, eps, out });
    };
    // SAFETY: `LayerRows` writes whole rows, first the differences from the mean.
    let result = unsafe { filled_rows(&kernels.pool, (x_slice.len() / width, width), norm_rows) }?;
    Tensor::from_vec(result, x.shape(), x.device())
}
