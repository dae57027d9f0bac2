//! Norm, rotation and caching of queries, keys and values.

use std::ptr::null;

use candle_core::{Result, Tensor, bail};

use super::CudaKernels;
use super::launchers::QkvArgs;
use super::plan::Arrays;
use super::weights::element;
use crate::{BLOCK_SIZE, KvCache, NormScope, Plan, QkvSpec, Rope, RopeLayout};

/// Refuses slots outside the cache.
fn check_slots(cache: &KvCache, plan: &Plan) -> Result<()> {
    plan.check_cache(cache.k.dim(0)?)?;
    let limit = cache.k.dim(0)? * BLOCK_SIZE;
    match plan.batch.slot_mapping.iter().find(|&&slot| slot as usize >= limit) {
        Some(slot) => bail!("slot {slot} of a cache of {limit} tokens"),
        None => Ok(()),
    }
}

/// cos and sin of a rope: a row for each token, or for each position that a plan that is written over may have.
fn table<'a>(rope: &Rope, plan: &'a Plan) -> Result<&'a (Tensor, Tensor)> {
    let Some(table) = plan.rope.get(rope.index) else {
        bail!("rope index {} but the plan has {} tables", rope.index, plan.rope.len());
    };
    let rows = plan.room.map_or(plan.batch.positions.len(), |room| room.context);
    let expected = [rows, rope.inv_freq.len()];
    if table.0.dims() != expected || table.1.dims() != expected {
        bail!("rope table {:?}, expected {expected:?}", table.0.dims());
    }
    Ok(table)
}

/// The row of each token in such a table; null where it is the token's own.
fn rows_of(plan: &Plan, arrays: &Arrays) -> *const u32 {
    if plan.room.is_some() { arrays.positions } else { null() }
}

pub(super) fn qk_norm_rope_write(
    kernels: &CudaKernels,
    qkv: &Tensor,
    spec: &QkvSpec,
    cache: &KvCache,
    plan: &Plan,
) -> Result<Tensor> {
    let QkvSpec { num_heads, num_kv_heads, head_dim, .. } = *spec;
    let (q_width, kv_width) = (num_heads * head_dim, num_kv_heads * head_dim);
    let tokens = plan.batch.slot_mapping.len();
    if qkv.dims() != [tokens, q_width + 2 * kv_width] {
        bail!("qkv is {:?}, expected [{tokens}, {q_width} + 2 * {kv_width}]", qkv.dims());
    }
    if spec.rope.as_ref().is_some_and(|rope| rope.rotary_dim() > head_dim) || head_dim == 0 {
        bail!("rope {:?} does not fit heads of {head_dim}", spec.rope);
    }
    let layout = &cache.layout;
    let Some(values) = &cache.v else { bail!("values given to a cache without values") };
    if (layout.num_kv_heads, layout.head_dim, layout.v_head_dim) != (num_kv_heads, head_dim, head_dim) {
        bail!("{num_kv_heads} heads of {head_dim} do not fit the cache {layout:?}");
    }
    check_slots(cache, plan)?;
    let qkv = qkv.contiguous()?;
    let q = kernels.empty(&[tokens, q_width])?;
    let arrays = Arrays::of(kernels, plan)?;
    let mut args = QkvArgs {
        qkv: kernels.floats(&qkv)?,
        q_weight: null(),
        k_weight: null(),
        cos: null(),
        sin: null(),
        angles: rows_of(plan, &arrays),
        slots: arrays.slots,
        q: kernels.floats(&q)?,
        k_cache: kernels.elements(&cache.k, layout.dtype)?,
        v_cache: kernels.elements(values, layout.dtype)?,
        eps: 0.,
        tokens: i32::try_from(tokens)?,
        heads: i32::try_from(num_heads)?,
        kv_heads: i32::try_from(num_kv_heads)?,
        head_dim: i32::try_from(head_dim)?,
        half: 0,
        scope: 0,
        interleaved: 0,
    };
    if let Some((q_weight, k_weight, eps, scope)) = &spec.qk_norm {
        let expected = if *scope == NormScope::PerHead { (head_dim, head_dim) } else { (q_width, kv_width) };
        if (q_weight.elem_count(), k_weight.elem_count()) != expected {
            bail!("qk norm weights {:?} and {:?}, expected {expected:?}", q_weight.dims(), k_weight.dims());
        }
        (args.q_weight, args.k_weight) = (kernels.floats(q_weight)?, kernels.floats(k_weight)?);
        args.eps = *eps;
        args.scope = if *scope == NormScope::PerHead { 1 } else { 2 };
    }
    if let Some(rope) = &spec.rope {
        let (cos, sin) = table(rope, plan)?;
        (args.cos, args.sin) = (kernels.floats(cos)?, kernels.floats(sin)?);
        args.half = i32::try_from(rope.inv_freq.len())?;
        args.interleaved = i32::from(rope.layout == RopeLayout::Interleaved);
    }
    let element = element(layout.dtype)?;
    kernels.launch("qk_norm_rope_write", |launchers, stream| {
        // SAFETY: all shapes and slots were checked against one another.
        unsafe { (launchers.qk_norm_rope_write)(&raw const args, element, stream) }
    })?;
    Ok(q)
}

