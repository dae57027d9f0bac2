//! The arithmetic of the gated delta rule: the convolution of rows, and one head's state carried over tokens.

use std::ops::Range;

use crate::cpu::host::Disjoint;
use crate::cpu::norm::sum_of_squares;
use crate::cpu::simd::{LANES, Simd, Task, sigmoid};
use crate::{GatedDeltaSpec, StateLayout};

/// Rows of one sequence through convolution and SiLU; q and k are brought to unit length, q is scaled.
pub(super) struct Convolve<'a> {
    pub(super) layout: &'a StateLayout,
    pub(super) spec: &'a GatedDeltaSpec,
    /// `[taps, channels]`.
    pub(super) weight: &'a [f32],
    /// The sequence's last `taps - 1` rows before this step.
    pub(super) before: &'a [f32],
    /// Its rows of this step.
    pub(super) x: &'a [f32],
    /// Row of `x` that the first row of `out` belongs to.
    pub(super) first: usize,
    pub(super) out: &'a mut [f32],
}

impl Task for Convolve<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let StateLayout { conv_channels: channels, conv_taps: taps, k_head_dim, .. } = *self.layout;
        for (i, out) in self.out.chunks_exact_mut(channels).enumerate() {
            for tap in 0..taps {
                // Row `first + i + tap` of `before` followed by `x`.
                let row = self.first + i + tap;
                let row = match row.checked_sub(taps - 1) {
                    Some(row) => &self.x[row * channels..][..channels],
                    None => &self.before[row * channels..][..channels],
                };
                let weight = &self.weight[tap * channels..][..channels];
                for ((out, x), weight) in out.iter_mut().zip(row).zip(weight) {
                    *out += x * weight;
                }
            }
            for lanes in out.chunks_mut(LANES) {
                let x = simd.load_part(lanes);
                simd.store_part(simd.mul(x, sigmoid(simd, x)), lanes);
            }
            let keys = self.spec.num_k_heads * k_head_dim;
            for (head, x) in out[..2 * keys].chunks_exact_mut(k_head_dim).enumerate() {
                let mut factor = 1. / (sum_of_squares(simd, x) + self.spec.l2_eps).sqrt();
                if head < self.spec.num_k_heads {
                    factor /= (k_head_dim as f32).sqrt();
                }
                for x in x {
                    *x *= factor;
                }
            }
        }
    }
}

/// One value head of one sequence over `tokens`, flat ones of the batch.
pub(super) struct Recurrence<'a> {
    pub(super) layout: &'a StateLayout,
    pub(super) num_k_heads: usize,
    pub(super) head: usize,
    pub(super) tokens: Range<usize>,
    /// What [`Convolve`] made, `[tokens, channels]`.
    pub(super) mixed: &'a [f32],
    /// `[tokens, v_heads]`.
    pub(super) beta: &'a [f32],
    /// `[tokens, v_heads]`, factors.
    pub(super) decay: &'a [f32],
    /// `[k_head_dim, v_head_dim]`.
    pub(super) state: &'a mut [f32],
    /// `[tokens, v_heads, v_head_dim]`; this head's elements of `tokens` are written.
    pub(super) out: &'a Disjoint<'a, f32>,
}

impl Task for Recurrence<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        // A strip of the state's columns goes through all tokens while it is in the first-level cache.
        let width = self.layout.v_head_dim;
        let mut column = 0;
        while column < width {
            match (width - column) / LANES {
                4.. if S::WIDE => column += self.strip::<S, 4>(simd, column),
                2.. => column += self.strip::<S, 2>(simd, column),
                _ => column += self.strip::<S, 1>(simd, column),
            }
        }
    }
}

impl Recurrence<'_> {
    /// Columns from `column` on, `C` vectors or what is left of one; returns how many.
    #[inline(always)]
    fn strip<S: Simd, const C: usize>(&mut self, simd: S, column: usize) -> usize {
        let StateLayout { conv_channels, num_v_heads, k_head_dim, v_head_dim, .. } = *self.layout;
        let width = (v_head_dim - column).min(C * LANES);
        let keys = self.num_k_heads * k_head_dim;
        let k_head = self.head / (num_v_heads / self.num_k_heads);
        for t in self.tokens.clone() {
            let mixed = &self.mixed[t * conv_channels..][..conv_channels];
            let q = &mixed[k_head * k_head_dim..][..k_head_dim];
            let k = &mixed[keys + k_head * k_head_dim..][..k_head_dim];
            let v = &mixed[2 * keys + self.head * v_head_dim + column..][..width];
            let decay = simd.splat(self.decay[t * num_v_heads + self.head]);
            let beta = simd.splat(self.beta[t * num_v_heads + self.head]);
            // k^T S of the state before it decays.
            let mut remembered = [simd.splat(0.); C];
            for (k, row) in k.iter().zip(self.state.chunks_exact(v_head_dim)) {
                let (k, row) = (simd.splat(*k), load::<S, C>(simd, &row[column..][..width]));
                for c in 0..C {
                    remembered[c] = simd.fma(k, row[c], remembered[c]);
                }
            }
            let mut delta = load::<S, C>(simd, v);
            for c in 0..C {
                delta[c] = simd.mul(simd.sub(delta[c], simd.mul(remembered[c], decay)), beta);
            }
            let mut sums = [simd.splat(0.); C];
            for ((q, k), row) in q.iter().zip(k).zip(self.state.chunks_exact_mut(v_head_dim)) {
                let (q, k) = (simd.splat(*q), simd.splat(*k));
                let row = &mut row[column..][..width];
                let mut state = load::<S, C>(simd, row);
                for c in 0..C {
                    state[c] = simd.fma(k, delta[c], simd.mul(state[c], decay));
                    sums[c] = simd.fma(q, state[c], sums[c]);
                }
                store::<S, C>(simd, &state, row);
            }
            let start = (t * num_v_heads + self.head) * v_head_dim + column;
            // SAFETY: a head's elements of its sequence's tokens are written by one task.
            store::<S, C>(simd, &sums, unsafe { self.out.piece(start..start + width) });
        }
        width
    }
}

/// `C` vectors, or fewer elements than a vector when `C` is 1.
#[inline(always)]
fn load<S: Simd, const C: usize>(simd: S, x: &[f32]) -> [S::V; C] {
    let mut lanes = [simd.splat(0.); C];
    let (full, rest) = x.as_chunks::<LANES>();
    if full.len() == C {
        for c in 0..C {
            lanes[c] = simd.load(&full[c]);
        }
    } else {
        lanes[0] = simd.load_part(rest);
    }
    lanes
}

#[inline(always)]
fn store<S: Simd, const C: usize>(simd: S, lanes: &[S::V; C], out: &mut [f32]) {
    let (full, rest) = out.as_chunks_mut::<LANES>();
    if full.len() == C {
        for c in 0..C {
            simd.store(lanes[c], &mut full[c]);
        }
    } else {
        simd.store_part(lanes[0], rest);
    }
}
