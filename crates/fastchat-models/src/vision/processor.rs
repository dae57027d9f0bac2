//! From a picture to the pixels a tower reads: sizes by each family's rule, Pillow's resizing, tiles, normalised floats.
//! Described by data; knows no model names.

use serde::Serialize;

use super::decode::Picture;
use super::resample::{Filter, resize};
use crate::ModelError;

/// How a picture becomes pixels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProcessorSpec {
    /// Sizes.
    pub rule: SizeRule,
    /// Filter of every resizing.
    pub filter: Filter,
    /// Factor on bytes.
    pub scale: f32,
    /// Taken from scaled bytes, by channel.
    pub mean: [f32; 3],
    /// Divides what is left.
    pub std: [f32; 3],
}

/// Sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum SizeRule {
    /// One size for all.
    Exact {
        /// Pixels of a column.
        height: usize,
        /// Pixels of a row.
        width: usize,
    },
    /// The shorter side to `shortest`, then the middle.
    ShortestThenCrop {
        /// Pixels of the shorter side.
        shortest: usize,
        /// Pixels of the cut.
        height: usize,
        /// Pixels of the cut.
        width: usize,
    },
    /// Sides to the nearest multiples of `factor`, the area into bounds.
    Multiples {
        /// Pixels.
        factor: usize,
        /// Least area.
        least: usize,
        /// Largest area.
        most: usize,
    },
    /// No side longer than `longest`, then up to whole patches.
    WithinThenPatches {
        /// Pixels of the longer side.
        longest: usize,
        /// Pixels of a patch.
        patch: usize,
    },
    /// The longer side to `longest`, then up to whole tiles, and the whole once more as the last tile.
    TilesAndWhole {
        /// Pixels of the longer side.
        longest: usize,
        /// Pixels of a tile's side.
        tile: usize,
        /// Whether pictures are cut at all.
        split: bool,
    },
    /// Into the arrangement of at most `count` tiles that fits best, the rest black.
    Canvas {
        /// Pixels of a tile's side.
        tile: usize,
        /// Most tiles.
        count: usize,
    },
}

/// How closely to look, in OpenAI's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Detail {
    /// The model's own rule.
    #[default]
    Auto,
    /// As few rows as the model's rule allows: one tile, or the area of 512 x 512.
    Low,
    /// The model's own rule.
    High,
}

/// Area of a picture at low detail, where a model takes any.
const LOW_AREA: usize = 512 * 512;
/// Side ratio past which the multiples of a factor make no sense.
const MAX_RATIO: usize = 200;
/// Longest side between the two steps of `TilesAndWhole`.
const TILED_SIDE: usize = 4096;

/// Sizes a picture passes through, found before a pixel is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fitting {
    /// (width, height) of each resizing.
    steps: [(usize, usize); 2],
    /// (width, height) of a tile.
    pub tile: (usize, usize),
    /// (rows, columns) of tiles that are cut; (0, 0): the picture is one tile.
    pub tiles: (usize, usize),
    finish: Finish,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    Plain,
    Crop,
    Pad,
    AddWhole,
}

/// What a tower reads.
#[derive(Clone, PartialEq)]
pub struct Pixels {
    /// `[count, 3, height, width]`.
    pub planes: Vec<f32>,
    /// Tiles.
    pub count: usize,
    /// Rows of a tile.
    pub height: usize,
    /// Columns of a tile.
    pub width: usize,
    /// (rows, columns) of the tiles the picture was cut into; (0, 0): it was not.
    pub tiles: (usize, usize),
}

impl std::fmt::Debug for Pixels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pixels({} x {} x {}, {:?})", self.count, self.height, self.width, self.tiles)
    }
}

impl Pixels {
    /// Hash of everything that decides what a tower makes of it.
    pub fn hash(&self) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new();
        for size in [self.count, self.height, self.width, self.tiles.0, self.tiles.1] {
            hasher.update(&(size as u64).to_le_bytes());
        }
        let mut bytes = Vec::with_capacity(1 << 16);
        for values in self.planes.chunks(1 << 14) {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            hasher.update(&bytes);
        }
        let mut hash = [0; 16];
        hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        hash
    }
}

impl Fitting {
    /// Tiles in all.
    pub fn count(&self) -> usize {
        let cut = (self.tiles.0 * self.tiles.1).max(1);
        if self.finish == Finish::AddWhole { cut + 1 } else { cut }
    }
}

