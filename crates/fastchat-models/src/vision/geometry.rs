//! Where patches stand: the order of rows, their places, the windows they look through. Integers only.

/// Patches of one tile in the order of the tower's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// (line, column) of each row.
    pub places: Vec<(usize, usize)>,
    /// Rows of each window, in order; empty without windows.
    pub windows: Vec<usize>,
    /// Place in the order of lines of groups of each group.
    pub groups: Vec<usize>,
}

impl Geometry {
    /// `lines x columns` patches, squares of `group` by `group` together, squares of `window` groups together.
    pub fn new((lines, columns): (usize, usize), group: usize, window: Option<usize>) -> Self {
        let (tall, wide) = (lines / group, columns / group);
        let side = window.unwrap_or(tall.max(wide).max(1));
        let mut geometry =
            Self { places: Vec::with_capacity(lines * columns), windows: Vec::new(), groups: Vec::new() };
        for top in (0..tall).step_by(side) {
            for left in (0..wide).step_by(side) {
                let before = geometry.places.len();
                for line in top..(top + side).min(tall) {
                    for column in left..(left + side).min(wide) {
                        geometry.groups.push(line * wide + column);
                        let square = (0..group * group).map(|i| (line * group + i / group, column * group + i % group));
                        geometry.places.extend(square);
                    }
                }
                if window.is_some() {
                    geometry.windows.push(geometry.places.len() - before);
                }
            }
        }
        geometry
    }

    /// For each group in the order of lines, where it stands; `None` when it stands there already.
    pub fn in_lines(&self) -> Option<Vec<u32>> {
        if self.groups.iter().enumerate().all(|(i, &group)| i == group) {
            return None;
        }
        let mut order = vec![0; self.groups.len()];
        self.groups.iter().enumerate().for_each(|(at, &group)| order[group] = at as u32);
        Some(order)
    }
}

/// Rows `[patches, 3 * frames * size * size]` of a tile's planes, in the geometry's order.
pub(crate) fn patches(planes: &[f32], width: usize, geometry: &Geometry, size: usize, frames: usize) -> Vec<f32> {
    let area = planes.len() / 3;
    let mut rows = Vec::with_capacity(geometry.places.len() * 3 * frames * size * size);
    for &(line, column) in &geometry.places {
        for plane in planes.chunks_exact(area) {
            for _ in 0..frames {
                for y in line * size..(line + 1) * size {
                    rows.extend_from_slice(&plane[y * width + column * size..][..size]);
                }
            }
        }
    }
    rows
}

/// Rows of a table of `side x side` and their weights for each place of `lines x columns`, corners on corners.
pub(crate) fn stretched(geometry: &Geometry, (lines, columns): (usize, usize), side: usize) -> Vec<[(u32, f32); 4]> {
    let along = |i: usize, length: usize| {
        let at = i as f32 * (side - 1) as f32 / (length.max(2) - 1) as f32;
        let low = at.floor();
        let high = (low as usize + 1).min(side - 1);
        [(low as usize, 1.0 - (at - low)), (high, at - low)]
    };
    let four = |&(line, column): &(usize, usize)| {
        let (rows, columns) = (along(line, lines), along(column, columns));
        [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(r, c)| {
            let ((row, a), (column, b)) = (rows[r], columns[c]);
            ((row * side + column) as u32, a * b)
        })
    };
    geometry.places.iter().map(four).collect()
}

#[cfg(test)]
mod tests {
    use super::{Geometry, patches, stretched};

    #[test]
    fn squares_stay_together_and_windows_come_first() {
        let plain = Geometry::new((2, 4), 2, None);
        assert_eq!(plain.places, [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]);
        assert_eq!((plain.in_lines(), plain.windows.len()), (None, 0));
        let windows = Geometry::new((4, 6), 2, Some(2));
        assert_eq!(windows.windows, [16, 8]);
        assert_eq!(windows.groups, [0, 1, 3, 4, 2, 5]);
        assert_eq!(windows.in_lines(), Some(vec![0, 1, 4, 2, 3, 5]));
        assert_eq!(windows.places[8], (2, 0));
    }

    #[test]
    fn patches_are_cut_channel_by_channel_and_frame_by_frame() {
        let planes: Vec<f32> = (0..3 * 8).map(|i| i as f32).collect();
        let geometry = Geometry::new((1, 2), 1, None);
        let rows = patches(&planes, 4, &geometry, 2, 2);
        assert_eq!(rows[24..32], [2., 3., 6., 7., 2., 3., 6., 7.]);
        assert_eq!(rows.len(), 48);
    }

    #[test]
    fn a_table_is_stretched_from_corner_to_corner() {
        let geometry = Geometry::new((1, 3), 1, None);
        let taps = stretched(&geometry, (1, 3), 4);
        let value = |taps: &[(u32, f32); 4]| taps.iter().map(|(row, weight)| *row as f32 * weight).sum::<f32>();
        assert_eq!(taps.iter().map(value).collect::<Vec<_>>(), [0., 1.5, 3.]);
    }
}
