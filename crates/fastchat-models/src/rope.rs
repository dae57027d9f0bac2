//! Rope frequencies by scaling kind, in the f32 steps of the reference implementations, so that angles at long
//! positions agree with theirs. Knows no field names; `hf` and `gguf` read those.

use std::f32::consts::PI;

/// How the frequencies of a rope are scaled.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    Default,
    /// Positions divided by a factor (arXiv 2306.15595).
    Linear(f32),
    /// Base raised for the longest sequence: (factor, trained length, length to serve).
    Dynamic(f32, f32, f32),
    /// Long wavelengths stretched (Llama 3.1).
    Llama3 {
        /// Stretch.
        factor: f32,
        /// Wavelengths above `original / low` are stretched fully.
        low: f32,
        /// Wavelengths below `original / high` are not.
        high: f32,
        /// Trained length.
        original: f32,
    },
    /// arXiv 2309.00071.
    Yarn {
        /// Stretch.
        factor: f32,
        /// Trained length.
        original: f32,
        /// Rotations above which a pair is not stretched.
        beta_fast: f32,
        /// Rotations below which a pair is stretched fully.
        beta_slow: f32,
        /// Whether the ramp's ends are rounded to whole pairs.
        truncate: bool,
        /// Factor on cos and sin.
        attention_factor: f32,
    },
    /// A divisor per pair and the factor on cos and sin.
    Factors(Vec<f32>, f32),
    /// A divisor per pair for each of two lengths (arXiv 2402.13753).
    LongRope {
        /// Divisors up to the trained length.
        short: Vec<f32>,
        /// Divisors past it.
        long: Vec<f32>,
        /// Whether sequences past it are to be served.
        is_long: bool,
        /// Trained length.
        original: f32,
        /// Factor on cos and sin.
        attention_factor: f32,
    },
}

impl Scaling {
    /// Name for `inspect`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Linear(_) => "linear",
            Self::Dynamic(..) => "dynamic",
            Self::Llama3 { .. } => "llama3",
            Self::Yarn { .. } => "yarn",
            Self::Factors(..) | Self::LongRope { .. } => "factors",
        }
    }

    /// Factor on cos and sin.
    pub fn attention_factor(&self) -> f32 {
        match self {
            Self::Yarn { attention_factor, .. }
            | Self::Factors(_, attention_factor)
            | Self::LongRope { attention_factor, .. } => *attention_factor,
            _ => 1.0,
        }
    }
}

/// Angle per position of each of the `dim / 2` pairs.
pub fn frequencies(theta: f32, dim: usize, scaling: &Scaling) -> Vec<f32> {
    let power = |base: f32, pair: usize| base.powf((2 * pair) as f32 / dim as f32);
    let pairs = 0..dim / 2;
    match scaling {
        Scaling::Default => pairs.map(|i| 1.0 / power(theta, i)).collect(),
        Scaling::Linear(factor) => pairs.map(|i| 1.0 / power(theta, i) / factor).collect(),
        Scaling::Dynamic(factor, trained, served) => {
            let stretch = factor * served.max(*trained) / trained - (factor - 1.0);
            let base = theta * stretch.powf(dim as f32 / (dim as f32 - 2.0));
            pairs.map(|i| 1.0 / power(base, i)).collect()
        }
        Scaling::Llama3 { factor, low, high, original } => pairs
            .map(|i| {
                let frequency = 1.0 / power(theta, i);
                let wavelength = 2.0 * PI / frequency;
                if wavelength < original / high {
                    frequency
                } else if wavelength > original / low {
                    frequency / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            })
            .collect(),
        Scaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } => {
            let (low, high) = yarn_range((*beta_fast, *beta_slow), dim, theta, *original, *truncate);
            let high = if low >= high { low + 0.001 } else { high };
            pairs
                .map(|i| {
                    let ramp = ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                    let keep = 1.0 - ramp;
                    1.0 / (factor * power(theta, i)) * (1.0 - keep) + 1.0 / power(theta, i) * keep
                })
                .collect()
        }
        Scaling::LongRope { long: factors, is_long: true, .. }
        | Scaling::LongRope { short: factors, .. }
        | Scaling::Factors(factors, _) => pairs.map(|i| 1.0 / (factors[i] * power(theta, i))).collect(),
    }
}

fn yarn_range(betas: (f32, f32), dim: usize, theta: f32, original: f32, truncate: bool) -> (f32, f32) {
    let correction = |rotations: f32| {
        let (dim, theta, original) = (dim as f64, f64::from(theta), f64::from(original));
        dim * (original / (f64::from(rotations) * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln())
    };
    let (low, high) = (correction(betas.0), correction(betas.1));
    let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
    (low.max(0.0) as f32, high.min(dim as f64 - 1.0) as f32)
}

/// Yarn's factor on cos and sin for a stretch, weighed by `mscale`.
pub fn yarn_mscale(factor: f32, mscale: f32) -> f32 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// Axis (time, lines, columns) of each of a rope's pairs by the counts of each (arXiv 2409.12191): in blocks, or
/// interleaved as far as the counts of lines and columns reach.
pub fn axes([time, lines, columns]: [usize; 3], interleaved: bool) -> Vec<u8> {
    let axis = |pair: usize| match (interleaved, pair % 3) {
        (true, 1) if pair < 3 * lines => 1,
        (true, 2) if pair < 3 * columns => 2,
        (true, _) => 0,
        (false, _) if pair < time => 0,
        (false, _) if pair < time + lines => 1,
        (false, _) => 2,
    };
    (0..time + lines + columns).map(axis).collect()
}
