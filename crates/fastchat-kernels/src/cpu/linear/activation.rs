//! Input rows rounded to 8 bits: one scale per group of 32 columns, with the sums that offsets and shifts need.

use super::format::GROUP;
use crate::cpu::host::Disjoint;
use crate::cpu::{Isa, Pool};

/// Columns are padded to a multiple of this, the largest block of any weight format, with zeros.
const PADDED: usize = 256;

/// One group of one row: `x[k] ~ scale * codes[k]`. Exactly a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(in crate::cpu) struct Group {
    pub(super) codes: [i8; GROUP],
    pub(super) scale: f32,
    /// Minus the sum of the codes: of all, then of either half.
    pub(super) minus_sum: [i32; 3],
    /// `scale` times the sum of the codes: of all, then of either half.
    pub(super) sum: [f32; 3],
    unused: f32,
}

const EMPTY: Group = Group { codes: [0; GROUP], scale: 0., minus_sum: [0; 3], sum: [0.; 3], unused: 0. };

/// Rows, in blocks of 8, 4, 2 or 1 that a kernel works on at once; a block lies `[group][row]`.
pub(super) struct Activation<'a> {
    groups: usize,
    data: &'a [Group],
}

/// Most rows of a block.
pub(super) const BLOCK_ROWS: usize = 8;

/// A block of rows.
#[derive(Clone, Copy)]
pub(super) struct RowBlock<'a> {
    pub(super) rows: usize,
    /// `[group][row]`.
    pub(super) data: &'a [Group],
}

/// The first row and the size of each block of `rows` rows.
pub(super) fn blocks(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let size = [BLOCK_ROWS, 4, 2, 1].into_iter().find(|&size| first + size <= rows)?;
        first += size;
        Some((first - size, size))
    })
}

impl<'a> Activation<'a> {
    /// Rounds `x [rows, cols]` into `data`, which may hold what was rounded before.
    pub(super) fn quantize(x: &[f32], cols: usize, isa: Isa, pool: &Pool, data: &'a mut Vec<Group>) -> Self {
        let rows = x.len() / cols.max(1);
        let groups = cols.div_ceil(PADDED) * (PADDED / GROUP);
        let len = rows * groups;
        if data.len() < len {
            data.resize(len, EMPTY);
        }
        let shared = Disjoint::new(&mut data[..len]);
        let round = |eight: usize| {
            let start = eight * BLOCK_ROWS;
            for (first, size) in blocks(BLOCK_ROWS.min(rows - start)) {
                let first = start + first;
                // SAFETY: blocks lie one after the other, and each belongs to one call.
                let block = unsafe { shared.piece(first * groups..(first + size) * groups) };
                for (r, row) in x[first * cols..(first + size) * cols].chunks_exact(cols).enumerate() {
                    round_row(isa, row, &mut block[r..], size);
                }
                block[cols.div_ceil(GROUP) * size..].fill(EMPTY);
            }
        };
        pool.run(rows.div_ceil(BLOCK_ROWS), &round);
        Self { groups, data: &data[..len] }
    }

    /// The block of `rows` rows that begins with row `first`.
    pub(super) fn block(&self, first: usize, rows: usize) -> RowBlock<'a> {
        RowBlock { rows, data: &self.data[first * self.groups..(first + rows) * self.groups] }
    }
}

/// Rounds a row; its groups lie `step` apart in `out`.
fn round_row(isa: Isa, row: &[f32], out: &mut [Group], step: usize) {
    #[cfg(target_arch = "x86_64")]
    if let (Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni, (groups, [])) = (isa, row.as_chunks()) {
        // SAFETY: this machine has the instruction set `isa`, which includes AVX2.
        return unsafe { super::avx2::round_row(groups, out, step) };
    }
    let _ = isa;
    for (x, out) in row.chunks(GROUP).zip(out.iter_mut().step_by(step)) {
        round(x, out);
    }
}

/// The scale that takes 127 to `largest`, and its inverse.
pub(super) fn scale_of(largest: f32) -> (f32, f32) {
    (largest / 127., if largest == 0. { 0. } else { 127. / largest })
}

/// Rounds up to 32 values to nearest (ties to even), the largest magnitude to 127.
fn round(x: &[f32], out: &mut Group) {
    // As integers magnitudes compare alike, and NaN is the largest: it stays visible in the scale.
    let largest = f32::from_bits(x.iter().fold(0, |max, value| max.max(value.abs().to_bits())));
    let (scale, inverse) = scale_of(largest);
    out.codes = [0; GROUP];
    for (code, value) in out.codes.iter_mut().zip(x) {
        *code = (value * inverse).round_ties_even() as i8;
    }
    let sum = |codes: &[i8]| codes.iter().map(|&code| i32::from(code)).sum::<i32>();
    let sums = [sum(&out.codes[..16]), sum(&out.codes[16..])];
    out.set_sums(scale, sums);
}

impl Group {
    /// Sets all but the codes, whose halves sum to `first` and `second`.
    #[inline]
    pub(super) fn set_sums(&mut self, scale: f32, [first, second]: [i32; 2]) {
        let sums = [first + second, first, second];
        self.scale = scale;
        self.minus_sum = sums.map(|sum| -sum);
        self.sum = sums.map(|sum| scale * sum as f32);
    }
}
