//! Exponentials and what is made of them, lane by lane, to about 1e-7 of the value. Coefficients are least squares fits
//! at Chebyshev nodes.

use super::Simd;

/// Below this `exp` is zero: its result would lose bits as a denormal.
const EXP_MIN: f32 = -87.;
/// Above this `exp` stays what it is here.
const EXP_MAX: f32 = 88.7;
/// `1.5 * 2^23`: adding it rounds to an integer and leaves that integer in the low bits.
const MAGIC: f32 = 12_582_912.;
/// ln 2 in two parts; the product of the first with an exponent is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `sum c[i] x^i`.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(simd: S, x: S::V, c: [f32; N]) -> S::V {
    let mut sum = simd.splat(c[N - 1]);
    for i in 1..N {
        sum = simd.fma(sum, x, simd.splat(c[N - 1 - i]));
    }
    sum
}

/// `e^x`.
#[inline(always)]
pub(in crate::cpu) fn exp<S: Simd>(simd: S, x: S::V) -> S::V {
    let bounded = simd.max(simd.min(x, simd.splat(EXP_MAX)), simd.splat(EXP_MIN));
    let magic = simd.fma(bounded, simd.splat(std::f32::consts::LOG2_E), simd.splat(MAGIC));
    let n = simd.sub(magic, simd.splat(MAGIC));
    let r = simd.fma(n, simd.splat(-LN2_HIGH), bounded);
    let r = simd.fma(n, simd.splat(-LN2_LOW), r);
    // e^r = 1 + r + r^2 P(r) for |r| <= ln 2 / 2.
    let p = polynomial(simd, r, [1., 0.5, 0.166_665_76, 0.041_666_467, 8.363_182e-3, 1.393_365_2e-3]);
    let p = simd.fma(r, p, simd.splat(1.));
    simd.select_lt(x, simd.splat(EXP_MIN), simd.splat(0.), simd.scale_exponent(p, magic))
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(in crate::cpu) fn sigmoid<S: Simd>(simd: S, x: S::V) -> S::V {
    let one = simd.splat(1.);
    simd.div(one, simd.add(one, exp(simd, simd.sub(simd.splat(0.), x))))
}

/// Hyperbolic tangent.
#[inline(always)]
pub(in crate::cpu) fn tanh<S: Simd>(simd: S, x: S::V) -> S::V {
    // 1 - 2 / (e^2x + 1) cancels near zero, where the Taylor series is exact enough.
    let e = exp(simd, simd.add(x, x));
    let far = simd.sub(simd.splat(1.), simd.div(simd.splat(2.), simd.add(e, simd.splat(1.))));
    let square = simd.mul(x, x);
    let series = [-1. / 3., 2. / 15., -17. / 315., 62. / 2835., -1382. / 155_925.];
    let near = polynomial(simd, square, series);
    let near = simd.fma(simd.mul(near, square), x, x);
    simd.select_lt(square, simd.splat(0.16), near, far)
}

/// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
#[inline(always)]
pub(in crate::cpu) fn gelu_tanh<S: Simd>(simd: S, x: S::V) -> S::V {
    // (1 + tanh y) / 2 = sigmoid(2 y).
    let factor = 2. * 0.797_884_6;
    let cubic = simd.fma(simd.mul(x, x), simd.splat(factor * 0.044_715), simd.splat(factor));
    simd.mul(x, sigmoid(simd, simd.mul(x, cubic)))
}

/// `x / 2 (1 + erf(x / sqrt 2))`.
#[inline(always)]
pub(in crate::cpu) fn gelu<S: Simd>(simd: S, x: S::V) -> S::V {
    let zero = simd.splat(0.);
    let magnitude = simd.max(x, simd.sub(zero, x));
    let z = simd.mul(magnitude, simd.splat(std::f32::consts::FRAC_1_SQRT_2));
    // erfc(z) = t e^(-z^2 + Q(t)) with t = 1 / (1 + z / 2), for z >= 0.
    let t = simd.div(simd.splat(1.), simd.fma(z, simd.splat(0.5), simd.splat(1.)));
    let q = polynomial(
        simd,
        t,
        [
            -1.265_459_5,
            0.998_868_4,
            0.384_606_36,
            0.044_362_344,
            -0.027_512_092,
            -0.025_994_693,
            -0.761_984_2,
            1.206_169_5,
            -0.701_847_26,
            0.148_791_15,
        ],
    );
    let exponent = simd.fma(simd.sub(zero, z), z, q);
    let erfc = simd.mul(t, exp(simd, exponent));
    let tail = simd.mul(simd.mul(magnitude, simd.splat(0.5)), erfc);
    // Negative x: x erfc / 2; positive x: x - x erfc / 2.
    simd.sub(simd.max(x, zero), tail)
}

#[cfg(test)]
mod tests {
    use super::super::{LANES, Simd, Task, dispatch};
    use super::{exp, gelu, gelu_tanh, sigmoid, tanh};
    use crate::cpu::Isa;

    struct All(f32);

    impl Task for All {
        type Out = [f32; 5];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [f32; 5] {
            let x = simd.splat(self.0);
            let lanes: [[f32; LANES]; 5] =
                [exp(simd, x), sigmoid(simd, x), tanh(simd, x), gelu_tanh(simd, x), gelu(simd, x)]
                    .map(|v| simd.to_array(v));
            lanes.map(|lanes| lanes[7])
        }
    }

    /// Complementary error function by its continued fraction (large z) or series.
    fn erfc(z: f64) -> f64 {
        if z.abs() < 2.5 {
            let mut term = z;
            let mut sum = z;
            for n in 1..80 {
                term *= -z * z / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            return 1. - sum * 2. / std::f64::consts::PI.sqrt();
        }
        let fraction = (1..200).rev().fold(0., |rest, n| f64::from(n) / 2. / (z.abs() + rest));
        let tail = (-z * z).exp() / (z.abs() + fraction) / std::f64::consts::PI.sqrt();
        if z > 0. { tail } else { 2. - tail }
    }

    #[test]
    fn functions_match_double_precision() {
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512Vnni].into_iter().filter(|isa| *isa <= Isa::detect()) {
            for step in -4000..4000 {
                let x = step as f32 * 0.0217;
                let y = f64::from(x);
                let inner = 0.797_884_560_802_865_4 * (y + 0.044_715 * y * y * y);
                let expected = [
                    y.exp(),
                    1. / (1. + (-y).exp()),
                    y.tanh(),
                    y / (1. + (-2. * inner).exp()),
                    y * erfc(-y * std::f64::consts::FRAC_1_SQRT_2) / 2.,
                ];
                for (i, (actual, expected)) in dispatch(isa, All(x)).into_iter().zip(expected).enumerate() {
                    let error = (f64::from(actual) - expected).abs();
                    // Far in the tails of GELU the rounding of the exponent shows; the values vanish there.
                    assert!(error < 1e-6 * expected.abs() + 1e-9, "{isa:?} {i} at {x}: {actual} not {expected}");
                }
            }
            let [exp, sigmoid, tanh, ..] = dispatch(isa, All(f32::NEG_INFINITY));
            assert!(exp == 0. && sigmoid < 1e-38);
            assert_eq!(tanh.to_bits(), (-1f32).to_bits());
        }
    }
}
