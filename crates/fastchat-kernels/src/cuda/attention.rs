//! Paged attention: how the work is cut into blocks.

use std::ptr::{null, null_mut};

use candle_core::{DType, Result, Tensor, bail};

use super::CudaKernels;
use super::launchers::AttentionArgs;
use super::plan::Arrays;
use super::weights::element;
use crate::ops::attention::check;
use crate::{AttentionSpec, BLOCK_SIZE, KvCache, Plan};

/// Keys of a span; `SPAN` of attention.cuh.
const SPAN: usize = 256;
/// Elements of a row of the cache that flash.cu has registers for, and of which it takes multiples.
const MOST_ELEMENTS: usize = 256;
const WIDE: usize = 8;
/// Warps of a block of flash.cu, each with a tile of 16 rows.
const WARPS: usize = 4;
/// Bytes of a tile's queries and values above which tiles get fewer rows, so that two blocks fit a multiprocessor.
const TILE_BYTES: usize = 64 << 10;

/// How a launch is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Rows of a tile: 4, 8 or 16.
    pub(super) rows: usize,
    /// Blocks along x; a few may have nothing to do.
    pub(super) tiles: usize,
    /// Spans of the longest context.
    pub(super) spans: usize,
    /// Blocks that share a walk over the keys, span by span in turn: so a cut for the longest context there may be
    /// shares the walk of any shorter one as evenly.
    pub(super) splits: usize,
}

/// Sizes that a cut depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) tokens: usize,
    pub(super) sequences: usize,
    /// Tokens of the longest query, and of the longest context.
    pub(super) longest_query: usize,
    pub(super) longest_context: usize,
    pub(super) kv_heads: usize,
    /// Query heads per cached head.
    pub(super) group: usize,
    pub(super) dim: usize,
    pub(super) v_dim: usize,
    pub(super) processors: usize,
    /// Whether a warp has a tile, or a block.
    pub(super) by_warp: bool,
}

pub(super) fn cut(sizes: &Sizes) -> Cut {
    let wanted = match sizes.longest_query * sizes.group {
        0..=4 => 4,
        5..=8 => 8,
        _ => 16,
    };
    let fits = |rows: usize| 4 * rows * (sizes.dim + 2 * sizes.v_dim) <= TILE_BYTES;
    let fitting = || [16, 8].into_iter().find(|&rows| rows <= wanted && fits(rows)).unwrap_or(4);
    let rows = if sizes.by_warp { 16 } else { fitting() };
    let tiles = sizes.tokens * sizes.group / rows + sizes.sequences;
    let spans = sizes.longest_context.div_ceil(SPAN).max(1);
    // Two blocks per multiprocessor hide each other's waits.
    let (walks, most) = (tiles * sizes.kv_heads, 2 * sizes.processors);
    let wanted = if sizes.by_warp { WARPS * most } else { most };
    let splits = if walks < most { wanted.div_ceil(walks.max(1)).min(spans) } else { 1 };
    Cut { rows, tiles, spans, splits }
}

