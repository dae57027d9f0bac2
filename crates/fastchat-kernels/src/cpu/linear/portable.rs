//! The quantised product in plain loops: for machines without a path of their own, and to check the others by.

use super::activation::RowBlock;
use super::format::{FORMATS, ROWS};
use super::tiles::{group_scales, unpack};

/// One tile times a block of rows: sums `[row][tile row]`.
pub(super) fn product(format: usize, tile: &[u8], block: RowBlock, sums: &mut [[f32; ROWS]]) {
    let layout = &FORMATS[format];
    let mut codes = [0; 512];
    let mut group = 0;
    for bytes in tile.chunks_exact(layout.block_bytes()) {
        let (header, groups) = bytes.split_at(layout.header_bytes());
        for (g, bytes) in groups.chunks_exact(layout.group_bytes()).enumerate() {
            unpack(layout, bytes, &mut codes);
            let scales = group_scales(layout, header, g);
            for (x, sums) in block.data[group * block.rows..][..block.rows].iter().zip(sums.iter_mut()) {
                for half in 0..layout.halves() {
                    let (quads, which) =
                        if layout.halves() == 2 { (4 * half..4 * half + 4, 1 + half) } else { (0..8, 0) };
                    let mut dots = [x.minus_sum[which] * layout.offset_value(); ROWS];
                    for quad in quads {
                        for (lane, dot) in dots.iter_mut().enumerate() {
                            for column in 0..4 {
                                let code = i32::from(codes[64 * quad + 4 * lane + column]);
                                *dot += code * i32::from(x.codes[4 * quad + column]);
                            }
                        }
                    }
                    for lane in 0..ROWS {
                        sums[lane] += dots[lane] as f32 * (scales.scale[half][lane] * x.scale);
                        if layout.has_shift() {
                            sums[lane] += scales.shift[half][lane] * x.sum[which];
                        }
                    }
                }
            }
            group += 1;
        }
    }
}
