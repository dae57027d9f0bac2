//! Rounds keys and values to the cache's type and puts them into their slots.

use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};
use half::{bf16, f16};

use super::CpuKernels;
use super::host::{Disjoint, SERIAL, in_place, slice};
use super::simd::{Element, LANES, Simd, Task, dispatch};
use crate::{BLOCK_SIZE, KvCache, Plan};

/// Rows to be cached: those of `x`, `stride` apart, from element `column` on.
pub(super) struct Source<'a> {
    pub(super) x: &'a [f32],
    pub(super) stride: usize,
    pub(super) column: usize,
}

/// Where one of the two tensors of a cache puts an element.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// `[blocks, heads, dim, BLOCK_SIZE]`.
    Keys,
    /// `[blocks, heads, BLOCK_SIZE, dim]`.
    Values,
}

struct Write<'a, E> {
    source: &'a Source<'a>,
    slots: &'a [u32],
    heads: usize,
    /// Those that are written.
    range: Range<usize>,
    dim: usize,
    order: Order,
    cache: &'a Disjoint<'a, E>,
}

impl<E: Element> Task for Write<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { source, slots, heads, range, dim, order, cache } = self;
        let size = dim * BLOCK_SIZE;
        for (t, &slot) in slots.iter().enumerate() {
            let (block, offset) = (slot as usize / BLOCK_SIZE, slot as usize % BLOCK_SIZE);
            let row = &source.x[t * source.stride + source.column..][..heads * dim];
            for head in range.clone() {
                let start = (block * heads + head) * size;
                // SAFETY: whoever writes has heads of its own.
                let block = unsafe { cache.piece(start..start + size) };
                for (i, x) in row[head * dim..][..dim].chunks(LANES).enumerate() {
                    let lanes = match x.as_array() {
                        Some(x) => simd.load(x),
                        None => simd.load_part(x),
                    };
                    let mut rounded = [E::default(); LANES];
                    E::store(simd, lanes, &mut rounded);
                    match order {
                        Order::Values => {
                            block[offset * dim + i * LANES..][..x.len()].copy_from_slice(&rounded[..x.len()]);
                        }
                        Order::Keys => {
                            let columns = block[i * LANES * BLOCK_SIZE..].chunks_exact_mut(BLOCK_SIZE);
                            for (column, &x) in columns.zip(&rounded[..x.len()]) {
                                column[offset] = x;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// One of the two tensors of a cache.
struct Target<'a> {
    tensor: &'a Tensor,
    dim: usize,
    order: Order,
}

/// Rows of `num_kv_heads * head_dim` into the keys.
pub(super) fn store_keys(kernels: &CpuKernels, source: &Source, cache: &KvCache, plan: &Plan) -> Result<()> {
    let target = Target { tensor: &cache.k, dim: cache.layout.head_dim, order: Order::Keys };
    store(kernels, source, &target, cache, plan)
}

/// Rows of `num_kv_heads * v_head_dim` into the values.
pub(super) fn store_values(kernels: &CpuKernels, source: &Source, cache: &KvCache, plan: &Plan) -> Result<()> {
    let Some(tensor) = &cache.v else { bail!("values given to a cache without values") };
    store(kernels, source, &Target { tensor, dim: cache.layout.v_head_dim, order: Order::Values }, cache, plan)
}

fn store(kernels: &CpuKernels, source: &Source, target: &Target, cache: &KvCache, plan: &Plan) -> Result<()> {
    let &Target { tensor, dim, order } = target;
    let slots = &plan.batch.slot_mapping;
    let heads = cache.layout.num_kv_heads;
    let limit = cache.k.dim(0)? * BLOCK_SIZE;
    if let Some(slot) = slots.iter().find(|&&slot| slot as usize >= limit) {
        bail!("slot {slot} of a cache of {limit} tokens");
    }
    macro_rules! write {
        ($element:ty) => {
            in_place::<$element>(tensor, |cache| {
                let cache = &Disjoint::new(cache);
                let write = |range| {
                    dispatch(kernels.isa, Write { source, slots, heads, range, dim, order, cache });
                };
                // Each element of a key lies on a line of its own, which has to come from memory first.
                if slots.len() * heads * dim < SERIAL / 8 {
                    write(0..heads);
                } else {
                    kernels.pool.run(heads, &|head| write(head..head + 1));
                }
                Ok(())
            })
        };
    }
    match cache.layout.dtype {
        DType::F32 => write!(f32),
        DType::F16 => write!(f16),
        DType::BF16 => write!(bf16),
        other => bail!("a cache of {other:?}: f32, f16 and bf16 are known"),
    }
}

pub(super) fn write_kv(
    kernels: &CpuKernels,
    k: &Tensor,
    v: Option<&Tensor>,
    cache: &KvCache,
    plan: &Plan,
) -> Result<()> {
    if v.is_some() != cache.v.is_some() {
        bail!("values given: {}, values cached: {}", v.is_some(), cache.v.is_some());
    }
    let layout = &cache.layout;
    let tokens = plan.batch.slot_mapping.len();
    for (x, dim, order) in [(Some(k), layout.head_dim, Order::Keys), (v, layout.v_head_dim, Order::Values)] {
        let Some(x) = x else { continue };
        let stride = layout.num_kv_heads * dim;
        if x.dims() != [tokens, stride] {
            bail!("rows to cache are {:?}, expected [{tokens}, {stride}]", x.dims());
        }
        let x = x.contiguous()?;
        let (storage, x_layout) = x.storage_and_layout();
        let source = Source { x: slice::<f32>(&storage, x_layout)?, stride, column: 0 };
        match order {
            Order::Keys => store_keys(kernels, &source, cache, plan)?,
            Order::Values => store_values(kernels, &source, cache, plan)?,
        }
    }
    Ok(())
}
