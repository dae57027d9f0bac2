//! What a packed weight looks like. Sixteen rows make a tile, 32 columns a group, 2 to 8 groups a block: a header with the
//! block's scales, then each group's codes. Every piece is a multiple of 64 bytes.
//!
//! Codes are unsigned and come in quads: four consecutive columns of sixteen rows are 64 bytes, `[row][column]`, so that
//! one 512-bit register times four broadcast activation bytes is one step of sixteen dot products. A group has 8 quads.
//! An element is `scale * (code - offset) + shift`.

use crate::WeightKind;
use crate::quant::{FP4_VALUES, IQ4_VALUES, unit, values};

/// Rows of a tile.
pub(super) const ROWS: usize = 16;
/// Columns of a group.
pub(super) const GROUP: usize = 32;

/// How the codes of a group lie. `cuda/linear.cu` numbers them alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plane {
    /// 4 lines; line `j` holds quad `j` in its low and quad `j + 4` in its high nibbles.
    Four,
    /// `Four`, then a line whose bit `i` is the fifth bit of quad `i`.
    Five,
    /// `Four`, then two lines whose bits `2 i ..` are the high bits of quads `i` and `4 + i`.
    Six,
    /// 8 lines, one per quad.
    Eight,
    /// `Four` with the high bits of codes of eight; the low ones lie elsewhere in the same way. Not known to CUDA.
    Halves,
}

/// How the scales of a block lie in its header; every entry is one number per row. `cuda/linear.cu` numbers them alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scales {
    /// Per group f16 scale. 2 groups.
    Half,
    /// Per group f16 scale and f16 shift. 1 group.
    HalfShift,
    /// f16 scale and minimum of 8 groups; from byte 64 per group u8 factors of both.
    Super32,
    /// f16 scale and minimum of 8 groups; from byte 64 per group u8 factors of its halves' scales, then of their minima.
    Super16,
    /// f16 scale (times the format's unit) of 8 groups; from byte 64 per group i8 factors of its halves.
    Signed16,
    /// f16 scale of 8 groups; from byte 64 per group an i8 factor.
    Signed32,
    /// Per group an E8M0 exponent. 4 groups.
    Exponent,
}

/// The layout of one weight kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub(super) kind: WeightKind,
    pub(crate) plane: Plane,
    pub(crate) scales: Scales,
    /// log2 of the offset, if there is one.
    pub(super) offset: Option<u32>,
    /// What the stored nibbles stand for.
    pub(crate) table: Option<[u8; 16]>,
    /// The power of two in every block scale.
    pub(crate) unit: f32,
}

/// All formats; the position is what kernels are compiled for.
pub(super) const FORMATS: [Format; 23] = [
    format(WeightKind::Q4_0, Plane::Four, Scales::Half, Some(3)),
    format(WeightKind::Q5_0, Plane::Five, Scales::Half, Some(4)),
    format(WeightKind::Q8_0, Plane::Eight, Scales::Half, Some(7)),
    format(WeightKind::Q4_1, Plane::Four, Scales::HalfShift, None),
    format(WeightKind::Q5_1, Plane::Five, Scales::HalfShift, None),
    format(WeightKind::Q4_K, Plane::Four, Scales::Super32, None),
    format(WeightKind::Q5_K, Plane::Five, Scales::Super32, None),
    format(WeightKind::Q6_K, Plane::Six, Scales::Signed16, Some(5)),
    format(WeightKind::Q3_K, Plane::Four, Scales::Signed16, Some(2)),
    format(WeightKind::Q2_K, Plane::Four, Scales::Super16, None),
    with_table(IQ4_VALUES, format(WeightKind::IQ4_NL, Plane::Four, Scales::Half, Some(7))),
    with_table(IQ4_VALUES, format(WeightKind::IQ4_XS, Plane::Four, Scales::Signed32, Some(7))),
    with_table(FP4_VALUES, format(WeightKind::MXFP4, Plane::Four, Scales::Exponent, Some(4))),
    lattice(WeightKind::IQ2_XXS, 7),
    lattice(WeightKind::IQ2_XS, 7),
    lattice(WeightKind::IQ2_S, 7),
    lattice(WeightKind::IQ3_XXS, 7),
    lattice(WeightKind::IQ3_S, 4),
    lattice(WeightKind::IQ1_S, 4),
    lattice(WeightKind::IQ1_M, 4),
    lattice(WeightKind::TQ1_0, 4),
    lattice(WeightKind::TQ2_0, 4),
    format(WeightKind::Q8_0, Plane::Halves, Scales::Half, Some(7)),
];
/// Index of the format whose low codes lie apart; the only one that is not a kind's own.
pub(super) const HALVES: usize = FORMATS.len() - 1;

