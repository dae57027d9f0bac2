//! `pack`, `linear` and `embed` of the CPU backend: which layout a weight gets, and how the tiles of a layer are shared
//! among threads.

mod activation;
mod avx2;
mod avx512;
mod buffer;
mod dense;
mod format;
mod pack;
mod portable;
mod tiles;

use std::sync::Arc;

use candle_core::{Device, Result, Storage, Tensor, bail};

pub(crate) use buffer::Arena;
pub(crate) use dense::DenseTiles;
pub(crate) use tiles::Tiles;

use super::{CpuKernels, Isa};
use crate::linear::{Packed, Part};
use crate::ops::embed::check_ids;
use crate::ops::linear::stacked_shape;
use crate::{Linear, Weight, WeightKind};
use activation::{Activation, RowBlock};
pub(crate) use format::Format;
use format::ROWS;

/// Bytes of weights below which a chunk is not worth another claim.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks per thread, so that a thread that lost time leaves work to the others.
const CHUNKS_PER_THREAD: usize = 6;

/// The f32 elements of a contiguous CPU tensor.
fn with_f32<T>(x: &Tensor, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("the CPU backend got a tensor of another device") };
    let start = layout.start_offset();
    f(&storage.as_slice::<f32>()?[start..start + x.elem_count()])
}

/// The output matrix, written by several threads in disjoint pieces.
struct Output {
    data: *mut f32,
    width: usize,
}

// SAFETY: every element is written by the one thread that claimed its tile.
unsafe impl Sync for Output {}

impl Output {
    /// Writes `values` to row `row` from column `column` on.
    ///
    /// # Safety
    /// The place lies within the matrix and belongs to the calling thread.
    unsafe fn write(&self, row: usize, column: usize, values: &[f32]) {
        // SAFETY: the caller's promise.
        unsafe { self.data.add(row * self.width + column).copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    }
}

/// Packed weights of one part.
#[derive(Clone, Copy)]
enum Tiled<'a> {
    Quantised(&'a Tiles),
    Dense(&'a DenseTiles),
}

impl<'a> Tiled<'a> {
    fn of(part: &'a Part) -> Result<Self> {
        match &part.packed {
            Packed::Tiles(tiles) => Ok(Self::Quantised(tiles)),
            Packed::DenseTiles(tiles) => Ok(Self::Dense(tiles)),
            Packed::Dense(_) => bail!("a layer packed by the default was handed to the CPU backend"),
            #[cfg(any(emulated, feature = "cuda"))]
            Packed::Device(_) => bail!("a layer packed by the CUDA backend was handed to the CPU backend"),
        }
    }

    fn rows(self) -> usize {
        match self {
            Self::Quantised(tiles) => tiles.rows,
            Self::Dense(tiles) => tiles.rows,
        }
    }

    /// Bytes of one tile.
    fn stride(self) -> usize {
        match self {
            Self::Quantised(tiles) => tiles.stride(),
            Self::Dense(tiles) => tiles.stride(),
        }
    }
}

/// Tiles of one part that a thread claims.
struct Chunk<'a> {
    tiles: Tiled<'a>,
    /// Output column of the part.
    column: usize,
    range: std::ops::Range<usize>,
}

/// What all chunks of one call share.
struct Call<'a> {
    isa: Isa,
    x: &'a [f32],
    cols: usize,
    /// `x` rounded, where a part is quantised.
    activation: Option<Activation>,
    bias: Option<&'a [f32]>,
    output: Output,
}

/// Packs `weight` into tiles for another device: its format and the tiles' bytes. `None` for kinds without tiles.
#[cfg(any(emulated, feature = "cuda"))]
pub(crate) fn tiles(weight: &Weight, pool: &super::Pool) -> Result<Option<(&'static Format, Vec<u8>)>> {
    let Some(format) = Format::index_of(weight.kind()) else { return Ok(None) };
    let tiles = Tiles::pack(weight, format, pool, &Arena::default())?;
    Ok(Some((tiles.layout(), tiles.bytes().to_vec())))
}

impl CpuKernels {
    pub(super) fn pack_linear(&self, weights: &[Weight], bias: Option<Tensor>) -> Result<Linear> {
        let (in_features, out_features) = stacked_shape(weights, bias.as_ref())?;
        let pack = |weight: &Weight| {
            let packed = match Format::index_of(weight.kind()) {
                Some(format) => Packed::Tiles(Arc::new(Tiles::pack(weight, format, &self.pool, &self.arena)?)),
                None if weight.kind().is_dense() => {
                    Packed::DenseTiles(Arc::new(DenseTiles::pack(weight, &self.pool, &self.arena)?))
                }
                None => {
                    let bytes: Vec<u8> = weight.to_f32()?.iter().flat_map(|value| value.to_le_bytes()).collect();
                    let dense = Weight::new(WeightKind::F32, weight.rows(), weight.cols(), bytes.into())?;
                    Packed::DenseTiles(Arc::new(DenseTiles::pack(&dense, &self.pool, &self.arena)?))
                }
            };
            Ok(Part { packed })
        };
        let parts = weights.iter().map(pack).collect::<Result<_>>()?;
        Ok(Linear { in_features, out_features, parts, bias })
    }

