//! Sixteen f32 lanes on every instruction set, so that an operation is written once and its rows come out bit-identical
//! whoever computes them. Knows arithmetic only.

mod element;
mod math;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(super) use element::Element;
pub(super) use math::{exp, gelu, gelu_tanh, sigmoid, tanh};

use half::{bf16, f16};

use super::Isa;

/// Lanes of a vector on every instruction set; also the tokens of a cache block, which attention relies on.
pub(super) const LANES: usize = 16;

/// An instruction set that is known to be there. Methods must be inlined into the function that enables it, which holds
/// as long as everything between [`dispatch`] and them is `#[inline(always)]`.
pub(super) trait Simd: Copy {
    /// Sixteen lanes.
    type V: Copy;

    /// Whether the register file holds some twenty vectors; else about six.
    const WIDE: bool;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, x: &[f32; LANES]) -> Self::V;
    fn load_f16(self, x: &[f16; LANES]) -> Self::V;
    fn load_bf16(self, x: &[bf16; LANES]) -> Self::V;
    fn store(self, x: Self::V, out: &mut [f32; LANES]);
    /// Rounds to nearest, ties to even.
    fn store_f16(self, x: Self::V, out: &mut [f16; LANES]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, in one rounding where the instruction set can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `yes` in the lanes where `a < b`, else `no`.
    fn select_lt(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// `x * 2^n` where the low mantissa bits of `magic = 1.5 * 2^23 + n` hold `n`, by adding to the exponent.
    fn scale_exponent(self, x: Self::V, magic: Self::V) -> Self::V;

    #[inline(always)]
    fn to_array(self, x: Self::V) -> [f32; LANES] {
        let mut out = [0.; LANES];
        self.store(x, &mut out);
        out
    }

    /// The first lanes from `x`, of at most [`LANES`] elements, the others zero.
    #[inline(always)]
    fn load_part(self, x: &[f32]) -> Self::V {
        let mut all = [0.; LANES];
        all[..x.len()].copy_from_slice(x);
        self.load(&all)
    }

    /// The first lanes to `out`, of at most [`LANES`] elements.
    #[inline(always)]
    fn store_part(self, x: Self::V, out: &mut [f32]) {
        let all = self.to_array(x);
        let len = out.len();
        out.copy_from_slice(&all[..len]);
    }

    /// Sum of the lanes, as a tree.
    #[inline(always)]
    fn sum(self, x: Self::V) -> f32 {
        let x = self.to_array(x);
        let mut eight = [0.; 8];
        for i in 0..8 {
            eight[i] = x[i] + x[i + 8];
        }
        let four = [eight[0] + eight[4], eight[1] + eight[5], eight[2] + eight[6], eight[3] + eight[7]];
        (four[0] + four[2]) + (four[1] + four[3])
    }

    /// Largest lane.
    #[inline(always)]
    fn largest(self, x: Self::V) -> f32 {
        self.to_array(x).into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// Work written for any instruction set. `run` must be `#[inline(always)]`.
pub(super) trait Task {
    /// What it returns.
    type Out;

    fn run<S: Simd>(self, simd: S) -> Self::Out;
}

/// Runs `task` compiled for `isa`, which must come from `CpuKernels::isa`: it has been found on this machine.
pub(super) fn dispatch<T: Task>(isa: Isa, task: T) -> T::Out {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni | Isa::Avx512Bf16 => x86::on_avx512(task),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni => x86::on_avx2(task),
        _ => task.run(portable::Portable),
    }
}
