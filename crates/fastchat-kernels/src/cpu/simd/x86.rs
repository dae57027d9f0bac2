//! Lanes in one AVX-512 register or two AVX2 registers. Values of these types are made only inside the two functions
//! that enable their instructions.

#[allow(clippy::wildcard_imports)] // some fifty intrinsics
use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{LANES, Simd, Task};

/// AVX-512 F, BW, DQ, VL.
#[derive(Clone, Copy)]
struct Avx512(());

/// AVX2 with FMA and F16C.
#[derive(Clone, Copy)]
struct Avx2(());

pub(super) fn on_avx512<T: Task>(task: T) -> T::Out {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    fn inner<T: Task>(task: T) -> T::Out {
        task.run(Avx512(()))
    }
    // SAFETY: `dispatch` is called with an instruction set that `Isa::detect` has found.
    unsafe { inner(task) }
}

pub(super) fn on_avx2<T: Task>(task: T) -> T::Out {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn inner<T: Task>(task: T) -> T::Out {
        task.run(Avx2(()))
    }
    // SAFETY: `dispatch` is called with an instruction set that `Isa::detect` has found.
    unsafe { inner(task) }
}

/// The methods of `Simd`, each one expression over intrinsics.
macro_rules! methods {
    ($(fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? $body:block)*) => {$(
        #[inline(always)]
        fn $name(self, $($argument: $type),*) $(-> $result)? {
            // SAFETY: `self` exists only where its instructions do, and every pointer comes from an array that is as
            // long as what is loaded or stored; unaligned forms are used throughout.
            unsafe { $body }
        }
    )*};
}

impl Simd for Avx512 {
    type V = __m512;

    const WIDE: bool = true;

    methods! {
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn load(x: &[f32; LANES]) -> __m512 { _mm512_loadu_ps(x.as_ptr()) }
        fn load_f16(x: &[f16; LANES]) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
        fn load_bf16(x: &[bf16; LANES]) -> __m512 {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
        fn store(x: __m512, out: &mut [f32; LANES]) { _mm512_storeu_ps(out.as_mut_ptr(), x) }
        fn store_f16(x: __m512, out: &mut [f16; LANES]) {
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
        }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn select_lt(a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
            _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes)
        }
        fn scale_exponent(x: __m512, magic: __m512) -> __m512 {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(magic));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), n))
        }
        fn largest(x: __m512) -> f32 { _mm512_reduce_max_ps(x) }
    }
}

/// Lanes 0 to 7 and 8 to 15.
#[derive(Clone, Copy)]
struct Pair(__m256, __m256);

impl Simd for Avx2 {
    type V = Pair;

    const WIDE: bool = false;

    methods! {
        fn splat(x: f32) -> Pair { Pair(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
        fn load(x: &[f32; LANES]) -> Pair { Pair(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x[8..].as_ptr())) }
        fn load_f16(x: &[f16; LANES]) -> Pair {
            let low = _mm_loadu_si128(x.as_ptr().cast());
            let high = _mm_loadu_si128(x[8..].as_ptr().cast());
            Pair(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
        }
        fn load_bf16(x: &[bf16; LANES]) -> Pair {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(x[8..].as_ptr().cast()));
            let (low, high) = (_mm256_slli_epi32::<16>(low), _mm256_slli_epi32::<16>(high));
            Pair(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
        fn store(x: Pair, out: &mut [f32; LANES]) {
            _mm256_storeu_ps(out.as_mut_ptr(), x.0);
            _mm256_storeu_ps(out[8..].as_mut_ptr(), x.1);
        }
        fn store_f16(x: Pair, out: &mut [f16; LANES]) {
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.0));
            _mm_storeu_si128(out[8..].as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.1));
        }
        fn add(a: Pair, b: Pair) -> Pair { Pair(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
        fn sub(a: Pair, b: Pair) -> Pair { Pair(_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
        fn mul(a: Pair, b: Pair) -> Pair { Pair(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
        fn div(a: Pair, b: Pair) -> Pair { Pair(_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
        fn max(a: Pair, b: Pair) -> Pair { Pair(_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
        fn min(a: Pair, b: Pair) -> Pair { Pair(_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)) }
        fn fma(a: Pair, b: Pair, c: Pair) -> Pair {
            Pair(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1))
        }
        fn select_lt(a: Pair, b: Pair, yes: Pair, no: Pair) -> Pair {
            Pair(
                _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0)),
                _mm256_blendv_ps(no.1, yes.1, _mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1)),
            )
        }
        fn scale_exponent(x: Pair, magic: Pair) -> Pair {
            let low = _mm256_slli_epi32::<23>(_mm256_castps_si256(magic.0));
            let high = _mm256_slli_epi32::<23>(_mm256_castps_si256(magic.1));
            let low = _mm256_add_epi32(_mm256_castps_si256(x.0), low);
            let high = _mm256_add_epi32(_mm256_castps_si256(x.1), high);
            Pair(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
}