pub(super) fn attention(
    kernels: &CudaKernels,
    q: &Tensor,
    spec: &AttentionSpec,
    cache: &KvCache,
    plan: &Plan,
) -> Result<Tensor> {
    check(q, spec, cache, plan)?;
    let (batch, layout) = (&plan.batch, &cache.layout);
    let blocks = cache.k.dim(0)?;
    plan.check_cache(blocks)?;
    let covered = |(table, &len): (&Vec<u32>, &u32)| table.len() * BLOCK_SIZE >= len as usize;
    let outside = batch.block_tables.iter().flatten().any(|&block| block as usize >= blocks);
    if outside || !batch.block_tables.iter().zip(&batch.context_lens).all(covered) {
        bail!("block_tables do not cover the contexts in {blocks} blocks");
    }
    let (tokens, v_dim) = (batch.num_tokens(), spec.v_head_dim);
    let lengths = batch.query_start.windows(2).map(|pair| (pair[1] - pair[0]) as usize);
    let wide = [layout.head_dim, v_dim].iter().all(|dim| dim.is_multiple_of(WIDE) && *dim <= MOST_ELEMENTS);
    let by_warp = wide && cache.v.is_some() && layout.dtype != DType::F32;
    let longest_context = || batch.context_lens.iter().copied().max().unwrap_or(0) as usize;
    let cut = cut(&Sizes {
        tokens,
        sequences: batch.num_sequences(),
        longest_query: lengths.max().unwrap_or(0),
        longest_context: plan.room.map_or_else(longest_context, |room| room.context),
        kv_heads: layout.num_kv_heads,
        group: spec.num_heads / layout.num_kv_heads,
        dim: layout.head_dim,
        v_dim,
        processors: kernels.runtime.processors(),
        by_warp,
    });
    let q = q.contiguous()?;
    let out = kernels.empty(&[tokens, spec.num_heads * v_dim])?;
    let parts = match cut.splits {
        1 => None,
        _ => Some(kernels.empty(&[tokens * spec.num_heads * cut.spans * (v_dim + 2)])?),
    };
    let sinks = spec.sinks.as_ref().map(Tensor::contiguous).transpose()?;
    let arrays = Arrays::of(kernels, plan)?;
    let args = AttentionArgs {
        q: kernels.floats(&q)?,
        k_cache: kernels.elements(&cache.k, layout.dtype)?,
        v_cache: match &cache.v {
            Some(v) => kernels.elements(v, layout.dtype)?,
            None => null_mut(),
        },
        positions: arrays.positions,
        last_seen: arrays.last_seen,
        query_start: arrays.query_start,
        table_start: arrays.table_start,
        tables: arrays.tables,
        sinks: match &sinks {
            Some(sinks) if sinks.dims() == [spec.num_heads] => kernels.floats(sinks)?,
            Some(sinks) => bail!("sinks {:?} for {} heads", sinks.dims(), spec.num_heads),
            None => null(),
        },
        out: kernels.floats(&out)?,
        parts: parts.as_ref().map_or(Ok(null_mut()), |parts| kernels.floats(parts))?,
        done: if cut.splits > 1 { kernels.counters()? } else { null_mut() },
        scale: spec.scale,
        softcap: spec.softcap.unwrap_or(0.),
        sequences: i32::try_from(batch.num_sequences())?,
        tokens: i32::try_from(tokens)?,
        heads: i32::try_from(spec.num_heads)?,
        kv_heads: i32::try_from(layout.num_kv_heads)?,
        dim: i32::try_from(layout.head_dim)?,
        v_dim: i32::try_from(v_dim)?,
        window: i32::try_from(spec.window.unwrap_or(0).min(i32::MAX as usize / 2))?,
        splits: i32::try_from(cut.splits)?,
        spans: i32::try_from(cut.spans)?,
    };
    let (element, rows) = (element(layout.dtype)?, cut.rows as i32);
    if by_warp {
        if [args.q.addr(), args.k_cache.addr(), args.v_cache.addr()].iter().any(|address| address % 16 != 0)
            && tokens > 0
        {
            bail!("queries or a cache at no multiple of 16 bytes");
        }
        kernels.launch("flash_attention", |launchers, stream| {
            // SAFETY: as below; rows have multiples of 16 bytes.
            unsafe { (launchers.flash_attention)(&raw const args, element, kernels.terms, stream) }
        })?;
        return Ok(out);
    }
    kernels.launch("attention", |launchers, stream| {
        // SAFETY: the tables lie in the cache and cover every position; all shapes were checked against one another.
        unsafe { (launchers.attention)(&raw const args, element, rows, stream) }
    })?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::{Cut, SPAN, Sizes, TILE_BYTES, cut};

    /// CUDA's limits on grids along x, and along y and z.
    const MOST_X: usize = (1 << 31) - 1;
    const MOST_YZ: usize = 65_535;

    #[test]
    fn every_shape_fits_a_grid_and_32_bits() {
        let mut seen = 0;
        for (dim, v_dim) in [(64, 64), (128, 128), (256, 256), (576, 512)] {
            for (kv_heads, group) in [(1, 128), (8, 4), (8, 5), (2, 16), (128, 1)] {
                for (tokens, sequences) in [(1, 1), (256, 256), (8192, 1), (8192, 100), (1 << 20, 1), (1 << 20, 4096)] {
                    for longest_context in [1, 255, 257, 4096, 131_072, 1 << 20] {
                        let longest_query = tokens - sequences + 1;
                        let sizes = Sizes {
                            tokens,
                            sequences,
                            longest_query,
                            longest_context: longest_context.max(longest_query),
                            kv_heads,
                            group,
                            dim,
                            v_dim,
                            processors: 132,
                            by_warp: dim <= 256 && tokens % 3 == 1,
                        };
                        let Cut { rows, tiles, spans, splits } = cut(&sizes);
                        assert!(tiles <= MOST_X && kv_heads <= MOST_YZ && splits <= MOST_YZ, "{sizes:?}");
                        // A tile has at most `rows` of a sequence's rows, and every sequence has one more than it needs.
                        assert!(tiles * rows >= tokens * group, "{sizes:?}");
                        assert!((1..=spans).contains(&splits), "{sizes:?}");
                        assert!(spans * SPAN >= sizes.longest_context);
                        assert!(4 * rows * (dim + 2 * v_dim) <= TILE_BYTES || rows == 4 || sizes.by_warp);
                        if splits > 1 {
                            // One counter per tile and head, and parts that a small part of a card's memory holds.
                            assert!(tiles * kv_heads < 2 * sizes.processors, "{sizes:?}");
                            let parts = tokens * kv_heads * group * spans * (v_dim + 2);
                            assert!(4 * parts <= 5 << 30, "{parts} for {sizes:?}");
                            seen += 1;
                        }
                    }
                }
            }
        }
        assert!(seen > 20, "{seen} shapes are split");
    }

    #[test]
    fn a_short_decode_uses_the_whole_card() {
        let sizes = Sizes {
            tokens: 1,
            sequences: 1,
            longest_query: 1,
            longest_context: 4096,
            kv_heads: 8,
            group: 4,
            dim: 128,
            v_dim: 128,
            processors: 132,
            by_warp: false,
        };
        assert_eq!(cut(&sizes), Cut { rows: 4, tiles: 2, spans: 16, splits: 16 });
        assert_eq!(cut(&Sizes { by_warp: true, ..sizes }), Cut { rows: 16, tiles: 1, spans: 16, splits: 16 });
        let many = Sizes { tokens: 64, sequences: 64, ..sizes };
        for by_warp in [false, true] {
            assert_eq!(cut(&Sizes { by_warp, ..many }).splits, 1);
        }
    }
}
