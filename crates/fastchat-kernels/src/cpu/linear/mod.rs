//! `pack`, `linear` and `embed` of the CPU backend: which layout a weight gets, and how the tiles of a layer are shared
//! among threads.

mod activation;
mod avx2;
mod avx512;
mod bf16;
mod buffer;
mod dense;
mod format;
mod group;
mod most_likely;
mod pack;
mod portable;
mod rounding;
mod split;
mod tiles;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};

pub(crate) use buffer::Arena;
pub(crate) use dense::DenseTiles;
pub(crate) use split::SplitTiles;
pub(crate) use tiles::Tiles;

use super::host::{self, Disjoint, Spare, filled, in_place, slice};
use super::mlp::gate;
use super::{CpuKernels, Isa};
use crate::linear::{Packed, Part};
use crate::ops::embed::check_ids;
use crate::ops::linear::stacked_shape;
use crate::{Kernels, Linear, Weight, WeightKind};
use activation::{Activation, BLOCK_ROWS, RowBlock};
use bf16::PairRows;
pub(crate) use format::Format;
use format::{FORMATS, HALVES, ROWS};
use group::Group;
use most_likely::Best;

/// Bytes of weights below which a chunk is not worth another claim.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks per thread, so that a thread that lost time leaves work to the others: of few rows two, for reading begins anew
/// with each, or as many as it takes for chunks of [`LARGE_CHUNK`] bytes.
const CHUNKS_PER_THREAD: [usize; 2] = [2, 6];
const LARGE_CHUNK: usize = 1 << 20;
/// The same of many rows, which are work enough for a claim with few tiles.
const CHUNKS_OF_MANY_ROWS: usize = 24;
/// Bytes of tiles that a block of rows meets before the next block does: what is written of a row lies side by side then,
/// and fewer pages are written to at a time, while the tiles stay in the second-level cache.
const GROUP_BYTES: usize = 48 << 10;
/// Rows from which chunks are smaller.
const MANY_ROWS: usize = 16;

/// Rounded inputs.
pub(in crate::cpu) type Rounded = Spare<Vec<Group>>;
/// Inputs as pairs of bf16.
pub(in crate::cpu) type Pairs = Spare<Vec<u32>>;

/// Packed weights of one part.
#[derive(Clone, Copy)]
enum Tiled<'a> {
    Quantised(&'a Tiles),
    Split(&'a SplitTiles),
    Dense(&'a DenseTiles),
}

impl<'a> Tiled<'a> {
    fn of(part: &'a Part) -> Result<Self> {
        match &part.packed {
            Packed::Tiles(tiles) => Ok(Self::Quantised(tiles)),
            Packed::Split(tiles) => Ok(Self::Split(tiles)),
            Packed::DenseTiles(tiles) => Ok(Self::Dense(tiles)),
            Packed::Dense(_) => bail!("a layer packed by the default was handed to the CPU backend"),
            Packed::Device(_) => bail!("a layer packed by the CUDA backend was handed to the CPU backend"),
        }
    }

    fn rows(self) -> usize {
        match self {
            Self::Quantised(tiles) => tiles.rows,
            Self::Split(tiles) => tiles.rows,
            Self::Dense(tiles) => tiles.rows,
        }
    }

    /// Tiles that lie side by side, in one piece or two.
    fn bytes(self, range: Range<usize>) -> [&'a [u8]; 2] {
        let all = match self {
            Self::Quantised(tiles) => tiles.bytes(),
            Self::Split(tiles) => return tiles.bytes(range),
            Self::Dense(tiles) => tiles.bytes(),
        };
        [&all[range.start * self.stride()..range.end * self.stride()], &[]]
    }

    /// Bytes of one tile.
    fn stride(self) -> usize {
        match self {
            Self::Quantised(tiles) => tiles.stride(),
            Self::Split(tiles) => tiles.stride(),
            Self::Dense(tiles) => tiles.stride(),
        }
    }
}

/// Tiles of one part that a thread claims.
struct Chunk<'a> {
    tiles: Tiled<'a>,
    /// Output column of the part.
    column: usize,
    range: Range<usize>,
    /// Where these are gates: their activation, and where what they gate lies.
    gates: Option<(crate::Activation, Gated<'a>)>,
}

impl<'a> Chunk<'a> {
    /// Its tiles in groups, as even as can be, which a block of rows meets before the next block does.
    fn groups(&self) -> impl Iterator<Item = Range<usize>> {
        let tiles = self.range.len();
        let count = (tiles * self.tiles.stride()).div_ceil(GROUP_BYTES).max(1);
        let (range, size) = (self.range.clone(), tiles.div_ceil(count).max(1));
        range.clone().step_by(size).map(move |start| start..range.end.min(start + size))
    }

    /// Bytes of some of its tiles, and of what they gate.
    fn bytes(&self, tiles: Range<usize>) -> [&'a [u8]; 4] {
        let none: [&[u8]; 2] = [&[], &[]];
        let gated = self
            .gates
            .as_ref()
            .map_or(none, |(_, gated)| gated.tiles.bytes(gated.first + tiles.start..gated.first + tiles.end));
        let [first, second] = self.tiles.bytes(tiles);
        [first, second, gated[0], gated[1]]
    }
}

/// What a part of gates belongs to: tile `first + i` to its tile `i`.
#[derive(Clone, Copy)]
struct Gated<'a> {
    tiles: Tiled<'a>,
    first: usize,
}

/// What all chunks of one call share.
struct Call<'a> {
    isa: Isa,
    x: &'a [f32],
    cols: usize,
    /// `x` rounded, where a part is quantised.
    activation: Option<Activation<'a>>,
    /// `x` as pairs of bf16, where a part is of bf16 and the instruction set multiplies them.
    pairs: Option<PairRows<'a>>,
    bias: Option<&'a [f32]>,
    /// Length of a bias' half: what is gated follows the gates.
    gated: usize,
    sink: &'a Sink<'a>,
}