impl ProcessorSpec {
    /// The sizes of a picture of `width x height`.
    ///
    /// # Errors
    /// A shape that the rule has no size for.
    pub fn fit(&self, width: usize, height: usize, detail: Detail) -> Result<Fitting, ModelError> {
        let plain = |width, height| Fitting {
            steps: [(width, height); 2],
            tile: (width, height),
            tiles: (0, 0),
            finish: Finish::Plain,
        };
        Ok(match self.rule {
            SizeRule::Exact { height, width } => plain(width, height),
            SizeRule::ShortestThenCrop { shortest, height: tall, width: wide } => {
                // As in the reference: the longer side is cut down to a whole pixel.
                let longer = |long: usize, short: usize| (shortest * long) / short;
                let to =
                    if width <= height { (shortest, longer(height, width)) } else { (longer(width, height), shortest) };
                Fitting { steps: [to; 2], tile: (wide, tall), tiles: (0, 0), finish: Finish::Crop }
            }
            SizeRule::Multiples { factor, least, most } => {
                if width.max(height) > MAX_RATIO * width.min(height) {
                    let limit = format!("one side is at most {MAX_RATIO} times the other");
                    return Err(ModelError::request("image", format!("{width} x {height}"), limit));
                }
                let most = if detail == Detail::Low { most.min(LOW_AREA).max(least) } else { most };
                let (width, height) = multiples((width, height), factor, least, most);
                plain(width, height)
            }
            SizeRule::WithinThenPatches { longest, patch } => {
                let longest = if detail == Detail::Low { longest.min(512) } else { longest };
                let ratio = (width as f64 / longest as f64).max(height as f64 / longest as f64);
                let within = |side: usize| if ratio > 1.0 { (side as f64 / ratio).floor() as usize } else { side };
                let whole = |side: usize| within(side).max(1).div_ceil(patch) * patch;
                plain(whole(width), whole(height))
            }
            SizeRule::TilesAndWhole { longest, tile, split } => {
                let first = tiled_first((width, height), longest);
                if !split || detail == Detail::Low {
                    return Ok(Fitting { steps: [first, (tile, tile)], ..plain(tile, tile) });
                }
                let second = tiled_second(first, tile);
                let (columns, rows) = (second.0 / tile, second.1 / tile);
                let one = Fitting { steps: [first, second], ..plain(tile, tile) };
                if (columns, rows) == (1, 1) {
                    return Ok(one);
                }
                Fitting { tiles: (rows, columns), finish: Finish::AddWhole, ..one }
            }
            SizeRule::Canvas { tile, count } => {
                let count = if detail == Detail::Low { 1 } else { count };
                let (rows, columns) = canvas((width, height), tile, count);
                let to = within_canvas((width, height), (columns * tile, rows * tile), tile);
                Fitting { steps: [to; 2], tile: (tile, tile), tiles: (rows, columns), finish: Finish::Pad }
            }
        })
    }

    /// Carries out a fitting of this processor.
    pub fn process(&self, picture: &Picture, fitting: &Fitting) -> Pixels {
        let [first, second] = fitting.steps;
        let mut resized = resize(picture, first.0, first.1, self.filter);
        if second != first {
            resized = resize(&resized, second.0, second.1, self.filter);
        }
        let (width, height) = fitting.tile;
        let (rows, columns) = (fitting.tiles.0.max(1), fitting.tiles.1.max(1));
        let mut planes = Vec::with_capacity(fitting.count() * 3 * width * height);
        // Both halves of what a crop takes away are rounded as the reference rounds them.
        let inset = |have: usize, want: usize| (have as isize - want as isize).div_euclid(2);
        let (left, top) = match fitting.finish {
            Finish::Crop => (inset(resized.width, width), inset(resized.height, height)),
            _ => (0, 0),
        };
        for row in 0..rows {
            for column in 0..columns {
                let corner = (left + (column * width) as isize, top + (row * height) as isize);
                self.cut(&resized, corner, fitting.tile, &mut planes);
            }
        }
        if fitting.finish == Finish::AddWhole {
            self.cut(&resize(&resized, width, height, self.filter), (0, 0), fitting.tile, &mut planes);
        }
        Pixels { planes, count: fitting.count(), height, width, tiles: fitting.tiles }
    }

