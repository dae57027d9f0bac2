//! Super-blocks of 256 elements whose sub-blocks of 16 or 32 have small integer scales.

use super::{IQ4_VALUES, f16_at};

/// Scales and minima (6 bits each) of the eight sub-blocks of `Q4_K` and `Q5_K`, from their 12 bytes.
pub(crate) fn k4_scale_min(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        let (scale, min, low) = (packed[j], packed[4 + j], packed[8 + j]);
        scales[j] = scale & 63;
        mins[j] = min & 63;
        scales[4 + j] = low & 15 | (scale >> 6) << 4;
        mins[4 + j] = low >> 4 | (min >> 6) << 4;
    }
    (scales, mins)
}

/// Signed scales (6 bits, less 32) of the sixteen sub-blocks of `Q3_K`, from their 12 bytes.
pub(crate) fn q3_scales(packed: &[u8]) -> [i8; 16] {
    std::array::from_fn(|j| {
        let low = packed[j % 8] >> (4 * (j / 8)) & 15;
        let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// Bits `2 * k ..` of byte `i` of each 32-byte group: element `128 * g + 32 * k + i`.
fn two_bits(plane: &[u8], element: usize) -> u8 {
    let (group, k, i) = (element / 128, element / 32 % 4, element % 32);
    plane[32 * group + i] >> (2 * k) & 3
}

/// Low four bits of the first 32 elements of each 64 and high four bits of the others.
fn four_bits(plane: &[u8], element: usize) -> u8 {
    let (group, half, i) = (element / 64, element / 32 % 2, element % 32);
    plane[32 * group + i] >> (4 * half) & 15
}

pub(super) fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, plane) = (&block[..16], &block[16..80]);
    let (d, dmin) = (f16_at(&block[80..]), f16_at(&block[82..]));
    for (i, out) in out.iter_mut().enumerate() {
        let scale = scales[i / 16];
        *out = d * f32::from(scale & 15) * f32::from(two_bits(plane, i)) - dmin * f32::from(scale >> 4);
    }
}

pub(super) fn q3_k(block: &[u8], out: &mut [f32]) {
    let (mask, plane) = (&block[..32], &block[32..96]);
    let (scales, d) = (q3_scales(&block[96..108]), f16_at(&block[108..]));
    for (i, out) in out.iter_mut().enumerate() {
        // The offset is zero where the mask is one.
        let high = mask[i % 32] >> (i / 32) & 1;
        let q = (two_bits(plane, i) | high << 2) as i8 - 4;
        *out = d * f32::from(scales[i / 16]) * f32::from(q);
    }
}

pub(super) fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16_at(block), f16_at(&block[2..]));
    let (scales, mins) = k4_scale_min(&block[4..16]);
    for (i, out) in out.iter_mut().enumerate() {
        let q = four_bits(&block[16..], i);
        *out = d * f32::from(scales[i / 32]) * f32::from(q) - dmin * f32::from(mins[i / 32]);
    }
}

pub(super) fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16_at(block), f16_at(&block[2..]));
    let (scales, mins) = k4_scale_min(&block[4..16]);
    for (i, out) in out.iter_mut().enumerate() {
        let q = four_bits(&block[48..], i) | (block[16 + i % 32] >> (i / 32) & 1) << 4;
        *out = d * f32::from(scales[i / 32]) * f32::from(q) - dmin * f32::from(mins[i / 32]);
    }
}

pub(super) fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = f16_at(&block[208..]);
    for (i, out) in out.iter_mut().enumerate() {
        // Each 64 bytes of the low plane hold 64 low nibbles, then 64 high ones.
        let (group, half, byte) = (i / 128, i / 64 % 2, i % 64);
        let q = low[64 * group + byte] >> (4 * half) & 15 | two_bits(high, i) << 4;
        *out = d * f32::from(scales[i / 16] as i8) * f32::from(q as i8 - 32);
    }
}

pub(super) fn q8_k(block: &[u8], out: &mut [f32]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (out, &q) in out.iter_mut().zip(&block[4..260]) {
        *out = d * f32::from(q as i8);
    }
}

/// Signed scales (6 bits, less 32) of the eight sub-blocks of an `IQ4_XS` block.
pub(crate) fn iq4_xs_scales(block: &[u8]) -> [i8; 8] {
    let high = u16::from_le_bytes([block[2], block[3]]);
    std::array::from_fn(|group| {
        let low = block[4 + group / 2] >> (4 * (group % 2)) & 15;
        (low | ((high >> (2 * group) & 3) as u8) << 4) as i8 - 32
    })
}

pub(super) fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let (d, scales) = (f16_at(block), iq4_xs_scales(block));
    for (i, out) in out.iter_mut().enumerate() {
        let (group, i) = (i / 32, i % 32);
        let byte = block[8 + 16 * group + i % 16];
        let q = if i < 16 { byte & 15 } else { byte >> 4 };
        *out = d * f32::from(scales[group]) * f32::from(IQ4_VALUES[usize::from(q)]);
    }
}
