//! From a fused qkv row to a query row and cached keys and values: norm, rotation and rounding in one pass over a token.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::CpuKernels;
use super::host::{Disjoint, filled, filled_rows, slice};
use super::norm::rms_row;
use super::simd::{LANES, Simd, Task, dispatch};
use super::write_kv::{Source, store_keys, store_values};
use crate::{KvCache, NormScope, Plan, QkvSpec, Rope, RopeLayout};

/// Rotates the leading `2 * cos.len()` elements of a head.
#[inline(always)]
fn rotate<S: Simd>(simd: S, x: &mut [f32], layout: RopeLayout, cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    match layout {
        RopeLayout::HalfSplit => {
            let (first, second) = x.split_at_mut(half);
            let second = &mut second[..half];
            let (first, first_rest) = first.as_chunks_mut::<LANES>();
            let (second, second_rest) = second.as_chunks_mut::<LANES>();
            let ((cos, cos_rest), (sin, sin_rest)) = (cos.as_chunks::<LANES>(), sin.as_chunks::<LANES>());
            for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
                let (x, y) = (simd.load(a), simd.load(b));
                let (cos, sin) = (simd.load(cos), simd.load(sin));
                simd.store(simd.sub(simd.mul(x, cos), simd.mul(y, sin)), a);
                simd.store(simd.add(simd.mul(y, cos), simd.mul(x, sin)), b);
            }
            for ((a, b), (cos, sin)) in first_rest.iter_mut().zip(second_rest).zip(cos_rest.iter().zip(sin_rest)) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
        RopeLayout::Interleaved => {
            let (pairs, _) = x.as_chunks_mut::<2>();
            for (pair, (cos, sin)) in pairs.iter_mut().zip(cos.iter().zip(sin)) {
                *pair = [pair[0] * cos - pair[1] * sin, pair[1] * cos + pair[0] * sin];
            }
        }
    }
}

/// The cos and sin tables of one rope, `[tokens, half]`.
#[derive(Clone, Copy)]
struct Table<'a> {
    layout: RopeLayout,
    half: usize,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Table<'_> {
    /// Rotates each head of token `t`, from its element `start` on.
    #[inline(always)]
    fn turn<S: Simd>(&self, simd: S, row: &mut [f32], head_dim: usize, start: usize, t: usize) {
        let range = t * self.half..(t + 1) * self.half;
        let (cos, sin) = (&self.cos[range.clone()], &self.sin[range]);
        for head in row.chunks_exact_mut(head_dim) {
            rotate(simd, &mut head[start..], self.layout, cos, sin);
        }
    }
}

/// Calls `f` with the table of `rope`, or with none.
fn with_table<R>(rope: Option<&Rope>, plan: &Plan, f: impl FnOnce(Option<Table>) -> Result<R>) -> Result<R> {
    let Some(rope) = rope else { return f(None) };
    let Some((cos, sin)) = plan.rope.get(rope.index) else {
        bail!("rope index {} but the plan has {} tables", rope.index, plan.rope.len());
    };
    let half = rope.inv_freq.len();
    if cos.dims() != [plan.batch.positions.len(), half] || cos.dims() != sin.dims() {
        bail!("rope table {:?}, expected [{}, {half}]", cos.dims(), plan.batch.positions.len());
    }
    let ((cos, cos_layout), (sin, sin_layout)) = (cos.storage_and_layout(), sin.storage_and_layout());
    let (cos, sin) = (slice::<f32>(&cos, cos_layout)?, slice::<f32>(&sin, sin_layout)?);
    f(Some(Table { layout: rope.layout, half, cos, sin }))
}

/// A norm of one side: weight, eps, scope.
type Norm<'a> = Option<(&'a [f32], f32, NormScope)>;

/// Tokens `range` of one side, q or k: `width` elements from `column` of rows of `stride`.
struct Side<'a> {
    x: &'a [f32],
    stride: usize,
    column: usize,
    width: usize,
    head_dim: usize,
    range: Range<usize>,
    norm: Norm<'a>,
    table: Option<Table<'a>>,
    /// First rotated element of a head.
    start: usize,
    out: &'a mut [f32],
}

impl Task for Side<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (t, out) in self.range.zip(self.out.chunks_exact_mut(self.width)) {
            let row = &self.x[t * self.stride + self.column..][..self.width];
            match self.norm {
                None => out.copy_from_slice(row),
                Some((weight, eps, NormScope::FullWidth)) => rms_row(simd, row, weight, eps, out),
                Some((weight, eps, NormScope::PerHead)) => {
                    for (x, out) in row.chunks_exact(self.head_dim).zip(out.chunks_exact_mut(self.head_dim)) {
                        rms_row(simd, x, weight, eps, out);
                    }
                }
            }
            if let Some(table) = &self.table {
                table.turn(simd, out, self.head_dim, self.start, t);
            }
        }
    }
}

