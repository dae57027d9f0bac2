//! How many tokens a step may have while somebody is decoding, so that a long prompt does not hold up everybody's next
//! token. Knows the measured speed and nothing of requests.

use std::time::Duration;

/// How long a step with decoding sequences should take: a reader sees twelve pieces of text a second at least.
const STEP: Duration = Duration::from_millis(80);
/// Steps of fewer tokens say nothing of how fast prompts are read: their time is that of reading the weights.
const MIN_TOKENS: usize = 32;
/// Weight of the newest measurement in the moving average.
const NEWEST: f64 = 0.25;

/// The speed of the steps so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    /// Moving average; `None` before the first measurement.
    tokens_per_second: Option<f64>,
    last: Duration,
}

impl Pace {
    /// Notes that a step of `tokens` took `time`.
    pub fn observe(&mut self, tokens: usize, time: Duration) {
        self.last = time;
        if tokens < MIN_TOKENS || time.is_zero() {
            return;
        }
        let speed = tokens as f64 / time.as_secs_f64();
        let average = self.tokens_per_second.unwrap_or(speed);
        self.tokens_per_second = Some(average + NEWEST * (speed - average));
    }

    /// How long the last step took.
    pub fn last_step(&self) -> Duration {
        self.last
    }

    /// Tokens for a step that others wait for; `None` while nothing is known.
    pub fn tokens(&self) -> Option<usize> {
        self.tokens_per_second.map(|speed| (speed * STEP.as_secs_f64()) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_speed_and_ignores_small_steps() {
        let mut pace = Pace::default();
        assert_eq!(pace.tokens(), None);
        pace.observe(1, Duration::from_millis(4));
        assert_eq!(pace.tokens(), None);
        assert_eq!(pace.last_step(), Duration::from_millis(4));
        pace.observe(500, Duration::from_millis(500));
        assert_eq!(pace.tokens(), Some(80));
        for _ in 0..50 {
            pace.observe(500, Duration::from_millis(250));
        }
        assert_eq!(pace.tokens(), Some(159));
    }
}
