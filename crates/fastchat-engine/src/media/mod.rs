//! Pictures of requests: decoded and placed among the tokens on the caller's thread, encoded on the engine's between
//! steps, remembered by content. The scheduler sees spans of integers only.

mod encoding;
mod prompt;

use std::ops::Range;
use std::sync::Arc;

use fastchat_models::vision::placement::{Sight, Turns};
use fastchat_models::vision::{CrossSequence, Detail, Grid, ImageFeatures, Media, Pixels, Placed, RopeMap};

pub(crate) use encoding::{EncoderQueue, Ready};
pub(crate) use prompt::{Expanded, Expander};

use crate::block_hash::BlockHash;
use crate::sequence::MediaSpan;

/// Pictures of one request.
pub const MAX_IMAGES: usize = 32;

/// A picture as a caller has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInput {
    /// Its data.
    pub data: ImageData,
    /// How closely to look.
    pub detail: Detail,
}

/// A picture's data.
#[derive(Clone, PartialEq, Eq)]
pub enum ImageData {
    /// A PNG, JPEG, WebP or GIF file.
    Encoded(Arc<[u8]>),
    /// Rows of pixels from the top, 1 (grey), 3 (RGB) or 4 (RGBA) bytes each.
    Pixels {
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
        /// Bytes of a pixel.
        channels: usize,
        /// `[height, width, channels]`.
        bytes: Arc<[u8]>,
    },
}

impl std::fmt::Debug for ImageData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Encoded(bytes) => write!(f, "Encoded({} bytes)", bytes.len()),
            Self::Pixels { width, height, channels, .. } => write!(f, "Pixels({width} x {height} x {channels})"),
        }
    }
}

/// A part of a prompt with pictures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// A chat template's text: may name control tokens, and stands for a picture where it names the model's marker.
    Text(String),
    /// Somebody's text: names of control tokens are ordinary text.
    Literal(String),
    /// Token ids; the marker's stands for a picture.
    Tokens(Vec<u32>),
}

/// A run of tokens in whose place a picture's rows stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub tokens: Range<usize>,
    pub image: usize,
    /// Row of the picture that comes first.
    pub from: usize,
}

/// The pictures of a request, placed.
#[derive(Debug)]
pub(crate) struct RequestMedia {
    /// Waiting to be encoded.
    pub images: Vec<(BlockHash, Pixels)>,
    pub layout: MediaLayout,
}

/// Where they stand.
#[derive(Debug, Default)]
pub(crate) struct MediaLayout {
    pub runs: Vec<Run>,
    /// Where pictures that are only looked at were named, in order.
    pub markers: Vec<usize>,
    pub ropes: Option<RopeMap>,
    pub sees_whole: bool,
}

/// The pictures of a request that runs.
#[derive(Debug)]
pub(crate) struct ActiveMedia {
    pub features: Vec<Arc<ImageFeatures>>,
    pub layout: MediaLayout,
}

impl MediaLayout {
    /// With ropes that turn by the grids of the pictures, where the model's do.
    pub fn new(
        runs: Vec<Run>,
        markers: Vec<usize>,
        (turns, sight): (Turns, Sight),
        tokens: usize,
        grids: &[Grid],
    ) -> Self {
        let ropes = (turns == Turns::Grid && !runs.is_empty()).then(|| {
            let pictures: Vec<_> = runs.iter().map(|run| (run.tokens.start, grids[run.image])).collect();
            RopeMap::new(tokens, &pictures)
        });
        Self { runs, markers, ropes, sees_whole: sight == Sight::Whole }
    }

    /// What the scheduler must know.
    pub fn spans(&self, hashes: &[BlockHash]) -> Vec<MediaSpan> {
        let span = |run: &Run| MediaSpan {
            start: run.tokens.start,
            end: run.tokens.end,
            hash: hashes[run.image],
            whole: self.sees_whole,
        };
        self.runs.iter().map(span).collect()
    }

    /// Pictures that the token at `position` looks at: those named last before it, side by side.
    fn seen(&self, position: usize) -> Range<usize> {
        let named = self.markers.partition_point(|&marker| marker <= position);
        let mut first = named.saturating_sub(1);
        while first > 0 && self.markers[first - 1] + 1 == self.markers[first] {
            first -= 1;
        }
        if named == 0 { 0..0 } else { first..named }
    }

    /// Last position that the token at `position` sees.
    pub fn reach(&self, position: usize) -> usize {
        let inside = self.runs.iter().find(|run| self.sees_whole && run.tokens.contains(&position));
        inside.map_or(position, |run| run.tokens.end - 1)
    }
}

impl ActiveMedia {
    /// Adds what tokens `tokens` of the request need, whose first is row `row` of the batch.
    pub fn place<'a>(&'a self, tokens: Range<usize>, row: usize, media: &mut Media<'a>) {
        for run in &self.layout.runs {
            let (start, end) = (run.tokens.start.max(tokens.start), run.tokens.end.min(tokens.end));
            if start < end {
                media.placed.push(Placed {
                    features: &self.features[run.image],
                    rows: row + start - tokens.start..row + end - tokens.start,
                    from: run.from + start - run.tokens.start,
                });
            }
        }
        if !self.layout.markers.is_empty() {
            media.looking.push(CrossSequence {
                rows: row..row + tokens.len(),
                images: self.features.iter().map(AsRef::as_ref).collect(),
                seen: tokens.map(|position| self.layout.seen(position)).collect(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MediaLayout, Run};

    #[test]
    fn a_token_looks_at_the_pictures_named_last() {
        let layout = MediaLayout { markers: vec![2, 3, 7], ..MediaLayout::default() };
        let seen: Vec<_> = (0..9).map(|position| layout.seen(position)).collect();
        assert_eq!(seen, [0..0, 0..0, 0..1, 0..2, 0..2, 0..2, 0..2, 2..3, 2..3]);
    }

    #[test]
    fn only_pictures_reach_past_their_tokens() {
        let runs = vec![Run { tokens: 2..5, image: 0, from: 0 }];
        let layout = MediaLayout { runs, sees_whole: true, ..MediaLayout::default() };
        assert_eq!((0..7).map(|position| layout.reach(position)).collect::<Vec<_>>(), [0, 1, 4, 4, 4, 5, 6]);
    }
}
