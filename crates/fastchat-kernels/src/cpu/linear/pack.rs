//! Stored rows into the lanes of a tile. Codes and scales keep their stored values exactly; only their places change.

use super::format::{Format, Plane, Scales};
use crate::WeightKind;
use crate::quant::{iq_block, k4_scale_min, q3_scales};

/// Sets lane `lane` of a zeroed tile to a stored row.
pub(super) fn pack_row(format: &Format, row: &[u8], tile: &mut [u8], lane: usize) {
    let (elements, size) = format.kind.block();
    let (groups, per_source) = (format.groups(), elements / 32);
    let mut codes = [0u8; 256];
    for (i, source) in row.chunks_exact(size).enumerate() {
        read_codes(format.kind, source, &mut codes[..elements]);
        let first = i * per_source;
        for (g, codes) in codes[..elements].chunks_exact(32).enumerate() {
            let (block, group) = ((first + g) / groups, (first + g) % groups);
            let start = block * format.block_bytes() + format.header_bytes() + group * format.group_bytes();
            place(format.plane, codes, &mut tile[start..start + format.group_bytes()], lane);
        }
        let start = first / groups * format.block_bytes();
        write_scales(format, source, &mut tile[start..start + format.header_bytes()], first % groups, lane);
    }
}

/// Puts the 32 codes of a group into their lane, four at a time.
fn place(plane: Plane, codes: &[u8], group: &mut [u8], lane: usize) {
    let quad = |i: usize| u32::from_le_bytes([codes[4 * i], codes[4 * i + 1], codes[4 * i + 2], codes[4 * i + 3]]);
    let mut put = |line: usize, value: u32| {
        group[64 * line + 4 * lane..][..4].copy_from_slice(&value.to_le_bytes());
    };
    if plane == Plane::Eight {
        return (0..8).for_each(|i| put(i, quad(i)));
    }
    for i in 0..4 {
        put(i, quad(i) & 0x0f0f_0f0f | (quad(i + 4) & 0x0f0f_0f0f) << 4);
    }
    match plane {
        Plane::Five => put(4, (0..8).fold(0, |bits, i| bits | (quad(i) >> 4 & 0x0101_0101) << i)),
        Plane::Six => {
            let high = |first: usize| (0..4).fold(0, |bits, i| bits | (quad(first + i) >> 4 & 0x0303_0303) << (2 * i));
            put(4, high(0));
            put(5, high(4));
        }
        Plane::Four | Plane::Eight | Plane::Halves => {}
    }
}

fn nibbles(plane: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(plane.len());
    let (low, high) = (low.as_chunks_mut::<16>().0, high.as_chunks_mut::<16>().0);
    for ((plane, low), high) in plane.as_chunks::<16>().0.iter().zip(low).zip(high) {
        *low = plane.map(|byte| byte & 15);
        *high = plane.map(|byte| byte >> 4);
    }
}

fn fifth_bits(plane: &[u8], codes: &mut [u8]) {
    let bits = u32::from_le_bytes([plane[0], plane[1], plane[2], plane[3]]);
    for (i, quad) in codes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        // The product holds the four bits at distances of 7: bit k comes to lie at 8 k.
        let spread = ((bits >> (4 * i) & 15) * 0x0020_4081) & 0x0101_0101;
        *quad = (u32::from_le_bytes(*quad) | spread << 4).to_le_bytes();
    }
}

/// Codes of `BITS` bits: `planes` holds 32 bytes per 32 * (8 / BITS) elements, lowest bits first. Shifted by `TO`. Of
/// lengths and shifts that are known, so that vectors do it: this is most of what loading costs.
fn strided<const BITS: u32, const TO: u32>(plane: &[u8], codes: &mut [u8]) {
    let (planes, groups) = (plane.as_chunks::<32>().0, codes.as_chunks_mut::<32>().0);
    for (bytes, groups) in planes.iter().zip(groups.chunks_exact_mut(8 / BITS as usize)) {
        for (k, codes) in (0u32..).zip(groups) {
            for (code, byte) in codes.iter_mut().zip(bytes) {
                *code |= (byte >> (BITS * k) & ((1 << BITS) - 1)) << TO;
            }
        }
    }
}