pub(super) fn rope(
    kernels: &CpuKernels,
    x: &Tensor,
    head_dim: usize,
    rope: &Rope,
    tail: bool,
    plan: &Plan,
) -> Result<Tensor> {
    let (tokens, width) = x.dims2()?;
    let half = rope.inv_freq.len();
    let start = match head_dim.checked_sub(2 * half) {
        Some(rest) if width > 0 && width.is_multiple_of(head_dim) => rest * usize::from(tail),
        _ => bail!("rope of {} elements does not fit rows of {width} with heads of {head_dim}", 2 * half),
    };
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let x_slice = slice::<f32>(&storage, layout)?;
    let out = with_table(Some(rope), plan, |table| {
        let turn_rows = |range: Range<usize>, out: &mut [f32]| {
            let norm = None;
            let side = Side { x: x_slice, stride: width, column: 0, width, head_dim, range, norm, table, start, out };
            dispatch(kernels.isa, side);
        };
        // SAFETY: `Side` writes whole rows: the width is one of whole heads.
        unsafe { filled_rows(&kernels.pool, (tokens, width), turn_rows) }
    })?;
    Tensor::from_vec(out, (tokens, width), x.device())
}

pub(super) fn qk_norm_rope_write(
    kernels: &CpuKernels,
    qkv: &Tensor,
    spec: &QkvSpec,
    cache: &KvCache,
    plan: &Plan,
) -> Result<Tensor> {
    let QkvSpec { num_heads, num_kv_heads, head_dim, .. } = *spec;
    let (q_width, kv_width) = (num_heads * head_dim, num_kv_heads * head_dim);
    let stride = q_width + 2 * kv_width;
    let tokens = plan.batch.slot_mapping.len();
    if qkv.dims() != [tokens, stride] {
        bail!("qkv is {:?}, expected [{tokens}, {q_width} + 2 * {kv_width}]", qkv.dims());
    }
    if spec.rope.as_ref().is_some_and(|rope| rope.rotary_dim() > head_dim) || head_dim == 0 {
        bail!("rope {:?} does not fit heads of {head_dim}", spec.rope);
    }
    let qkv = qkv.contiguous()?;
    let (storage, layout) = qkv.storage_and_layout();
    let x = slice::<f32>(&storage, layout)?;
    let norm_storages = spec.qk_norm.as_ref().map(|(q, k, ..)| (q.storage_and_layout(), k.storage_and_layout()));
    let (mut q_norm, mut k_norm): (Norm, Norm) = (None, None);
    if let (Some((_, _, eps, scope)), Some(((q, q_layout), (k, k_layout)))) = (&spec.qk_norm, &norm_storages) {
        let (q, k) = (slice::<f32>(q, q_layout)?, slice::<f32>(k, k_layout)?);
        let expected = if *scope == NormScope::PerHead { (head_dim, head_dim) } else { (q_width, kv_width) };
        if (q.len(), k.len()) != expected {
            bail!("qk norm weights of {} and {}, expected {expected:?}", q.len(), k.len());
        }
        (q_norm, k_norm) = (Some((q, *eps, *scope)), Some((k, *eps, *scope)));
    }
    let mut q_rows = Vec::new();
    let k_rows = with_table(spec.rope.as_ref(), plan, |table| {
        let side = |range: Range<usize>, (column, width, norm): (usize, usize, Norm), out: &mut [f32]| {
            dispatch(kernels.isa, Side { x, stride, column, width, head_dim, range, norm, table, start: 0, out });
        };
        let fill = |keys: &Disjoint<f32>| {
            let turn_rows = |range: Range<usize>, queries: &mut [f32]| {
                side(range.clone(), (0, q_width, q_norm), queries);
                // SAFETY: the ranges of `filled_rows` are disjoint.
                let keys = unsafe { keys.piece(range.start * kv_width..range.end * kv_width) };
                side(range, (q_width, kv_width, k_norm), keys);
            };
            // SAFETY: `Side` writes whole rows.
            q_rows = unsafe { filled_rows(&kernels.pool, (tokens, q_width), turn_rows) }?;
            Ok(())
        };
        // SAFETY: as above; the rows of `filled_rows` are all.
        unsafe { filled(tokens * kv_width, fill) }
    })?;
    if cache.layout.num_kv_heads != num_kv_heads
        || cache.layout.head_dim != head_dim
        || cache.layout.v_head_dim != head_dim
    {
        bail!("{num_kv_heads} heads of {head_dim} do not fit the cache {:?}", cache.layout);
    }
    store_keys(kernels, &Source { x: &k_rows, stride: kv_width, column: 0 }, cache, plan)?;
    store_values(kernels, &Source { x, stride, column: q_width + kv_width }, cache, plan)?;
    Tensor::from_vec(q_rows, (tokens, q_width), qkv.device())
}
