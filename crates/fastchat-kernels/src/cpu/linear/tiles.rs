//! A packed quantised weight: its buffer, how it is filled, and how its groups are read without special instructions.

use candle_core::{Result, bail};

use super::buffer::Buffer;
use super::format::{FORMATS, Format, GROUP, Plane, ROWS, Scales};
use super::pack::pack_row;
use crate::Weight;
use crate::cpu::Pool;
use crate::quant::{e8m0_half, f16_at};

/// A weight in one of the [`FORMATS`].
#[derive(Debug)]
pub(crate) struct Tiles {
    pub(super) format: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    buffer: Buffer,
}

/// Scales and shifts of one group, for its halves (the second is unused where there is one scale) and rows.
pub(super) struct GroupScales {
    pub(super) scale: [[f32; ROWS]; 2],
    pub(super) shift: [[f32; ROWS]; 2],
}

impl Tiles {
    /// Packs `weight`, whose kind has the format at `format`.
    pub(super) fn pack(weight: &Weight, format: usize, pool: &Pool) -> Result<Self> {
        let layout = &FORMATS[format];
        let stride = layout.blocks(weight.cols()) * layout.block_bytes();
        let tiles = weight.rows().div_ceil(ROWS);
        let Some(len) = stride.checked_mul(tiles) else {
            bail!("{:?} of {} rows overflows", layout.kind, weight.rows())
        };
        let mut buffer = Buffer::zeroed(len)?;
        let row_bytes = weight.row_bytes();
        buffer.fill_chunks(pool, stride, &|tile, bytes| {
            let first = tile * ROWS * row_bytes;
            for (lane, row) in weight.bytes()[first..].chunks_exact(row_bytes).take(ROWS).enumerate() {
                pack_row(layout, row, bytes, lane);
            }
        });
        Ok(Self { format, rows: weight.rows(), cols: weight.cols(), buffer })
    }

    pub(super) fn layout(&self) -> &'static Format {
        &FORMATS[self.format]
    }

    /// Bytes of one tile.
    pub(super) fn stride(&self) -> usize {
        self.layout().blocks(self.cols) * self.layout().block_bytes()
    }

    /// The bytes of `count` tiles from `first` on.
    pub(super) fn tiles(&self, first: usize, count: usize) -> &[u8] {
        &self.buffer.bytes()[first * self.stride()..(first + count) * self.stride()]
    }

    /// Decodes row `row`, bit-equal to `quant::dequantize`.
    pub(super) fn decode_row(&self, row: usize, out: &mut [f32]) {
        let (layout, lane) = (self.layout(), row % ROWS);
        let blocks = self.tiles(row / ROWS, 1).chunks_exact(layout.block_bytes());
        for (block, out) in blocks.zip(out.chunks_mut(GROUP * layout.groups())) {
            let (header, groups) = block.split_at(layout.header_bytes());
            for (g, out) in out.chunks_mut(GROUP).enumerate() {
                let codes = &groups[g * layout.group_bytes()..];
                let lane_scales = group_scales(layout, header, g);
                for (k, out) in out.iter_mut().enumerate() {
                    let half = if layout.halves() == 2 { k / 16 } else { 0 };
                    let code = i32::from(code_at(layout, codes, lane, k)) - layout.offset_value();
                    *out = lane_scales.scale[half][lane] * code as f32;
                    if layout.has_shift() {
                        *out += lane_scales.shift[half][lane];
                    }
                }
            }
        }
    }
}

/// The code of column `k` of a group in row `lane`.
fn code_at(layout: &Format, codes: &[u8], lane: usize, k: usize) -> u8 {
    let (quad, at) = (k / 4, 4 * lane + k % 4);
    if layout.plane == Plane::Eight {
        return codes[64 * quad + at];
    }
    let low = codes[64 * (quad % 4) + at] >> (4 * (quad / 4)) & 15;
    let code = match layout.plane {
        Plane::Five => low | (codes[256 + at] >> quad & 1) << 4,
        Plane::Six => low | (codes[256 + 64 * (quad / 4) + at] >> (2 * (quad % 4)) & 3) << 4,
        Plane::Four | Plane::Eight => low,
    };
    layout.table.map_or(code, |table| table[usize::from(code)])
}

/// All codes of a group, `[quad][row][column]`. Plain loops over bytes: inlined, so that they take the caller's vectors.
#[inline(always)]
#[allow(clippy::inline_always)]
pub(super) fn unpack(layout: &Format, codes: &[u8], out: &mut [u8; 512]) {
    if layout.plane == Plane::Eight {
        out.copy_from_slice(&codes[..512]);
        return;
    }
    let (low, high) = out.split_at_mut(256);
    for ((byte, low), high) in codes[..256].iter().zip(low).zip(high) {
        *low = byte & 15;
        *high = byte >> 4;
    }
    match layout.plane {
        Plane::Five => {
            for (quad, out) in out.chunks_exact_mut(64).enumerate() {
                for (out, bits) in out.iter_mut().zip(&codes[256..320]) {
                    *out |= (bits >> quad & 1) << 4;
                }
            }
        }
        Plane::Six => {
            for (quad, out) in out.chunks_exact_mut(64).enumerate() {
                for (out, bits) in out.iter_mut().zip(&codes[256 + 64 * (quad / 4)..][..64]) {
                    *out |= (bits >> (2 * (quad % 4)) & 3) << 4;
                }
            }
        }
        Plane::Four | Plane::Eight => {}
    }
    if let Some(table) = layout.table {
        for out in out.iter_mut() {
            *out = table[usize::from(*out & 15)];
        }
    }
}

/// The scales of group `group` of a block.
#[inline(always)]
#[allow(clippy::inline_always)]
pub(super) fn group_scales(layout: &Format, header: &[u8], group: usize) -> GroupScales {
    let half = |at: usize, lane: usize| f16_at(&header[at + 2 * lane..]);
    let unsigned = |at: usize, lane: usize| f32::from(header[at + lane]);
    let signed = |at: usize, lane: usize| f32::from(header[at + lane] as i8);
    let mut out = GroupScales { scale: [[0.; ROWS]; 2], shift: [[0.; ROWS]; 2] };
    let GroupScales { scale, shift } = &mut out;
    for lane in 0..ROWS {
        match layout.scales {
            Scales::Half => scale[0][lane] = half(32 * group, lane),
            Scales::HalfShift => {
                scale[0][lane] = half(0, lane);
                shift[0][lane] = half(32, lane);
            }
            Scales::Super32 => {
                let at = 64 + 32 * group;
                scale[0][lane] = half(0, lane) * unsigned(at, lane);
                shift[0][lane] = -(half(32, lane) * unsigned(at + 16, lane));
            }
            Scales::Super16 => {
                for s in 0..2 {
                    let at = 64 + 64 * group + 16 * s;
                    scale[s][lane] = half(0, lane) * unsigned(at, lane);
                    shift[s][lane] = -(half(32, lane) * unsigned(at + 32, lane));
                }
            }
            Scales::Signed16 => {
                for (s, scale) in scale.iter_mut().enumerate() {
                    scale[lane] = half(0, lane) * signed(64 + 32 * group + 16 * s, lane);
                }
            }
            Scales::Signed32 => scale[0][lane] = half(0, lane) * signed(64 + 16 * group, lane),
            Scales::Exponent => scale[0][lane] = e8m0_half(header[16 * group + lane]),
        }
    }
    out
}
