//! From f32 to stored blocks. The kinds with blocks of 32 round as the `gguf` package does, bit for bit; the super-blocks
//! search their scales by weighted least squares.

use candle_core::{Result, bail};
use half::f16;

use crate::{Weight, WeightKind};

/// Rounds `values`, row-major `[rows, cols]`, to `kind`.
///
/// # Errors
/// When the kind cannot be written or the shape does not fit.
pub fn quantize(kind: WeightKind, rows: usize, cols: usize, values: &[f32]) -> Result<Weight> {
    let encode: fn(&[f32], &mut [u8]) = match kind {
        WeightKind::Q8_0 => q8_0,
        WeightKind::Q4_0 => |x, out| symmetric(x, 4, out),
        WeightKind::Q5_0 => |x, out| symmetric(x, 5, out),
        WeightKind::Q4_1 => |x, out| shifted(x, 4, out),
        WeightKind::Q5_1 => |x, out| shifted(x, 5, out),
        WeightKind::Q4_K => q4_k,
        WeightKind::Q5_K => q5_k,
        WeightKind::Q6_K => q6_k,
        _ => bail!("{kind:?} cannot be written; Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K can"),
    };
    let (elements, size) = kind.block();
    if rows.checked_mul(cols) != Some(values.len()) || !cols.is_multiple_of(elements) {
        bail!("{} values are no [{rows}, {cols}] matrix of {kind:?}, whose blocks have {elements}", values.len());
    }
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        bail!("value {} at row {} column {} cannot be rounded to {kind:?}", values[at], at / cols, at % cols);
    }
    let mut bytes = vec![0; values.len() / elements * size];
    for (x, out) in values.chunks_exact(elements).zip(bytes.chunks_exact_mut(size)) {
        encode(x, out);
    }
    Weight::new(kind, rows, cols, bytes.into())
}

fn put_half(out: &mut [u8], value: f32) -> f32 {
    let half = f16::from_f32(value);
    out[..2].copy_from_slice(&half.to_le_bytes());
    half.to_f32()
}

fn inverse(scale: f32) -> f32 {
    if scale == 0. { 0. } else { 1. / scale }
}

fn q8_0(x: &[f32], out: &mut [u8]) {
    let scale = x.iter().fold(0f32, |max, x| max.max(x.abs())) / 127.;
    put_half(out, scale);
    let inverse = inverse(scale);
    for (out, x) in out[2..].iter_mut().zip(x) {
        *out = (x * inverse).round() as i8 as u8;
    }
}

/// `Q4_0` and `Q5_0`: the value of largest magnitude becomes the lowest code.
fn symmetric(x: &[f32], bits: usize, out: &mut [u8]) {
    let extreme = x.iter().fold(0f32, |extreme, &x| if x.abs() > extreme.abs() { x } else { extreme });
    let middle = (1 << (bits - 1)) as f32;
    let scale = extreme / -middle;
    put_half(out, scale);
    let inverse = inverse(scale);
    write_codes(x.iter().map(|x| x * inverse + (middle + 0.5)), bits, &mut out[2..]);
}

/// `Q4_1` and `Q5_1`: the smallest value becomes code 0.
fn shifted(x: &[f32], bits: usize, out: &mut [u8]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let min = x.iter().copied().fold(f32::INFINITY, f32::min);
    let scale = (max - min) / ((1 << bits) - 1) as f32;
    put_half(out, scale);
    put_half(&mut out[2..], min);
    let inverse = inverse(scale);
    write_codes(x.iter().map(|x| (x - min) * inverse + 0.5), bits, &mut out[4..]);
}

/// Truncates 32 codes of 4 or 5 bits into their planes.
fn write_codes(codes: impl Iterator<Item = f32>, bits: usize, out: &mut [u8]) {
    let (high, low) = out.split_at_mut(if bits == 5 { 4 } else { 0 });
    for (i, code) in codes.enumerate() {
        let code = (code as u8).min((1 << bits) - 1);
        low[i % 16] |= (code & 15) << (4 * (i / 16));
        if bits == 5 {
            high[i / 8] |= (code >> 4) << (i % 8);
        }
    }
}

/// Scale `s` and minimum `m >= 0` with `x ~ s * code - m`, codes `0 ..= max`, least squares weighted towards large values.
fn fit_shifted(x: &[f32], max: f32) -> (f32, f32) {
    let mean_square = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
    let weight = |x: f32| mean_square.sqrt() + x.abs();
    let low = x.iter().copied().fold(0f32, f32::min);
    let high = x.iter().copied().fold(0f32, f32::max);
    if high <= low {
        return (0., 0.);
    }
    let error = |scale: f32, min: f32| -> f32 {
        let of = |&x: &f32| {
            let code = ((x + min) / scale).round().clamp(0., max);
            let off = scale * code - min - x;
            weight(x) * off * off
        };
        x.iter().map(of).sum()
    };
    let mut best = ((high - low) / max, -low);
    let mut least = error(best.0, best.1);
    for step in 0..=20 {
        // Ranges a little wider and narrower than the values'.
        let inverse = (max - 1. + 0.1 * step as f32) / (high - low);
        let (mut w, mut wx, mut wc, mut wcc, mut wxc) = (0f32, 0f32, 0f32, 0f32, 0f32);
        for &x in x {
            let (weight, code) = (weight(x), (inverse * (x - low)).round().clamp(0., max));
            w += weight;
            wx += weight * x;
            wc += weight * code;
            wcc += weight * code * code;
            wxc += weight * x * code;
        }
        let determinant = w * wcc - wc * wc;
        if determinant <= 0. {
            continue;
        }
        let mut scale = (w * wxc - wx * wc) / determinant;
        let mut min = (wc * wxc - wcc * wx) / determinant;
        if min < 0. {
            (scale, min) = (wxc / wcc, 0.);
        }
        if scale > 0. {
            let error = error(scale, min);
            if error < least {
                (best, least) = ((scale, min), error);
            }
        }
    }
    best
}

