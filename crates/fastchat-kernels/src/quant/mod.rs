//! From stored blocks to f32 and back: GGML's formats, bit for bit as its `gguf` Python package reads them. The slow and
//! exact road; the packed layouts of the hardware live with their kernels.

mod basic;
mod encode;
mod iq;
mod kquants;

use candle_core::{Result, bail};

use crate::WeightKind;

pub use encode::quantize;
pub(crate) use iq::{iq_block, unit, values};
pub(crate) use kquants::{iq4_xs_scales, k4_scale_min, q3_scales};

/// The 16 values of `IQ4_NL` and `IQ4_XS` (llama.cpp, `kvalues_iq4nl`).
pub(crate) const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The 16 values of FP4 (E2M1), doubled: OCP Microscaling Formats v1.0.
pub(crate) const FP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of the E8M0 scale `exponent`, to go with the doubled [`FP4_VALUES`]: `2^(exponent - 128)`.
pub(crate) fn e8m0_half(exponent: u8) -> f32 {
    let exponent = u32::from(exponent);
    // The two smallest are subnormal.
    f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { (exponent - 1) << 23 })
}

/// The little-endian f16 at the start of `bytes`.
pub(crate) fn f16_at(bytes: &[u8]) -> f32 {
    half_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// An f16 as f32, without branches, so that loops over it vectorise.
#[inline(always)]
#[allow(clippy::inline_always)]
pub(crate) fn half_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // The exponents differ by 112; multiplying by a power of two also normalises subnormals.
    let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    let special = magnitude | 0xff << 23;
    let magnitude = if bits & 0x7c00 == 0x7c00 { special } else { finite };
    f32::from_bits(magnitude | u32::from(bits & 0x8000) << 16)
}

/// The float behind an E4M3 code.
pub fn e4m3(code: u8) -> f32 {
    // The exponents differ by 120; multiplying by a power of two also normalises subnormals.
    let magnitude = f32::from_bits(u32::from(code & 0x7f) << 20) * f32::from_bits((127 + 120) << 23);
    let magnitude = if is_nan_e4m3(code) { f32::NAN } else { magnitude };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Whether an E4M3 code stands for no number.
pub fn is_nan_e4m3(code: u8) -> bool {
    code & 0x7f == 0x7f
}

/// Decodes `elements` elements of `kind`.
///
/// # Errors
/// When `bytes` is not their exact length.
pub fn dequantize(kind: WeightKind, bytes: &[u8], elements: usize) -> Result<Vec<f32>> {
    let mut out = vec![0.; elements];
    dequantize_into(kind, bytes, &mut out)?;
    Ok(out)
}

/// Decodes whole blocks of `kind` into `out`.
///
/// # Errors
/// When the lengths disagree.
pub fn dequantize_into(kind: WeightKind, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    let (elements, size) = kind.block();
    if !out.len().is_multiple_of(elements) || out.len() / elements * size != bytes.len() {
        bail!("{} elements of {kind:?} do not take {} bytes", out.len(), bytes.len());
    }
    let decode: fn(&[u8], &mut [f32]) = match kind {
        WeightKind::F32 => |block, out| out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
        WeightKind::F16 => |block, out| out[0] = f16_at(block),
        WeightKind::BF16 => |block, out| out[0] = half::bf16::from_le_bytes([block[0], block[1]]).to_f32(),
        WeightKind::F8_E4M3 => basic::f8_e4m3,
        WeightKind::Q4_0 => basic::q4_0,
        WeightKind::Q4_1 => basic::q4_1,
        WeightKind::Q5_0 => basic::q5_0,
        WeightKind::Q5_1 => basic::q5_1,
        WeightKind::Q8_0 => basic::q8_0,
        WeightKind::IQ4_NL => basic::iq4_nl,
        WeightKind::MXFP4 => basic::mxfp4,
        WeightKind::Q2_K => kquants::q2_k,
        WeightKind::Q3_K => kquants::q3_k,
        WeightKind::Q4_K => kquants::q4_k,
        WeightKind::Q5_K => kquants::q5_k,
        WeightKind::Q6_K => kquants::q6_k,
        WeightKind::Q8_K => kquants::q8_k,
        WeightKind::IQ4_XS => kquants::iq4_xs,
        WeightKind::IQ2_XXS => |block, out| iq::decode(WeightKind::IQ2_XXS, block, out),
        WeightKind::IQ2_XS => |block, out| iq::decode(WeightKind::IQ2_XS, block, out),
        WeightKind::IQ2_S => |block, out| iq::decode(WeightKind::IQ2_S, block, out),
        WeightKind::IQ3_XXS => |block, out| iq::decode(WeightKind::IQ3_XXS, block, out),
        WeightKind::IQ3_S => |block, out| iq::decode(WeightKind::IQ3_S, block, out),
        WeightKind::IQ1_S => |block, out| iq::decode(WeightKind::IQ1_S, block, out),
        WeightKind::IQ1_M => |block, out| iq::decode(WeightKind::IQ1_M, block, out),
        WeightKind::TQ1_0 => |block, out| iq::decode(WeightKind::TQ1_0, block, out),
        WeightKind::TQ2_0 => |block, out| iq::decode(WeightKind::TQ2_0, block, out),
    };
    for (block, out) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(elements)) {
        decode(block, out);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::half_to_f32;

    #[test]
    fn every_half_is_read() {
        for bits in 0..=u16::MAX {
            let expected = half::f16::from_bits(bits).to_f32();
            let actual = half_to_f32(bits);
            assert!(actual.to_bits() == expected.to_bits() || (actual.is_nan() && expected.is_nan()), "{bits:#x}");
        }
    }
}
