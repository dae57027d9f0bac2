//! Super-blocks of 256 elements whose groups of 4 or 8 come from a lattice, and the ternary formats. All of them are
//! `d * unit * factor * value`: a factor per 16 elements, one of sixteen values per element. The products are exact in
//! f32, so their order does not matter. `make_grids.py` wrote the lattices.

use crate::WeightKind;

/// A block taken apart.
pub(crate) struct IqBlock {
    /// f16.
    pub(crate) d: u16,
    /// Per 16 elements.
    pub(crate) factors: [i8; 16],
    /// Indices into [`values`].
    pub(crate) codes: [u8; 256],
}

/// What the codes of `kind` stand for: magnitudes, then with bit 3 set their negatives; `None` for other kinds.
pub(crate) const fn values(kind: WeightKind) -> Option<[i8; 16]> {
    match kind {
        WeightKind::IQ2_XXS | WeightKind::IQ2_XS | WeightKind::IQ2_S => Some(signed([8, 25, 43, 0, 0, 0, 0, 0])),
        WeightKind::IQ3_XXS => Some(signed([4, 12, 20, 28, 36, 44, 52, 62])),
        WeightKind::IQ3_S => Some(signed([1, 3, 5, 7, 9, 11, 13, 15])),
        // Eight times -1, 0, 1 plus a delta of an eighth, or less it.
        WeightKind::IQ1_S | WeightKind::IQ1_M => Some([-7, 1, 9, 0, 0, 0, 0, 0, -9, -1, 7, 0, 0, 0, 0, 0]),
        WeightKind::TQ1_0 | WeightKind::TQ2_0 => Some([-1, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        _ => None,
    }
}

/// The power of two in every scale of `kind`.
pub(crate) const fn unit(kind: WeightKind) -> f32 {
    match kind {
        WeightKind::IQ2_XXS | WeightKind::IQ2_XS | WeightKind::IQ2_S | WeightKind::IQ1_S | WeightKind::IQ1_M => 0.125,
        WeightKind::IQ3_XXS => 0.25,
        _ => 1.,
    }
}

const fn signed(magnitudes: [i8; 8]) -> [i8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 8 {
        out[i] = magnitudes[i];
        out[8 + i] = -magnitudes[i];
        i += 1;
    }
    out
}

/// A lattice: `len` elements per point, `bits` bits each.
struct Grid {
    bytes: &'static [u8],
    bits: usize,
    len: usize,
}

const GRIDS: &[u8] = include_bytes!("grids.bin");
const IQ2_XXS: Grid = grid(0, 512, 2, 8);
const IQ2_XS: Grid = grid(512, 1024, 2, 8);
const IQ2_S: Grid = grid(1536, 2048, 2, 8);
const IQ3_XXS: Grid = grid(3584, 512, 4, 4);
const IQ3_S: Grid = grid(4096, 1024, 4, 4);
const IQ1: Grid = grid(5120, 4096, 2, 8);

const fn grid(start: usize, size: usize, bits: usize, len: usize) -> Grid {
    Grid { bytes: GRIDS.split_at(start).1.split_at(size).0, bits, len }
}

impl Grid {
    /// Writes point `index` to `out`; bit `i` of `negative` turns the sign of element `i`.
    fn point(&self, index: usize, negative: u8, out: &mut [u8]) {
        for (i, out) in out.iter_mut().take(self.len).enumerate() {
            let at = (index * self.len + i) * self.bits;
            let code = self.bytes[at / 8] >> (at % 8) & ((1 << self.bits) - 1);
            *out = code | (negative >> i & 1) << 3;
        }
    }
}

/// Seven stored signs and the eighth that makes their number even.
fn even(signs: u32) -> u8 {
    let signs = (signs & 127) as u8;
    signs | ((signs.count_ones() & 1) << 7) as u8
}

fn u16_at(bytes: &[u8], i: usize) -> u16 {
    u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])
}

fn u32_at(bytes: &[u8], i: usize) -> u32 {
    u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
}

/// The nibble `i` of `bytes`.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 2] >> (4 * (i % 2)) & 15
}

/// `2 n + 1`.
fn odd(n: u8) -> i8 {
    (2 * n + 1) as i8
}

