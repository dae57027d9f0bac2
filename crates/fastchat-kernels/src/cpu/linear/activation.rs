//! Input rows rounded to 8 bits, in the blocks of rows that a kernel works on at once.

use super::format::GROUP;
use super::group::Group;
use super::rounding::round_row;
use crate::cpu::host::Disjoint;
use crate::cpu::{Isa, Pool};

/// Columns are padded to a multiple of this, the largest block of any weight format, with zeros.
const PADDED: usize = 256;

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
            data.resize(len, Group::EMPTY);
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
                block[cols.div_ceil(GROUP) * size..].fill(Group::EMPTY);
            }
        };
        pool.run(rows.div_ceil(BLOCK_ROWS), &round);
        Self { groups, data: &data[..len] }
    }

    /// All groups, block after block.
    pub(super) fn data(&self) -> &'a [Group] {
        self.data
    }

    /// The block of `rows` rows that begins with row `first`.
    pub(super) fn block(&self, first: usize, rows: usize) -> RowBlock<'a> {
        RowBlock { rows, data: &self.data[first * self.groups..(first + rows) * self.groups] }
    }
}
