//! What a cache may hold: f32, f16, bf16, loaded as and stored from f32 lanes.

use candle_core::{CpuStorage, WithDType};
use half::{bf16, f16};

use super::{LANES, Simd};

/// A stored number.
pub(in crate::cpu) trait Element: WithDType + Default {
    /// Whether attention always reads it by way of a copy in f32: types too rare to be compiled for.
    const WIDEN: bool;

    fn load<S: Simd>(simd: S, x: &[Self; LANES]) -> S::V;
    fn store<S: Simd>(simd: S, x: S::V, out: &mut [Self; LANES]);
    /// The elements of a storage of this type.
    fn stored(storage: &mut CpuStorage) -> Option<&mut [Self]>;

    /// The first lanes from `x`, of at most [`LANES`] elements, the others zero.
    #[inline(always)]
    fn load_part<S: Simd>(simd: S, x: &[Self]) -> S::V {
        let mut all = [Self::default(); LANES];
        all[..x.len()].copy_from_slice(x);
        Self::load(simd, &all)
    }
}

impl Element for f32 {
    const WIDEN: bool = false;

    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self; LANES]) -> S::V {
        simd.load(x)
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, x: S::V, out: &mut [Self; LANES]) {
        simd.store(x, out);
    }

    fn stored(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::F32(elements) = storage { Some(elements) } else { None }
    }
}

impl Element for f16 {
    const WIDEN: bool = false;

    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self; LANES]) -> S::V {
        simd.load_f16(x)
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, x: S::V, out: &mut [Self; LANES]) {
        simd.store_f16(x, out);
    }

    fn stored(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::F16(elements) = storage { Some(elements) } else { None }
    }
}

impl Element for bf16 {
    const WIDEN: bool = true;

    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self; LANES]) -> S::V {
        simd.load_bf16(x)
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, x: S::V, out: &mut [Self; LANES]) {
        *out = simd.to_array(x).map(bf16::from_f32);
    }

    fn stored(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::BF16(elements) = storage { Some(elements) } else { None }
    }
}