    /// Appends one tile, channel by channel; what lies outside of the picture is black.
    fn cut(&self, from: &Picture, (left, top): (isize, isize), (width, height): (usize, usize), out: &mut Vec<f32>) {
        for channel in 0..3 {
            let value = |byte: u8| (f32::from(byte) * self.scale - self.mean[channel]) / self.std[channel];
            let table: Vec<f32> = (0..=255).map(value).collect();
            for y in top..top + height as isize {
                let line = usize::try_from(y).ok().filter(|y| *y < from.height);
                out.extend((left..left + width as isize).map(|x| {
                    let column = usize::try_from(x).ok().filter(|x| *x < from.width);
                    let byte = line.zip(column).map_or(0, |(y, x)| from.rgb[(y * from.width + x) * 3 + channel]);
                    table[byte as usize]
                }));
            }
        }
    }
}

fn multiples((width, height): (usize, usize), factor: usize, least: usize, most: usize) -> (usize, usize) {
    let (w, h, f) = (width as f64, height as f64, factor as f64);
    // Halves go to the even multiple, as in the reference.
    let near = |side: f64| (side / f).round_ties_even() as usize * factor;
    let (wide, tall) = (near(w), near(h));
    if wide * tall > most {
        let shrink = (w * h / most as f64).sqrt();
        let down = |side: f64| ((side / shrink / f).floor() as usize * factor).max(factor);
        (down(w), down(h))
    } else if wide * tall < least {
        let grow = (least as f64 / (w * h)).sqrt();
        let up = |side: f64| (side * grow / f).ceil() as usize * factor;
        (up(w), up(h))
    } else {
        (wide, tall)
    }
}

fn tiled_first((width, height): (usize, usize), longest: usize) -> (usize, usize) {
    let ratio = width as f64 / height as f64;
    let even = |side: f64| (side as usize).next_multiple_of(2);
    let (width, height) =
        if width >= height { (longest, even(longest as f64 / ratio)) } else { (even(longest as f64 * ratio), longest) };
    let (width, height) = (width.max(1), height.max(1));
    let ratio = width as f64 / height as f64;
    let (width, height) = if width >= height && width > TILED_SIDE {
        (TILED_SIDE, (TILED_SIDE as f64 / ratio) as usize)
    } else if height > width && height > TILED_SIDE {
        ((TILED_SIDE as f64 * ratio) as usize, TILED_SIDE)
    } else {
        (width, height)
    };
    (width.max(1), height.max(1))
}

fn tiled_second((width, height): (usize, usize), tile: usize) -> (usize, usize) {
    let ratio = width as f64 / height as f64;
    let whole = |side: usize| side.div_ceil(tile).max(1) * tile;
    if width >= height {
        let width = whole(width);
        (width, whole((width as f64 / ratio) as usize))
    } else {
        let height = whole(height);
        (whole((height as f64 * ratio) as usize), height)
    }
}

/// (rows, columns) of the arrangement that enlarges least, or else shrinks least; of equals the smallest, then the first.
fn canvas((width, height): (usize, usize), tile: usize, count: usize) -> (usize, usize) {
    let mut best = ((1, 1), f64::NAN);
    for arrangement in arrangements(count) {
        let (rows, columns) = arrangement;
        let scale = ((rows * tile) as f64 / height as f64).min((columns * tile) as f64 / width as f64);
        let (known, area) = (best.1, best.0.0 * best.0.1);
        let better = if known.is_nan() {
            true
        } else if (scale >= 1.0) != (known >= 1.0) {
            scale >= 1.0
        } else if scale >= 1.0 {
            scale < known
        } else {
            scale > known
        };
        #[allow(clippy::float_cmp)] // the same quotients of the same numbers
        if better || (scale == known && rows * columns < area) {
            best = (arrangement, scale);
        }
    }
    best.0
}

/// (rows, columns) of all arrangements of at most `count` tiles, in the order of their learnt rows.
pub fn arrangements(count: usize) -> impl Iterator<Item = (usize, usize)> {
    let all = move |rows| (1..=count).map(move |columns| (rows, columns));
    (1..=count).flat_map(all).filter(move |(rows, columns)| rows * columns <= count)
}

fn within_canvas((width, height): (usize, usize), canvas: (usize, usize), tile: usize) -> (usize, usize) {
    let (wide, tall) = (width.clamp(tile, canvas.0), height.clamp(tile, canvas.1));
    let (by_height, by_width) = (tall as f64 / height as f64, wide as f64 / width as f64);
    let side = |length: usize, scale: f64, most: usize| ((length as f64 * scale).floor() as usize).max(1).min(most);
    if by_width < by_height { (wide, side(height, by_width, tall)) } else { (side(width, by_height, wide), tall) }
}