/// Writes scales and minima of `Q4_K` and `Q5_K` and returns the codes that go with them.
fn super_shifted(x: &[f32], max: f32, out: &mut [u8]) -> [u8; 256] {
    let fits: Vec<(f32, f32)> = x.chunks_exact(32).map(|x| fit_shifted(x, max)).collect();
    let d = put_half(out, fits.iter().fold(0f32, |max, fit| max.max(fit.0)) / 63.);
    let dmin = put_half(&mut out[2..], fits.iter().fold(0f32, |max, fit| max.max(fit.1)) / 63.);
    let mut codes = [0; 256];
    for (j, (scale, min)) in fits.into_iter().enumerate() {
        let scale = (scale * inverse(d)).round().clamp(0., 63.) as u8;
        let min = (min * inverse(dmin)).round().clamp(0., 63.) as u8;
        let packed = &mut out[4..16];
        if j < 4 {
            packed[j] |= scale;
            packed[4 + j] |= min;
        } else {
            packed[4 + j] |= scale & 15 | (min & 15) << 4;
            packed[j - 4] |= (scale >> 4) << 6;
            packed[j] |= (min >> 4) << 6;
        }
        let (inverse, min) = (inverse(d * f32::from(scale)), dmin * f32::from(min));
        for (code, x) in codes[32 * j..32 * j + 32].iter_mut().zip(&x[32 * j..]) {
            *code = ((x + min) * inverse).round().clamp(0., max) as u8;
        }
    }
    codes
}

/// Low four bits of 256 codes: 32 bytes per 64 codes, the first half in the low nibbles.
fn write_nibbles(codes: &[u8; 256], out: &mut [u8]) {
    for (i, code) in codes.iter().enumerate() {
        out[32 * (i / 64) + i % 32] |= (code & 15) << (4 * (i / 32 % 2));
    }
}

fn q4_k(x: &[f32], out: &mut [u8]) {
    let codes = super_shifted(x, 15., out);
    write_nibbles(&codes, &mut out[16..]);
}

fn q5_k(x: &[f32], out: &mut [u8]) {
    let codes = super_shifted(x, 31., out);
    write_nibbles(&codes, &mut out[48..]);
    for (i, code) in codes.iter().enumerate() {
        out[16 + i % 32] |= (code >> 4) << (i / 32);
    }
}

/// Scale with `x ~ scale * code`, codes `-32 ..= 31`, least squares weighted by the squares of the values.
fn fit_symmetric(x: &[f32]) -> f32 {
    let extreme = x.iter().fold(0f32, |extreme, &x| if x.abs() > extreme.abs() { x } else { extreme });
    let mut best = (0., 0.);
    for step in -9..=9 {
        let inverse = -(32. + 0.1 * step as f32) / extreme;
        let (mut xc, mut cc) = (0f32, 0f32);
        for &x in x {
            let code = (inverse * x).round().clamp(-32., 31.);
            xc += x * x * x * code;
            cc += x * x * code * code;
        }
        // The error falls by this much against a scale of zero.
        if cc > 0. && xc * xc / cc > best.1 {
            best = (xc / cc, xc * xc / cc);
        }
    }
    best.0
}

fn q6_k(x: &[f32], out: &mut [u8]) {
    let fits: Vec<f32> = x.chunks_exact(16).map(fit_symmetric).collect();
    let extreme = fits.iter().fold(0f32, |extreme, &s| if s.abs() > extreme.abs() { s } else { extreme });
    let d = put_half(&mut out[208..], extreme / -128.);
    for (j, scale) in fits.into_iter().enumerate() {
        let scale = (scale * inverse(d)).round().clamp(-128., 127.) as i8;
        out[192 + j] = scale as u8;
        let inverse = inverse(d * f32::from(scale));
        for (k, x) in x[16 * j..16 * j + 16].iter().enumerate() {
            let (i, code) = (16 * j + k, ((x * inverse).round().clamp(-32., 31.) + 32.) as u8);
            out[64 * (i / 128) + i % 64] |= (code & 15) << (4 * (i / 64 % 2));
            out[128 + 32 * (i / 128) + i % 32] |= (code >> 4) << (2 * (i / 32 % 4));
        }
    }
}
