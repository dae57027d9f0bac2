//! A packed quantised weight: its buffer, how it is filled, and how its groups are read without special instructions.

use candle_core::{Result, bail};

use super::buffer::{Arena, Buffer};
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
    /// Bytes of one tile.
    stride: usize,
    buffer: Buffer,
}

/// Scales and shifts of one group, for its halves (the second is unused where there is one scale) and rows.
pub(super) struct GroupScales {
    pub(super) scale: [[f32; ROWS]; 2],
    pub(super) shift: [[f32; ROWS]; 2],
}

impl Tiles {
    /// Packs `weight`, whose kind has the format at `format`.
    pub(super) fn pack(weight: &Weight, format: usize, pool: &Pool, arena: &Arena) -> Result<Self> {
        let layout = &FORMATS[format];
        let stride = layout.blocks(weight.cols()) * layout.block_bytes();
        let tiles = weight.rows().div_ceil(ROWS);
        let Some(len) = stride.checked_mul(tiles) else {
            bail!("{:?} of {} rows overflows", layout.kind, weight.rows())
        };
        let mut buffer = arena.zeroed(len)?;
        let row_bytes = weight.row_bytes();
        buffer.fill_chunks(pool, stride, &|tile, bytes| {
            let first = tile * ROWS * row_bytes;
            for (lane, row) in weight.bytes()[first..].chunks_exact(row_bytes).take(ROWS).enumerate() {
                pack_row(layout, row, bytes, lane);
            }
        });
        Ok(Self { format, rows: weight.rows(), cols: weight.cols(), stride, buffer })
    }

    pub(super) fn layout(&self) -> &'static Format {
        &FORMATS[self.format]
    }

    /// Bytes of one tile.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// The bytes of all tiles.
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.bytes()
    }

    /// The bytes of tile `index`.
    pub(super) fn tile(&self, index: usize) -> &[u8] {
        &self.buffer.bytes()[index * self.stride..(index + 1) * self.stride]
    }

    /// Decodes row `row`, bit-equal to `quant::dequantize`.
    pub(super) fn decode_row(&self, row: usize, out: &mut [f32]) {
        let (layout, lane) = (self.layout(), row % ROWS);
        let blocks = self.tile(row / ROWS).chunks_exact(layout.block_bytes());
        for (block, out) in blocks.zip(out.chunks_mut(GROUP * layout.groups())) {
            let (header, groups) = block.split_at(layout.header_bytes());
            for (g, out) in out.chunks_mut(GROUP).enumerate() {
                let codes = &groups[g * layout.group_bytes()..];
                let scales = lane_scales(layout, header, g, lane);
                for (k, out) in out.iter_mut().enumerate() {
                    let half = if layout.halves() == 2 { k / 16 } else { 0 };
                    let code = i32::from(code_at(layout, codes, lane, k)) - layout.offset_value();
                    let (scale, shift) = scales[half];
                    *out = scale * code as f32;
                    if layout.has_shift() {
                        *out += shift;
                    }
                }
            }
        }
    }
}

/// The code of column `k` of a group in row `lane`.
pub(super) fn code_at(layout: &Format, codes: &[u8], lane: usize, k: usize) -> u8 {
    let (quad, at) = (k / 4, 4 * lane + k % 4);
    if layout.plane == Plane::Eight {
        return codes[64 * quad + at];
    }
    let low = codes[64 * (quad % 4) + at] >> (4 * (quad / 4)) & 15;
    let code = match layout.plane {
        Plane::Five => low | (codes[256 + at] >> quad & 1) << 4,
        Plane::Six => low | (codes[256 + 64 * (quad / 4) + at] >> (2 * (quad % 4)) & 3) << 4,
        Plane::Four | Plane::Eight | Plane::Halves => low,
    };
    layout.table.map_or(code, |table| table[usize::from(code)])
}

/// All codes of a group, `[quad][row][column]`, before the table. Plain loops over bytes: inlined, so that they take the
/// caller's vectors.
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
        Plane::Four | Plane::Eight | Plane::Halves => {}
    }
}

/// The scales of group `group` of a block.
#[inline(always)]
#[allow(clippy::inline_always)]
pub(super) fn group_scales(layout: &Format, header: &[u8], group: usize) -> GroupScales {
    let mut out = GroupScales { scale: [[0.; ROWS]; 2], shift: [[0.; ROWS]; 2] };
    for lane in 0..ROWS {
        let [first, second] = lane_scales(layout, header, group, lane);
        (out.scale[0][lane], out.shift[0][lane]) = first;
        (out.scale[1][lane], out.shift[1][lane]) = second;
    }
    out
}

/// (scale, shift) of the halves of a group in row `lane`; the second is zero where there is one scale.
#[inline(always)]
#[allow(clippy::inline_always)]
fn lane_scales(layout: &Format, header: &[u8], group: usize, lane: usize) -> [(f32, f32); 2] {
    let half = |at: usize| f16_at(&header[at + 2 * lane..]);
    let unsigned = |at: usize| f32::from(header[at + lane]);
    let signed = |at: usize| f32::from(header[at + lane] as i8);
    let none = (0., 0.);
    match layout.scales {
        Scales::Half => [(half(32 * group), 0.), none],
        Scales::HalfShift => [(half(0), half(32)), none],
        Scales::Super32 => {
            let at = 64 + 32 * group;
            [(half(0) * unsigned(at), -(half(32) * unsigned(at + 16))), none]
        }
        Scales::Super16 => [0, 1].map(|s| {
            let at = 64 + 64 * group + 16 * s;
            (half(0) * unsigned(at), -(half(32) * unsigned(at + 32)))
        }),
        Scales::Signed16 => [0, 1].map(|s| (half(0) * layout.unit * signed(64 + 32 * group + 16 * s), 0.)),
        Scales::Signed32 => [(half(0) * signed(64 + 16 * group), 0.), none],
        Scales::Exponent => [(e8m0_half(header[16 * group + lane]), 0.), none],
    }
}
