//! The quantised product in plain loops: for machines without a path of their own, and to check the others by.

use super::activation::RowBlock;
use super::format::{FORMATS, Format, GROUP, ROWS};
use super::tiles::{group_scales, unpack};

/// One tile times a block of rows: sums `[row][tile row]`.
pub(super) fn product(format: usize, tile: &[u8], block: RowBlock<'_>, sums: &mut [[f32; ROWS]]) {
    let layout = &FORMATS[format];
    sums.fill([0.; ROWS]);
    let mut rows = block.data.chunks_exact(block.rows);
    for bytes in tile.chunks_exact(layout.block_bytes()) {
        let (header, groups) = bytes.split_at(layout.header_bytes());
        for ((g, bytes), rows) in groups.chunks_exact(layout.group_bytes()).enumerate().zip(&mut rows) {
            let codes = columns(layout, bytes);
            let scales = group_scales(layout, header, g);
            for (x, sums) in rows.iter().zip(sums.iter_mut()) {
                let mut dots = dot(&codes, &x.codes);
                if layout.halves() == 1 {
                    dots[0] = std::array::from_fn(|lane| dots[0][lane] + dots[1][lane]);
                }
                for (half, dots) in dots.iter().enumerate().take(layout.halves()) {
                    let which = if layout.halves() == 2 { 1 + half } else { 0 };
                    let offset = x.minus_sum[which] * layout.offset_value();
                    for (lane, sum) in sums.iter_mut().enumerate() {
                        *sum += (dots[lane] + offset) as f32 * (scales.scale[half][lane] * x.scale);
                        if layout.has_shift() {
                            *sum += scales.shift[half][lane] * x.sum[which];
                        }
                    }
                }
            }
        }
    }
}

/// Integer sums of either half of a group.
#[inline(never)] // merged with its caller it is not vectorised
fn dot(codes: &[[i16; ROWS]; GROUP], x: &[i8; GROUP]) -> [[i32; ROWS]; 2] {
    let mut dots = [[0; ROWS]; 2];
    for (half, dots) in dots.iter_mut().enumerate() {
        let mut sums = [0i32; ROWS];
        for k in 16 * half..16 * half + 16 {
            let x = i16::from(x[k]);
            for lane in 0..ROWS {
                // At most 255 * 127.
                sums[lane] += i32::from(codes[k][lane] * x);
            }
        }
        *dots = sums;
    }
    dots
}

/// The codes of a group, `[column][row]`: loops over rows vectorise.
#[inline(never)]
fn columns(layout: &Format, bytes: &[u8]) -> [[i16; ROWS]; GROUP] {
    let mut codes = [0; 512];
    unpack(layout, bytes, &mut codes);
    if let Some(table) = layout.table {
        for code in &mut codes {
            *code = table[usize::from(*code & 15)];
        }
    }
    let mut out = [[0; ROWS]; GROUP];
    for (quad, codes) in codes.chunks_exact(4 * ROWS).enumerate() {
        for (lane, codes) in codes.chunks_exact(4).enumerate() {
            for (k, &code) in codes.iter().enumerate() {
                out[4 * quad + k][lane] = i16::from(code);
            }
        }
    }
    out
}
