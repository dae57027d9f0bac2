//! Passes over one row of logits that the compiler can vectorise: maximum, sum of exponentials, the k largest. Order of
//! every reduction is fixed, so results depend on the row alone.

/// Independent accumulators of a pass.
const LANES: usize = 16;
/// Elements whose maximum is taken at once when looking for the k largest.
const BLOCK: usize = 64;

/// Index of the largest value, the first of equals. NaN is never the largest; `None` if nothing is above -inf.
pub fn argmax(row: &[f32]) -> Option<usize> {
    const STRIDE: usize = 4096;
    let mut best = f32::NEG_INFINITY;
    let mut at = None;
    for (block, values) in row.chunks(STRIDE).enumerate() {
        let largest = max(values);
        if largest > best {
            best = largest;
            at = Some(block * STRIDE);
        }
    }
    let start = at?;
    row[start..].iter().position(|&value| value >= best).map(|offset| start + offset)
}

/// Largest value; -inf for an empty row.
#[inline]
pub fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |best, &value| if value > best { value } else { best })
}

/// e^x for x <= 0, within 2 units in the last place (Cephes' polynomial); 0 below -87. Branch-free, unlike libm's.
#[inline]
pub fn exp(x: f32) -> f32 {
    const LOG2E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first exact in few bits.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > -87.0 { x } else { -87.0 };
    let n = (clamped * LOG2E + ROUND) - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.987_569_1e-4_f32;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let scale = f32::from_bits(((n as i32 + 127) << 23) as u32);
    if x > -87.0 { p * scale } else { 0.0 }
}

/// Sum of e^((x - max) * scale) over the row.
pub fn sum_exp(row: &[f32], max: f32, scale: f32) -> f64 {
    row.chunks(BLOCK).map(|block| f64::from(block_sum_exp(block, max, scale))).sum()
}

#[inline]
fn block_sum_exp(block: &[f32], max: f32, scale: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let chunks = block.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += exp((value - max) * scale);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|&value| exp((value - max) * scale)).sum::<f32>()
}

/// First index at which the running sum of e^((x - max) * scale) exceeds `target`, the last possible one if rounding
/// leaves the sum short.
pub fn find_cumulative(row: &[f32], max: f32, scale: f32, target: f64) -> usize {
    let mut sum = 0.0;
    let mut last = 0;
    for (number, block) in row.chunks(BLOCK).enumerate() {
        let mass = f64::from(block_sum_exp(block, max, scale));
        if mass > 0.0 {
            if sum + mass > target {
                let mut inner = sum;
                for (offset, &value) in block.iter().enumerate() {
                    let weight = f64::from(exp((value - max) * scale));
                    if weight > 0.0 {
                        last = number * BLOCK + offset;
                        inner += weight;
                        if inner > target {
                            return last;
                        }
                    }
                }
                // The block's own sum and the running one may differ in the last bit.
                return last;
            }
            last = number * BLOCK + block.iter().rposition(|&v| exp((v - max) * scale) > 0.0).unwrap_or(0);
        }
        sum += mass;
    }
    last
}

/// A value and its index.
pub type Entry = (f32, u32);

/// Largest first, the first of equals first.
pub fn descending(a: &Entry, b: &Entry) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The k largest values above -inf with their indices, largest first, into `out`.
pub fn top_k(row: &[f32], k: usize, out: &mut Vec<Entry>) {
    // The k-th largest of the block maxima has k values at or above it, so it bounds the k-th largest value.
    let mut maxima: Vec<f32> = row.chunks(BLOCK).map(max).collect();
    let floor = if k > 0 && k <= maxima.len() {
        *maxima.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
    } else {
        f32::NEG_INFINITY
    };
    collect_at_least(row, floor, out);
    if out.len() > k {
        if k > 0 {
            out.select_nth_unstable_by(k - 1, descending);
        }
        out.truncate(k);
    }
    out.sort_unstable_by(descending);
}

/// All values at or above `floor` and above -inf, in order of index.
pub fn collect_at_least(row: &[f32], floor: f32, out: &mut Vec<Entry>) {
    out.clear();
    for (number, block) in row.chunks(BLOCK).enumerate() {
        if max(block) >= floor {
            let first = (number * BLOCK) as u32;
            let wanted = block.iter().enumerate().filter(|&(_, &v)| v >= floor && v > f32::NEG_INFINITY);
            out.extend(wanted.map(|(offset, &value)| (value, first + offset as u32)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row() -> impl Strategy<Value = Vec<f32>> {
        // Few distinct values: ties are where mistakes hide.
        let value = prop_oneof![4 => (-20..20_i32).prop_map(|v| v as f32 / 2.0), 1 => Just(f32::NEG_INFINITY)];
        prop::collection::vec(value, 1..700)
    }

    proptest! {
        #[test]
        fn finds_what_a_sort_finds(row in row(), k in 0..800_usize) {
            let mut sorted: Vec<Entry> = row.iter().copied().zip(0..).filter(|e| e.0 > f32::NEG_INFINITY).collect();
            sorted.sort_by(descending);
            prop_assert_eq!(argmax(&row), sorted.first().map(|e| e.1 as usize));
            sorted.truncate(k);
            let mut out = Vec::new();
            top_k(&row, k, &mut out);
            prop_assert_eq!(out, sorted);
        }

        #[test]
        fn exp_is_close_to_libm(x in -87.0..0.0_f32) {
            let exact = f64::from(x).exp();
            prop_assert!((f64::from(exp(x)) / exact - 1.0).abs() < 3e-7);
        }

        #[test]
        fn cumulative_matches_a_plain_loop(row in row(), u in 0.0..1.0_f64) {
            let max = max(&row);
            prop_assume!(max > f32::NEG_INFINITY);
            let total = sum_exp(&row, max, 0.7);
            let found = find_cumulative(&row, max, 0.7, u * total);
            let mass = |end: usize| row[..end].iter().map(|&v| f64::from((v - max) * 0.7).exp()).sum::<f64>();
            prop_assert!(mass(found) <= u * total + 1e-4 && mass(found + 1) >= u * total - 1e-4);
            prop_assert!(row[found] > f32::NEG_INFINITY);
        }
    }

    #[test]
    fn ignores_nan() {
        assert_eq!(argmax(&[f32::NAN, 1.0, f32::NAN, 2.0]), Some(3));
        assert_eq!(argmax(&[f32::NAN; 40]), None);
    }
}