/// Where the results of chunks go.
enum Sink<'a> {
    /// Written, in rows of so many columns.
    Rows(&'a Disjoint<'a, f32>, usize),
    /// The largest of each row is kept: `[chunk][row]`.
    Best(Disjoint<'a, Best>),
}

/// A quantised tile.
#[derive(Clone, Copy)]
struct Tile<'a> {
    format: usize,
    cols: usize,
    bytes: &'a [u8],
    /// Where low codes lie apart, those.
    low: &'a [u8],
}

/// Sums of a tile for a block of rows.
type Sums = [[f32; ROWS]; BLOCK_ROWS];

/// Packs `weight` into tiles for another device: its format and the tiles' bytes. `None` for kinds without tiles.
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
                // f16 holds codes and scales together to eleven bits, in half the bytes of f32.
                None if weight.kind() == WeightKind::F8_E4M3 => {
                    let dense = Weight::halves(weight.rows(), weight.cols(), &weight.to_f32()?)?;
                    Packed::DenseTiles(Arc::new(DenseTiles::pack(&dense, &self.pool, &self.arena)?))
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

    /// One matrix of which the largest product is looked for.
    pub(super) fn pack_split(&self, weight: &Weight) -> Result<Linear> {
        let split = if self.isa >= Isa::Avx512Vnni { SplitTiles::pack(weight, &self.pool, &self.arena)? } else { None };
        let Some(split) = split else { return self.pack_linear(std::slice::from_ref(weight), None) };
        let parts = vec![Part { packed: Packed::Split(Arc::new(split)) }];
        Ok(Linear { in_features: weight.cols(), out_features: weight.rows(), parts, bias: None })
    }

    pub(super) fn run_linear(&self, x: &Tensor, layer: &Linear) -> Result<Tensor> {
        self.product(x, layer, &self.chunks(x, layer)?, layer.out_features)
    }

    pub(super) fn run_linear_into(&self, x: &Tensor, layer: &Linear, out: &Tensor) -> Result<()> {
        let (chunks, width) = (self.chunks(x, layer)?, layer.out_features);
        let out = out.narrow(0, 0, x.dim(0)?)?;
        if out.dims2()?.1 != width {
            bail!("{:?} has no room for rows of {width}", out.dims());
        }
        in_place(&out, |out| self.fill(x, layer, &chunks, width, &Sink::Rows(&Disjoint::new(out), width)))
    }

    /// The tiles of all parts, cut for the threads.
    fn chunks<'a>(&self, x: &Tensor, layer: &'a Linear) -> Result<Vec<Chunk<'a>>> {
        let mut chunks = Vec::with_capacity(layer.parts.len() * self.pool.threads() * CHUNKS_OF_MANY_ROWS);
        let mut column = 0;
        for part in &layer.parts {
            let tiles = Tiled::of(part)?;
            self.cut(x, &Chunk { tiles, column, range: 0..tiles.rows().div_ceil(ROWS), gates: None }, &mut chunks);
            column += tiles.rows();
        }
        Ok(chunks)
    }

    /// Gates and what they gate tile by tile, so that neither is ever written.
    pub(super) fn run_gated_linear(&self, x: &Tensor, layer: &Linear, act: crate::Activation) -> Result<Tensor> {
        let width = layer.out_features / 2;
        let parts = layer.parts.iter().map(Tiled::of).collect::<Result<Vec<_>>>()?;
        let (tiles, gated) = match *parts.as_slice() {
            [gate, up] if gate.rows() == up.rows() => (gate, Gated { tiles: up, first: 0 }),
            [both] if both.rows().is_multiple_of(2 * ROWS) => (both, Gated { tiles: both, first: width / ROWS }),
            _ => return self.gated_act(&self.run_linear(x, layer)?, act),
        };
        let mut chunks = Vec::with_capacity(self.pool.threads() * CHUNKS_OF_MANY_ROWS);
        let all = Chunk { tiles, column: 0, range: 0..width.div_ceil(ROWS), gates: Some((act, gated)) };
        self.cut(x, &all, &mut chunks);
        self.product(x, layer, &chunks, width)
    }

    /// Chunks that a part of so many bytes is cut into at most.
    fn most_chunks(&self, x: &Tensor, bytes: usize) -> usize {
        let threads = self.pool.threads();
        if x.dims().first().is_some_and(|&rows| rows >= MANY_ROWS) {
            return threads * CHUNKS_OF_MANY_ROWS;
        }
        let [least, most] = CHUNKS_PER_THREAD;
        (bytes / LARGE_CHUNK).clamp(threads * least, threads * most)
    }

    /// Cuts a chunk for the threads, into `chunks`.
    fn cut<'a>(&self, x: &Tensor, all: &Chunk<'a>, chunks: &mut Vec<Chunk<'a>>) {
        let rows = x.dims().first().copied().unwrap_or(1).max(1);
        let least = CHUNK_BYTES.div_ceil(all.tiles.stride().max(1) * rows);
        let most = self.most_chunks(x, all.range.len() * all.tiles.stride());
        let size = all.range.len().div_ceil(most).max(least);
        for start in all.range.clone().step_by(size) {
            chunks.push(Chunk { range: start..all.range.end.min(start + size), ..*all });
        }
    }

    /// Runs chunks that make up rows of `width`.
    fn product(&self, x: &Tensor, layer: &Linear, chunks: &[Chunk<'_>], width: usize) -> Result<Tensor> {
        let rows = x.dim(0)?;
        // SAFETY: the chunks hold all tiles, and a tile writes its columns of every row.
        let out =
            unsafe { filled(rows * width, |output| self.fill(x, layer, chunks, width, &Sink::Rows(output, width))) }?;
        Tensor::from_vec(out, (rows, width), &Device::Cpu)
    }

    /// Gives to `sink` what chunks make of every row of `x`, in rows of `width`.
    fn fill(&self, x: &Tensor, layer: &Linear, chunks: &[Chunk<'_>], width: usize, sink: &Sink<'_>) -> Result<()> {
        let (_, cols) = x.dims2()?;
        if cols != layer.in_features {
            bail!("input rows of {cols} for a layer of {} input features", layer.in_features);
        }
        let x = x.contiguous()?;
        let (storage, layout) = x.storage_and_layout();
        let x = slice::<f32>(&storage, layout)?;
        let bias = layer.bias.as_ref().map(Tensor::contiguous).transpose()?;
        let bias = bias.as_ref().map(Tensor::storage_and_layout);
        let bias = bias.as_ref().map(|(storage, layout)| slice::<f32>(storage, layout)).transpose()?;
        let quantised = layer.parts.iter().any(|part| matches!(part.packed, Packed::Tiles(_) | Packed::Split(_)));
        let paired = layer.parts.iter().any(is_bf16);
        self.rounded.with(|data| {
            self.pairs.with(|pairs| {
                let activation = quantised.then(|| Activation::quantize(x, cols, self.isa, &self.pool, data));
                let pairs = paired.then(|| PairRows::round(self.isa, x, cols, &self.pool, pairs)).flatten();
                let gated = layer.out_features - width;
                let call = Call { isa: self.isa, x, cols, activation, pairs, bias, gated, sink };
                let threads = self.pool.threads();
                // Threads take turns: the next chunk of this one will be about as many on.
                self.pool.run(chunks.len(), &|chunk| call.run(chunk, &chunks[chunk], chunks.get(chunk + threads)));
            });
        });
        Ok(())
    }

    pub(super) fn run_embed(&self, table: &Linear, ids: &[u32]) -> Result<Tensor> {
        /// Rows that one claim takes.
        const BATCH: usize = 4;
        check_ids(table, ids)?;
        let cols = table.in_features;
        let parts = table.parts.iter().map(Tiled::of).collect::<Result<Vec<_>>>()?;
        let fill = |output: &Disjoint<f32>| {
            self.pool.run(ids.len().div_ceil(BATCH), &|batch| {
                for i in batch * BATCH..ids.len().min((batch + 1) * BATCH) {
                    // SAFETY: these rows are this batch's.
                    decode_row(&parts, ids[i] as usize, unsafe { output.piece(i * cols..(i + 1) * cols) });
                }
            });
            Ok(())
        };
        // SAFETY: every row is decoded, each element of it written first.
        let out = unsafe { filled(ids.len() * cols, fill) }?;
        Tensor::from_vec(out, (ids.len(), cols), &Device::Cpu)
    }
}

fn is_bf16(part: &Part) -> bool {
    matches!(&part.packed, Packed::DenseTiles(tiles) if tiles.is_bf16())
}

/// Decodes row `row` of stacked parts.
fn decode_row(parts: &[Tiled<'_>], mut row: usize, out: &mut [f32]) {
    for tiles in parts {
        if row < tiles.rows() {
            return match tiles {
                Tiled::Quantised(tiles) => tiles.decode_row(row, out),
                Tiled::Split(tiles) => tiles.decode_row(row, out),
                Tiled::Dense(tiles) => tiles.decode_row(row, out),
            };
        }
        row -= tiles.rows();
    }
}

impl Call<'_> {
    /// Computes a chunk. Where several blocks of rows meet the same tiles, the memory is asked meanwhile for those that
    /// come after them, at last for the first of what is probably the `next` chunk.
    fn run(&self, index: usize, chunk: &Chunk<'_>, next: Option<&Chunk<'_>>) {
        let rows_of_x = self.x.len() / self.cols;
        let (mut sums, mut gated_sums): (Sums, Sums) = ([[0.; ROWS]; BLOCK_ROWS], [[0.; ROWS]; BLOCK_ROWS]);
        let blocks = activation::blocks(rows_of_x).count();
        let mut groups = chunk.groups().peekable();
        while let Some(group) = groups.next() {
            let ahead = match groups.peek() {
                _ if blocks < 2 => None,
                Some(tiles) => Some(chunk.bytes(tiles.clone())),
                None => next.and_then(|next| Some(next.bytes(next.groups().next()?))),
            };
            let (mut step, steps) = (0, blocks * group.len());
            for (first, rows) in activation::blocks(rows_of_x) {
                for tile in group.clone() {
                    for bytes in ahead.iter().flatten() {
                        host::ask_for(&bytes[bytes.len() * step / steps..bytes.len() * (step + 1) / steps]);
                    }
                    step += 1;
                    let column = chunk.column + tile * ROWS;
                    let count = ROWS.min(chunk.tiles.rows() - tile * ROWS);
                    let sums = &mut sums[..rows];
                    self.sums(chunk.tiles, tile, first, sums);
                    self.add_bias(column, count, sums);
                    if let Some((act, gated)) = chunk.gates {
                        let gated_sums = &mut gated_sums[..rows];
                        self.sums(gated.tiles, gated.first + tile, first, gated_sums);
                        self.add_bias(self.gated + column, count, gated_sums);
                        gate(self.isa, act, sums, gated_sums);
                    }
                    match self.sink {
                        Sink::Rows(output, width) => write(output, first * width + column, *width, count, sums),
                        Sink::Best(best) => {
                            // SAFETY: a chunk's are its own.
                            let best =
                                unsafe { best.piece(index * rows_of_x + first..index * rows_of_x + first + rows) };
                            best.iter_mut().zip(sums).for_each(|(best, sums)| best.take(column, &sums[..count]));
                        }
                    }
                }
            }
        }
    }

    /// A tile times the rows of `x` from `first` on, as many as there are sums.
    fn sums(&self, tiles: Tiled<'_>, tile: usize, first: usize, sums: &mut [[f32; ROWS]]) {
        match (tiles, &self.activation) {
            (Tiled::Quantised(tiles), Some(activation)) => {
                let tile = Tile { format: tiles.format, cols: tiles.cols, bytes: tiles.tile(tile), low: &[] };
                quantised(self.isa, tile, activation.block(first, sums.len()), sums);
            }
            (Tiled::Split(tiles), Some(activation)) => {
                quantised(self.isa, tiles.whole(tile), activation.block(first, sums.len()), sums);
            }
            (Tiled::Quantised(_) | Tiled::Split(_), None) => {
                unreachable!("the input of a quantised part is rounded; this is a bug")
            }
            (Tiled::Dense(tiles), _) => match self.pairs.filter(|_| tiles.is_bf16()) {
                Some(pairs) => tiles.product_of_pairs(tile, pairs.some(first, sums.len()), sums),
                None => tiles.product(self.isa, tile, &self.x[first * self.cols..][..sums.len() * self.cols], sums),
            },
        }
    }

    fn add_bias(&self, column: usize, count: usize, sums: &mut [[f32; ROWS]]) {
        let Some(bias) = self.bias else { return };
        for sums in sums {
            for (sum, bias) in sums.iter_mut().zip(&bias[column..column + count]) {
                *sum += bias;
            }
        }
    }
}

/// Writes `count` elements of each row from element `start` on, to rows of `width`.
fn write(output: &Disjoint<f32>, start: usize, width: usize, count: usize, sums: &[[f32; ROWS]]) {
    for (r, sums) in sums.iter().enumerate() {
        let start = start + r * width;
        // SAFETY: the columns are the tile's, which this thread claimed.
        let out = unsafe { output.piece(start..start + count) };
        match out.as_mut_array::<ROWS>() {
            // Of a length that is known: no call.
            Some(out) => *out = *sums,
            None => out.copy_from_slice(&sums[..count]),
        }
    }
}

/// A tile times a block of rows: sums `[row]`.
fn quantised(isa: Isa, tile: Tile<'_>, block: RowBlock<'_>, sums: &mut [[f32; ROWS]]) {
    let Tile { format, cols, bytes, low } = tile;
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512Vnni {
        let layout = &FORMATS[format];
        let blocks = layout.blocks(cols);
        assert!(blocks * layout.block_bytes() <= bytes.len() && bytes.as_ptr().addr().is_multiple_of(64));
        let low_bytes = if format == HALVES { blocks * layout.groups() * layout.group_bytes() } else { 0 };
        assert!(low_bytes <= low.len() && low.as_ptr().addr().is_multiple_of(if format == HALVES { 64 } else { 1 }));
        assert!(blocks * layout.groups() * block.rows <= block.data.len() && sums.len() == block.rows);
        let operands = avx512::Operands {
            tile: bytes.as_ptr(),
            low: low.as_ptr(),
            blocks,
            groups: block.data.as_ptr(),
            sums: sums.as_mut_ptr(),
        };
        // SAFETY: `isa` is what this machine has; the operands are a whole tile, and the lengths were checked.
        return unsafe { avx512::product(format, block.rows, operands) };
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(dot) = avx2::Dot::of(isa) {
        // SAFETY: `isa` is what this machine has.
        return unsafe { avx2::product(dot, format, bytes, block, sums) };
    }
    portable::product(format, bytes, block, sums);
}