pub(super) fn rope(
    kernels: &CudaKernels,
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
    let (cos, sin) = table(rope, plan)?;
    if tokens != plan.batch.positions.len() {
        bail!("{tokens} rows to rotate, {} positions", plan.batch.positions.len());
    }
    let x = x.contiguous()?;
    let out = kernels.empty(&[tokens, width])?;
    let (from, to) = (kernels.floats(&x)?, kernels.floats(&out)?);
    let (cos, sin) = (kernels.floats(cos)?, kernels.floats(sin)?);
    let angles = rows_of(plan, &Arrays::of(kernels, plan)?);
    let [tokens, heads, dim, half, start] = [tokens, width / head_dim, head_dim, half, start].map(|x| x as i32);
    let interleaved = i32::from(rope.layout == RopeLayout::Interleaved);
    kernels.launch("rope", |launchers, stream| {
        // SAFETY: `tokens` rows of `heads` heads, and a row of `half` angles for each of them.
        unsafe { (launchers.rope)(from, cos, sin, angles, to, tokens, heads, dim, half, start, interleaved, stream) }
    })?;
    Ok(out)
}

pub(super) fn write_kv(
    kernels: &CudaKernels,
    k: &Tensor,
    v: Option<&Tensor>,
    cache: &KvCache,
    plan: &Plan,
) -> Result<()> {
    if v.is_some() != cache.v.is_some() {
        bail!("values given: {}, values cached: {}", v.is_some(), cache.v.is_some());
    }
    check_slots(cache, plan)?;
    let layout = &cache.layout;
    let tokens = plan.batch.slot_mapping.len();
    let sides = [(Some(k), Some(&cache.k), layout.head_dim), (v, cache.v.as_ref(), layout.v_head_dim)];
    for (x, cached, dim) in sides {
        let (Some(x), Some(cached)) = (x, cached) else { continue };
        let stride = layout.num_kv_heads * dim;
        if x.dims() != [tokens, stride] {
            bail!("rows to cache are {:?}, expected [{tokens}, {stride}]", x.dims());
        }
        let x = x.contiguous()?;
        let (from, slots) = (kernels.floats(&x)?, Arrays::of(kernels, plan)?.slots);
        let (to, element) = (kernels.elements(cached, layout.dtype)?, element(layout.dtype)?);
        let (tokens, heads, dim) = (i32::try_from(tokens)?, layout.num_kv_heads as i32, dim as i32);
        kernels.launch("write_kv", |launchers, stream| {
            // SAFETY: the slots lie in the cache, whose heads are those of x.
            unsafe { (launchers.write_kv)(from, slots, to, element, tokens, heads, dim, stream) }
        })?;
    }
    Ok(())
}