/// The unsigned codes of one stored block, in column order.
fn read_codes(kind: WeightKind, block: &[u8], codes: &mut [u8]) {
    match kind {
        WeightKind::Q4_0 | WeightKind::IQ4_NL => nibbles(&block[2..], codes),
        WeightKind::Q4_1 => nibbles(&block[4..], codes),
        WeightKind::MXFP4 => nibbles(&block[1..], codes),
        WeightKind::Q5_0 => {
            nibbles(&block[6..], codes);
            fifth_bits(&block[2..], codes);
        }
        WeightKind::Q5_1 => {
            nibbles(&block[8..], codes);
            fifth_bits(&block[4..], codes);
        }
        WeightKind::Q8_0 => {
            for (code, byte) in codes.iter_mut().zip(&block[2..]) {
                *code = byte ^ 0x80;
            }
        }
        WeightKind::IQ4_XS => {
            for (plane, codes) in block[8..].chunks_exact(16).zip(codes.chunks_exact_mut(32)) {
                nibbles(plane, codes);
            }
        }
        _ => {
            codes.fill(0);
            match kind {
                WeightKind::Q2_K => strided::<2, 0>(&block[16..80], codes),
                WeightKind::Q3_K => {
                    strided::<2, 0>(&block[32..96], codes);
                    strided::<1, 2>(&block[..32], codes);
                }
                WeightKind::Q4_K => strided::<4, 0>(&block[16..], codes),
                WeightKind::Q5_K => {
                    strided::<4, 0>(&block[48..], codes);
                    strided::<1, 4>(&block[16..48], codes);
                }
                WeightKind::Q6_K => {
                    for (plane, codes) in block[..128].chunks_exact(64).zip(codes.chunks_exact_mut(128)) {
                        nibbles(plane, codes);
                    }
                    strided::<2, 4>(&block[128..192], codes);
                }
                _ => codes.copy_from_slice(&iq_block(kind, block).codes),
            }
        }
    }
}

/// Writes the scales of a stored block, whose first group is `group`, into the header.
fn write_scales(format: &Format, source: &[u8], header: &mut [u8], group: usize, lane: usize) {
    let mut half = |at: usize, bytes: &[u8]| header[at + 2 * lane..][..2].copy_from_slice(&bytes[..2]);
    match format.scales {
        Scales::Half => half(32 * group, source),
        Scales::HalfShift => {
            half(0, source);
            half(32, &source[2..]);
        }
        Scales::Exponent => header[16 * group + lane] = source[0],
        Scales::Super32 => {
            half(0, source);
            half(32, &source[2..]);
            let (scales, mins) = k4_scale_min(&source[4..16]);
            for g in 0..8 {
                header[64 + 32 * g + lane] = scales[g];
                header[64 + 32 * g + 16 + lane] = mins[g];
            }
        }
        Scales::Super16 => {
            half(0, &source[80..]);
            half(32, &source[82..]);
            for (s, packed) in source[..16].iter().enumerate() {
                let at = 64 + 64 * (s / 2) + 16 * (s % 2) + lane;
                header[at] = packed & 15;
                header[at + 32] = packed >> 4;
            }
        }
        Scales::Signed16 => {
            let scales: [i8; 16] = match format.kind {
                WeightKind::Q3_K => {
                    half(0, &source[108..]);
                    q3_scales(&source[96..108])
                }
                WeightKind::Q6_K => {
                    half(0, &source[208..]);
                    std::array::from_fn(|s| source[192 + s] as i8)
                }
                kind => {
                    let block = iq_block(kind, source);
                    half(0, &block.d.to_le_bytes());
                    block.factors
                }
            };
            for (s, scale) in scales.into_iter().enumerate() {
                header[64 + 16 * s + lane] = scale as u8;
            }
        }
        Scales::Signed32 => {
            half(0, source);
            for (g, scale) in crate::quant::iq4_xs_scales(source).into_iter().enumerate() {
                header[64 + 16 * g + lane] = scale as u8;
            }
        }
    }
}