/// Takes a block of one of these kinds apart.
pub(crate) fn iq_block(kind: WeightKind, block: &[u8]) -> IqBlock {
    let mut out = IqBlock { d: u16_at(block, 0), factors: [1; 16], codes: [0; 256] };
    let (body, codes) = (&block[2..], &mut out.codes);
    match kind {
        WeightKind::IQ2_XXS => {
            for (i, codes) in codes.chunks_exact_mut(8).enumerate() {
                let signs = u32_at(body, 2 * (i / 4) + 1);
                IQ2_XXS.point(body[8 * (i / 4) + i % 4].into(), even(signs >> (7 * (i % 4))), codes);
                out.factors[i / 2] = odd((signs >> 28) as u8);
            }
        }
        WeightKind::IQ2_XS => {
            for (i, codes) in codes.chunks_exact_mut(8).enumerate() {
                let q = u16_at(body, i);
                IQ2_XS.point(usize::from(q & 511), even(u32::from(q >> 9)), codes);
                out.factors[i / 2] = odd(nibble(&body[64..], i / 2));
            }
        }
        WeightKind::IQ2_S => {
            for (i, codes) in codes.chunks_exact_mut(8).enumerate() {
                let high = body[64 + i / 4] >> (2 * (i % 4)) & 3;
                IQ2_S.point(usize::from(body[i]) | usize::from(high) << 8, body[32 + i], codes);
                out.factors[i / 2] = odd(nibble(&body[72..], i / 2));
            }
        }
        WeightKind::IQ3_XXS => {
            for (i, codes) in codes.chunks_exact_mut(4).enumerate() {
                let signs = u32_at(&body[64..], i / 8);
                let negative = even(signs >> (7 * (i / 2 % 4))) >> (4 * (i % 2));
                IQ3_XXS.point(body[i].into(), negative, codes);
                out.factors[i / 4] = odd((signs >> 28) as u8);
            }
        }
        WeightKind::IQ3_S => {
            for (i, codes) in codes.chunks_exact_mut(4).enumerate() {
                let high = body[64 + i / 8] >> (i % 8) & 1;
                IQ3_S.point(usize::from(body[i]) | usize::from(high) << 8, nibble(&body[72..], i), codes);
                out.factors[i / 4] = odd(nibble(&body[104..], i / 8));
            }
        }
        WeightKind::IQ1_S => {
            for (i, codes) in codes.chunks_exact_mut(8).enumerate() {
                let high = u16_at(&body[32..], i / 4);
                let negative = if high & 0x8000 == 0 { 0 } else { 255 };
                IQ1.point(usize::from(body[i]) | usize::from(high >> (3 * (i % 4)) & 7) << 8, negative, codes);
                out.factors[i / 2] = odd((high >> 12 & 7) as u8);
            }
        }
        WeightKind::IQ1_M => {
            let scales: [u16; 4] = std::array::from_fn(|i| u16_at(&block[48..], i));
            out.d = (0..4).fold(0, |d, i| d | scales[i] >> 12 << (4 * i));
            for (i, codes) in codes.chunks_exact_mut(8).enumerate() {
                let high = nibble(&block[32..48], i);
                let negative = if high & 8 == 0 { 0 } else { 255 };
                IQ1.point(usize::from(block[i]) | usize::from(high & 7) << 8, negative, codes);
                out.factors[i / 2] = odd((scales[i / 8] >> (3 * (i / 2 % 4)) & 7) as u8);
            }
        }
        WeightKind::TQ1_0 => {
            out.d = u16_at(&block[52..], 0);
            let digit = |byte: u8, n: u32| ((u16::from(byte.wrapping_mul(3u8.pow(n))) * 3) >> 8) as u8;
            for (i, code) in codes.iter_mut().enumerate() {
                *code = match i {
                    0..160 => digit(block[i % 32], i as u32 / 32),
                    160..240 => digit(block[32 + i % 16], (i as u32 - 160) / 16),
                    _ => digit(block[48 + i % 4], (i as u32 - 240) / 4),
                };
            }
        }
        WeightKind::TQ2_0 => {
            out.d = u16_at(&block[64..], 0);
            for (i, code) in codes.iter_mut().enumerate() {
                *code = block[32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 3;
            }
        }
        _ => unreachable!("{kind:?} is not one of these kinds; this is a bug"),
    }
    out
}

/// Decodes a block.
pub(super) fn decode(kind: WeightKind, block: &[u8], out: &mut [f32]) {
    let values = values(kind).expect("only these kinds come here; this is a bug");
    let parts = iq_block(kind, block);
    let d = super::half_to_f32(parts.d) * unit(kind);
    for (i, (out, code)) in out.iter_mut().zip(parts.codes).enumerate() {
        *out = d * f32::from(parts.factors[i / 16]) * f32::from(values[usize::from(code)]);
    }
}
