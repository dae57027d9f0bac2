//! Which instructions the processor has, found at run time, so that one binary serves every machine.

use std::fmt;

/// Instruction sets the kernels are written for, from the narrowest to the widest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the compiler makes of plain loops.
    Portable,
    /// AVX2 with FMA and F16C (x86-64-v3).
    Avx2,
    /// AVX2 with the dot product of bytes (Alder Lake), in either of its encodings.
    AvxVnni,
    /// AVX-512 F, BW, DQ, VL with VNNI (Ice Lake, Zen 4).
    Avx512Vnni,
    /// The same, and products of bf16 weights with inputs rounded to bf16 (Cooper Lake, Zen 4). Other results than f32
    /// gives, so it is taken only where it was asked for.
    Avx512Bf16,
}

impl Isa {
    /// The widest this machine has.
    #[cfg(target_arch = "x86_64")]
    pub fn detect() -> Self {
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        let bf16 = is_x86_feature_detected!("avx512bf16");
        match (avx2, avx512) {
            (true, true) if bf16 => Self::Avx512Bf16,
            (true, true) => Self::Avx512Vnni,
            (true, false) if is_x86_feature_detected!("avxvnni") => Self::AvxVnni,
            (true, false) => Self::Avx2,
            (false, _) => Self::Portable,
        }
    }

    /// The widest this machine has.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn detect() -> Self {
        Self::Portable
    }

    /// The set that `FASTCHAT_ISA` calls `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "avx512bf16" => Some(Self::Avx512Bf16),
            "avx512" => Some(Self::Avx512Vnni),
            "avxvnni" => Some(Self::AvxVnni),
            "avx2" => Some(Self::Avx2),
            "portable" => Some(Self::Portable),
            _ => None,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx512Bf16 => "avx512-bf16",
        })
    }
}
