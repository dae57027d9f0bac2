//! From the rows of one sequence to its vector. Sums run in f64 and in order, so a vector depends on its own rows only.

use crate::encoder_spec::{Pooling, PoolingMode};

/// The vector of a sequence of at least one row.
pub(crate) fn pool(rows: &[Vec<f32>], pooling: Pooling) -> Vec<f32> {
    let sum = |divisor: f64| -> Vec<f32> {
        let mut sums = vec![0f64; rows[0].len()];
        for row in rows {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        sums.into_iter().map(|sum| (sum / divisor) as f32).collect()
    };
    let mut vector = match pooling.mode {
        PoolingMode::Cls => rows[0].clone(),
        PoolingMode::Last => rows[rows.len() - 1].clone(),
        PoolingMode::Mean => sum(rows.len() as f64),
        PoolingMode::MeanSqrtLen => sum((rows.len() as f64).sqrt()),
        PoolingMode::Max => {
            let larger = |a: Vec<f32>, b: &Vec<f32>| a.iter().zip(b).map(|(a, b)| a.max(*b)).collect();
            rows[1..].iter().fold(rows[0].clone(), larger)
        }
    };
    if pooling.normalize {
        normalize(&mut vector);
    }
    vector
}

/// To length one; a vector of zeros stays.
fn normalize(vector: &mut [f32]) {
    let square: f64 = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    if square > 0.0 {
        let factor = square.sqrt().recip();
        for x in vector.iter_mut() {
            *x = (f64::from(*x) * factor) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Pooling, PoolingMode, pool};

    #[test]
    fn every_mode_and_the_unit_length() {
        let rows = [vec![3., 8.], vec![1., -2.], vec![5., 0.], vec![-1., 2.]];
        let modes = [
            (PoolingMode::Cls, [3., 8.]),
            (PoolingMode::Last, [-1., 2.]),
            (PoolingMode::Mean, [2., 2.]),
            (PoolingMode::MeanSqrtLen, [4., 4.]),
            (PoolingMode::Max, [5., 8.]),
        ];
        for (mode, expected) in modes {
            assert_eq!(pool(&rows, Pooling { mode, normalize: false }), expected, "{mode:?}");
        }
        let unit = pool(&[vec![3., 4.]], Pooling { mode: PoolingMode::Mean, normalize: true });
        assert_eq!(unit, [0.6, 0.8]);
        assert_eq!(pool(&[vec![0., 0.]], Pooling { mode: PoolingMode::Mean, normalize: true }), [0., 0.]);
    }
}
