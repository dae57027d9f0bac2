//! What rows rounded to 8 bits are made of: one scale per group of 32 columns, with the sums that offsets and shifts need.

use super::format::GROUP;

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

impl Group {
    /// Zeros.
    pub(super) const EMPTY: Self = Self { codes: [0; GROUP], scale: 0., minus_sum: [0; 3], sum: [0.; 3], unused: 0. };

    /// Sets all but the codes, whose halves sum to `first` and `second`.
    #[inline]
    pub(super) fn set_sums(&mut self, scale: f32, [first, second]: [i32; 2]) {
        let sums = [first + second, first, second];
        self.scale = scale;
        self.minus_sum = sums.map(|sum| -sum);
        self.sum = sums.map(|sum| scale * sum as f32);
    }
}