const fn format(kind: WeightKind, plane: Plane, scales: Scales, offset: Option<u32>) -> Format {
    Format { kind, plane, scales, offset, table: None, unit: 1. }
}

/// `format` with nibbles that stand for `values`, raised by its offset.
const fn with_table(values: [i8; 16], format: Format) -> Format {
    Format { table: Some(raised(values, format.offset_value() as i16)), ..format }
}

/// A kind that `quant::iq_block` takes apart, with `offset` as log2: values have few bits but blocks have tables.
const fn lattice(kind: WeightKind, offset: u32) -> Format {
    let Some(values) = values(kind) else { panic!("a kind without values") };
    Format { unit: unit(kind), ..with_table(values, format(kind, Plane::Four, Scales::Signed16, Some(offset))) }
}

/// The table with `offset` added, so that all values are unsigned.
const fn raised(values: [i8; 16], offset: i16) -> [u8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = (values[i] as i16 + offset) as u8;
        i += 1;
    }
    out
}

impl Format {
    /// Index in [`FORMATS`] of the format for `kind`.
    pub(super) fn index_of(kind: WeightKind) -> Option<usize> {
        FORMATS.iter().position(|format| format.kind == kind)
    }

    /// Bytes of the codes of one group.
    pub(super) const fn group_bytes(&self) -> usize {
        match self.plane {
            Plane::Four | Plane::Halves => 256,
            Plane::Five => 320,
            Plane::Six => 384,
            Plane::Eight => 512,
        }
    }

    /// Groups of one block.
    pub(super) const fn groups(&self) -> usize {
        match self.scales {
            Scales::HalfShift => 1,
            Scales::Half => 2,
            Scales::Exponent => 4,
            _ => 8,
        }
    }

    /// Bytes of a block's scales.
    pub(super) const fn header_bytes(&self) -> usize {
        match self.scales {
            Scales::Half | Scales::HalfShift | Scales::Exponent => 64,
            Scales::Super32 | Scales::Signed16 => 320,
            Scales::Super16 => 576,
            Scales::Signed32 => 192,
        }
    }

    /// Bytes of one block.
    pub(super) const fn block_bytes(&self) -> usize {
        self.header_bytes() + self.groups() * self.group_bytes()
    }

    /// Blocks of a row of `cols` columns; the last may be partly empty.
    pub(super) const fn blocks(&self, cols: usize) -> usize {
        cols.div_ceil(GROUP * self.groups())
    }

    /// Scales per group: one, or one for each half.
    pub(super) const fn halves(&self) -> usize {
        if matches!(self.scales, Scales::Super16 | Scales::Signed16) { 2 } else { 1 }
    }

    /// Whether elements have a shift.
    pub(super) const fn has_shift(&self) -> bool {
        matches!(self.scales, Scales::HalfShift | Scales::Super32 | Scales::Super16)
    }

    /// The offset itself.
    pub(crate) const fn offset_value(&self) -> i32 {
        match self.offset {
            Some(log2) => 1 << log2,
            None => 0,
        }
    }
}
