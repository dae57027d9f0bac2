//! Random numbers as a function of (seed, position), on whichever device they are drawn; and seeds of a request's choices.

pub use fastchat_kernels::random::uniform;

use fastchat_kernels::random::philox;

/// Seed of choice `index` of a request. Choice 0 keeps the request's seed, so it equals a request with n = 1.
pub fn choice_seed(seed: u64, index: u32) -> u64 {
    if index == 0 {
        return seed;
    }
    let [a, b, ..] = philox([index, 0, 0, 1], [seed as u32, (seed >> 32) as u32]);
    u64::from(a) | u64::from(b) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_uniform_and_keeps_choices_apart() {
        let mean = (0..10_000).map(|position| uniform(42, position)).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert_eq!(choice_seed(7, 0), 7);
        assert_ne!(choice_seed(7, 1), choice_seed(7, 2));
        assert_ne!(uniform(choice_seed(7, 1), 3).to_bits(), uniform(7, 3).to_bits());
    }
}
