//! Blocks with one scale, of 32 elements where they are GGML's. In the four-bit planes byte `i` holds elements `i` (low)
//! and `i + 16` (high).

use super::{FP4_VALUES, IQ4_VALUES, e4m3, e8m0_half, f16_at};

/// Element `i` of a four-bit plane.
fn nibble(plane: &[u8], i: usize) -> u8 {
    if i < 16 { plane[i] & 15 } else { plane[i - 16] >> 4 }
}

/// Fifth bit of element `i`, in place: 0 or 16.
fn fifth(plane: &[u8], i: usize) -> u8 {
    (plane[i / 8] >> (i % 8) & 1) << 4
}

pub(super) fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block);
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * (f32::from(nibble(&block[2..], i)) - 8.);
    }
}

pub(super) fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (f16_at(block), f16_at(&block[2..]));
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(nibble(&block[4..], i)) + m;
    }
}

pub(super) fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block);
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * (f32::from(nibble(&block[6..], i) | fifth(&block[2..], i)) - 16.);
    }
}

pub(super) fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (f16_at(block), f16_at(&block[2..]));
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(nibble(&block[8..], i) | fifth(&block[4..], i)) + m;
    }
}

pub(super) fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(q as i8) * d;
    }
}

pub(super) fn iq4_nl(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block);
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(IQ4_VALUES[usize::from(nibble(&block[2..], i))]);
    }
}

pub(super) fn f8_e4m3(block: &[u8], out: &mut [f32]) {
    let (scale, codes) = block.split_at(4);
    let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = e4m3(code) * scale;
    }
}

pub(super) fn mxfp4(block: &[u8], out: &mut [f32]) {
    let d = e8m0_half(block[0]);
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(FP4_VALUES[usize::from(nibble(&block[1..], i))]);
    }
}
