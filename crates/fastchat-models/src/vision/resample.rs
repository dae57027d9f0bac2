//! Resizing as Pillow does, bit for bit: filters stretched to the source's pixels when shrinking, weights in 22-bit fixed
//! point, two passes with rounding to bytes in between. No library kept by us gives the same bits.

use super::Picture;

/// Kernel by which pixels are weighed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// Every pixel that is covered, alike.
    Box,
    /// A triangle.
    Bilinear,
    /// Cubic convolution with slope -1/2.
    Bicubic,
    /// A windowed sinc of three lobes.
    Lanczos,
}

/// Bits after the point of a weight.
const PRECISION: u32 = 22;
/// What sums start from, so that they are rounded to the nearest byte.
const HALF: i32 = 1 << (PRECISION - 1);

impl Filter {
    /// Pixels to either side that count at the scale of one.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let sinc = |x: f64| {
            let x = x * std::f64::consts::PI;
            if x == 0.0 { 1.0 } else { x.sin() / x }
        };
        let at = x.abs();
        match self {
            Self::Nearest => 1.0,
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - at).max(0.0),
            Self::Bicubic if at < 1.0 => ((A + 2.0) * at - (A + 3.0)) * at * at + 1.0,
            Self::Bicubic if at < 2.0 => (((at - 5.0) * at + 8.0) * at - 4.0) * A,
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Bicubic | Self::Lanczos => 0.0,
        }
    }
}

/// Source pixels of one target pixel: the first, and a weight for each from there on.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

fn taps(source: usize, target: usize, filter: Filter) -> Vec<Taps> {
    let scale = source as f64 / target as f64;
    if filter == Filter::Nearest {
        // Step by step, so that roundings add up as they do there.
        let places = std::iter::successors(Some(scale * 0.5), |at| Some(at + scale)).take(target);
        let tap = |at: f64| Taps { first: (at as usize).min(source - 1), weights: vec![1 << PRECISION] };
        return places.map(tap).collect();
    }
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let one = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = ((centre - support + 0.5).max(0.0)) as usize;
        let last = ((centre + support + 0.5) as usize).min(source);
        let weigh = |x: usize| filter.weight((x as f64 - centre + 0.5) * (1.0 / stretch));
        let weights: Vec<f64> = (first..last).map(weigh).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: f64| {
            let weight = if sum == 0.0 { weight } else { weight / sum } * f64::from(1 << PRECISION);
            (weight + if weight < 0.0 { -0.5 } else { 0.5 }) as i32
        };
        Taps { first, weights: weights.into_iter().map(fixed).collect() }
    };
    (0..target).map(one).collect()
}

fn rounded(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Every row at `width` columns.
fn across(picture: &Picture, width: usize, filter: Filter) -> Picture {
    let columns = taps(picture.width, width, filter);
    let mut rgb = Vec::with_capacity(picture.height * width * 3);
    for row in picture.rgb.chunks_exact(picture.width * 3) {
        for Taps { first, weights } in &columns {
            let mut sums = [HALF; 3];
            for (pixel, weight) in row[first * 3..].as_chunks::<3>().0.iter().zip(weights) {
                sums.iter_mut().zip(pixel).for_each(|(sum, &value)| *sum += i32::from(value) * weight);
            }
            rgb.extend(sums.map(rounded));
        }
    }
    Picture { width, height: picture.height, rgb }
}

/// Every column at `height` rows.
fn down(picture: &Picture, height: usize, filter: Filter) -> Picture {
    let stride = picture.width * 3;
    let mut rgb = Vec::with_capacity(height * stride);
    let mut sums = vec![0i32; stride];
    for Taps { first, weights } in taps(picture.height, height, filter) {
        sums.fill(HALF);
        for (row, weight) in picture.rgb[first * stride..].chunks_exact(stride).zip(weights) {
            sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += i32::from(value) * weight);
        }
        rgb.extend(sums.iter().copied().map(rounded));
    }
    Picture { width: picture.width, height, rgb }
}

/// The picture at `width x height`, neither 0.
pub fn resize(picture: &Picture, width: usize, height: usize, filter: Filter) -> Picture {
    let (lost_columns, lost_rows) = (picture.width as i64 - width as i64, picture.height as i64 - height as i64);
    // The pass that loses more comes first; as bytes are rounded in between, the order shows.
    let rows_first = lost_rows > 0 && lost_rows > 2 * lost_columns;
    let columns = |from: Picture| if width == from.width { from } else { across(&from, width, filter) };
    let rows = |from: &Picture| if height == from.height { from.clone() } else { down(from, height, filter) };
    if rows_first {
        return columns(rows(picture));
    }
    match (width == picture.width, height == picture.height) {
        (true, _) => rows(picture),
        (false, true) => across(picture, width, filter),
        (false, false) => down(&across(picture, width, filter), height, filter),
    }
}

#[cfg(test)]
mod tests {
    use super::{Filter, resize};
    use crate::vision::Picture;

    fn grey(width: usize, values: &[u8]) -> Picture {
        let rgb = values.iter().flat_map(|&value| [value; 3]).collect();
        Picture { width, height: values.len() / width, rgb }
    }

    fn first_channel(picture: &Picture) -> Vec<u8> {
        picture.rgb.iter().step_by(3).copied().collect()
    }

    /// Numbers of Pillow 13 for the same pixels.
    #[test]
    fn equals_pillow() {
        let ramp = grey(6, &[0, 50, 100, 150, 200, 255, 255, 200, 150, 100, 50, 0]);
        let at = |width, height, filter| first_channel(&resize(&ramp, width, height, filter));
        assert_eq!(at(3, 1, Filter::Bilinear), PILLOW[0]);
        assert_eq!(at(4, 2, Filter::Bicubic), PILLOW[1]);
        assert_eq!(at(9, 3, Filter::Lanczos), PILLOW[2]);
        assert_eq!(at(3, 2, Filter::Box), PILLOW[3]);
        assert_eq!(at(4, 3, Filter::Nearest), PILLOW[4]);
        assert_eq!(at(7, 1, Filter::Bicubic), PILLOW[5]);
        assert_eq!(resize(&ramp, 6, 2, Filter::Bicubic), ramp);
    }

    const PILLOW: [&[u8]; 6] = [
        &[126, 125, 126],
        &[14, 85, 164, 239, 239, 164, 85, 14],
        &[
            0, 0, 44, 85, 125, 165, 205, 255, 255, 128, 127, 125, 125, 125, 125, 125, 127, 128, 255, 255, 205, 165,
            125, 85, 44, 0, 0,
        ],
        &[25, 125, 228, 228, 125, 25],
        &[0, 100, 150, 255, 255, 150, 100, 0, 255, 150, 100, 0],
        &[128, 126, 125, 125, 125, 126, 128],
    ];
}
