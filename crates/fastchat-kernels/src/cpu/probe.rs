//! What this machine gives at most: bytes read and 8-bit operations a second. The speed of a model is a share of these.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::{CpuKernels, Isa};

/// Words of 8 bytes that are read, well past any cache.
const WORDS: usize = 32 << 20;
/// Pieces of the memory, so that a thread that lost time leaves work to the others.
const PIECES: usize = 64;
/// Steps of one chunk of arithmetic.
const STEPS: usize = 1 << 16;
/// How long each of the two measurements runs, after one round to warm up.
const TIME: Duration = Duration::from_millis(100);

/// The limits of a machine, as measured now: on shared machines they change from second to second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes that all threads together read from memory.
    pub bytes_per_second: f64,
    /// Multiplications and additions of 8-bit integers, counted apart, of all threads together.
    pub int8_ops_per_second: f64,
}

impl CpuKernels {
    /// Measures the limits; takes a third of a second and 256 MiB.
    pub fn limits(&self) -> Limits {
        let data = vec![1u64; WORDS];
        let read = || {
            self.pool.run(PIECES, &|piece| {
                // Eight lines of sums, so that additions do not wait for one another.
                let mut sums = [0u64; 64];
                for words in data[piece * (WORDS / PIECES)..][..WORDS / PIECES].chunks_exact(64) {
                    for (sum, word) in sums.iter_mut().zip(words) {
                        *sum = sum.wrapping_add(*word);
                    }
                }
                black_box(sums);
            });
        };
        let chunks = 4 * self.threads();
        let multiply = || self.pool.run(chunks, &|_| multiply(self.isa));
        Limits {
            bytes_per_second: 8. * WORDS as f64 * rounds_per_second(read),
            int8_ops_per_second: (chunks * STEPS * OPS) as f64 * rounds_per_second(multiply),
        }
    }
}

fn rounds_per_second(round: impl Fn()) -> f64 {
    round();
    let began = Instant::now();
    let mut rounds = 0.;
    while began.elapsed() < TIME {
        round();
        rounds += 1.;
    }
    rounds / began.elapsed().as_secs_f64()
}

/// Independent sums of one step: more than the latency of a dot product.
const SUMS: usize = 12;
/// Operations of one step: four multiplications and additions per 32-bit lane.
const OPS: usize = SUMS * 16 * 4 * 2;

/// [`STEPS`] steps of dot products of unsigned with signed bytes.
fn multiply(isa: Isa) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `isa` is what this machine has.
        Isa::Avx512Vnni | Isa::Avx512Bf16 => unsafe { multiply_avx512() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 | Isa::AvxVnni => unsafe { multiply_avx2() },
        _ => multiply_portable(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply_avx512() {
    use std::arch::x86_64::{_mm512_dpbusd_epi32, _mm512_set1_epi8, _mm512_setzero_si512};
    let (a, b) = black_box((_mm512_set1_epi8(3), _mm512_set1_epi8(-5)));
    let mut sums = [_mm512_setzero_si512(); SUMS];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn multiply_avx2() {
    use std::arch::x86_64::{
        _mm256_add_epi32, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16,
        _mm256_setzero_si256,
    };
    let (b, ones) = (_mm256_set1_epi8(-5), _mm256_set1_epi16(1));
    let mut sums = [_mm256_setzero_si256(); SUMS];
    for _ in 0..2 * STEPS {
        for sum in &mut sums {
            let pairs = _mm256_maddubs_epi16(black_box(_mm256_set1_epi8(3)), b);
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    black_box(sums);
}

fn multiply_portable() {
    let (a, b) = black_box(([3u8; 16], [-5i8; 16]));
    let mut sums = [0i32; 16];
    for _ in 0..4 * SUMS * STEPS {
        for ((sum, a), b) in sums.iter_mut().zip(black_box(&a)).zip(&b) {
            *sum = sum.wrapping_add(i32::from(*a) * i32::from(*b));
        }
    }
    black_box(sums);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_measures_something() {
        for isa in [Isa::Portable, Isa::Avx2, Isa::AvxVnni, Isa::Avx512Vnni, Isa::Avx512Bf16] {
            let limits = CpuKernels::with_isa(Some(2), isa).limits();
            assert!(limits.bytes_per_second > 1e6 && limits.int8_ops_per_second > 1e6, "{limits:?}");
        }
    }
}