    pub(super) fn run_linear(&self, x: &Tensor, layer: &Linear) -> Result<Tensor> {
        let (rows, cols) = x.dims2()?;
        if cols != layer.in_features {
            bail!("input rows of {cols} for a layer of {} input features", layer.in_features);
        }
        let width = layer.out_features;
        let bias = layer.bias.as_ref().map(Tensor::to_vec1::<f32>).transpose()?;
        let chunks = self.chunks(layer)?;
        let quantised = chunks.iter().any(|chunk| matches!(chunk.tiles, Tiled::Quantised(_)));
        let mut out = vec![0f32; rows * width];
        with_f32(x, |x| {
            let activation = quantised.then(|| Activation::quantize(x, cols, self.isa, &self.pool));
            let output = Output { data: out.as_mut_ptr(), width };
            let call = Call { isa: self.isa, x, cols, activation, bias: bias.as_deref(), output };
            self.pool.run(chunks.len(), &|chunk| call.run(&chunks[chunk]));
            Ok(())
        })?;
        Tensor::from_vec(out, (rows, width), &Device::Cpu)
    }

    /// Cuts the layer's tiles for the threads.
    fn chunks<'a>(&self, layer: &'a Linear) -> Result<Vec<Chunk<'a>>> {
        let mut chunks = Vec::new();
        let mut column = 0;
        for part in &layer.parts {
            let tiles = Tiled::of(part)?;
            let count = tiles.rows().div_ceil(ROWS);
            let least = CHUNK_BYTES.div_ceil(tiles.stride().max(1));
            let size = count.div_ceil(self.pool.threads() * CHUNKS_PER_THREAD).max(least);
            for start in (0..count).step_by(size) {
                chunks.push(Chunk { tiles, column, range: start..count.min(start + size) });
            }
            column += tiles.rows();
        }
        Ok(chunks)
    }

    pub(super) fn run_embed(&self, table: &Linear, ids: &[u32]) -> Result<Tensor> {
        /// Rows that one claim takes.
        const BATCH: usize = 4;
        check_ids(table, ids)?;
        let cols = table.in_features;
        let parts = table.parts.iter().map(Tiled::of).collect::<Result<Vec<_>>>()?;
        let mut out = vec![0f32; ids.len() * cols];
        let output = Output { data: out.as_mut_ptr(), width: cols };
        self.pool.run(ids.len().div_ceil(BATCH), &|batch| {
            let mut values = vec![0f32; cols];
            let first = batch * BATCH;
            for (i, &id) in ids[first..].iter().take(BATCH).enumerate() {
                decode_row(&parts, id as usize, &mut values);
                // SAFETY: rows `first ..` are this batch's.
                unsafe { output.write(first + i, 0, &values) };
            }
        });
        Tensor::from_vec(out, (ids.len(), cols), &Device::Cpu)
    }
}

/// Decodes row `row` of stacked parts.
fn decode_row(parts: &[Tiled<'_>], mut row: usize, out: &mut [f32]) {
    for tiles in parts {
        if row < tiles.rows() {
            return match tiles {
                Tiled::Quantised(tiles) => tiles.decode_row(row, out),
                Tiled::Dense(tiles) => tiles.decode_row(row, out),
            };
        }
        row -= tiles.rows();
    }
}

impl Call<'_> {
    fn run(&self, chunk: &Chunk<'_>) {
        let mut sums = [[0f32; ROWS]; 8];
        for tile in chunk.range.clone() {
            match (chunk.tiles, &self.activation) {
                (Tiled::Quantised(tiles), Some(activation)) => {
                    for block in activation.blocks() {
                        let sums = &mut sums[..block.rows];
                        self.quantised(tiles, tile, block, sums);
                        self.write(chunk, tile, block.first, sums);
                    }
                }
                (Tiled::Quantised(_), None) => unreachable!("the input of a quantised part is rounded; this is a bug"),
                (Tiled::Dense(tiles), _) => {
                    for (first, rows) in activation::blocks(self.x.len() / self.cols) {
                        let sums = &mut sums[..rows];
                        tiles.product(self.isa, tile, &self.x[first * self.cols..(first + rows) * self.cols], sums);
                        self.write(chunk, tile, first, sums);
                    }
                }
            }
        }
    }

    /// Adds the bias and writes sums `[row]` of a tile, for the rows from `first` on.
    fn write(&self, chunk: &Chunk<'_>, tile: usize, first: usize, sums: &mut [[f32; ROWS]]) {
        let column = chunk.column + tile * ROWS;
        let count = ROWS.min(chunk.tiles.rows() - tile * ROWS);
        for (r, sums) in sums.iter_mut().enumerate() {
            let sums = &mut sums[..count];
            if let Some(bias) = self.bias {
                for (sum, bias) in sums.iter_mut().zip(&bias[column..]) {
                    *sum += bias;
                }
            }
            // SAFETY: the columns are the tile's, which this thread claimed, and the row is one of the input's.
            unsafe { self.output.write(first + r, column, sums) };
        }
    }

    /// A tile times a block of rows: sums `[row]`.
    fn quantised(&self, tiles: &Tiles, index: usize, block: RowBlock<'_>, sums: &mut [[f32; ROWS]]) {
        let tile = tiles.tile(index);
        #[cfg(target_arch = "x86_64")]
        if self.isa == Isa::Avx512Vnni {
            let layout = tiles.layout();
            let blocks = layout.blocks(tiles.cols);
            assert!(blocks * layout.groups() * block.rows <= block.data.len() && sums.len() == block.rows);
            let operands =
                avx512::Operands { tile: tile.as_ptr(), blocks, groups: block.data.as_ptr(), sums: sums.as_mut_ptr() };
            // SAFETY: `isa` is what this machine has; the operands are a whole tile, and the lengths were checked.
            return unsafe { avx512::product(tiles.format, block.rows, operands) };
        }
        #[cfg(target_arch = "x86_64")]
        if self.isa == Isa::Avx2 {
            // SAFETY: `isa` is what this machine has.
            return unsafe { avx2::product(tiles.format, tile, block, sums) };
        }
        portable::product(tiles.format, tile, block, sums);
    }
}
