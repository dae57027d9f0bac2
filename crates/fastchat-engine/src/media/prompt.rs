//! From segments and pictures to token ids with places for the pictures' rows. Runs on the caller's thread, so that a
//! hostile picture costs its sender's time and nobody else's.

use fastchat_models::vision::processor::Fitting;
use fastchat_models::vision::{Picture, PictureLimits, Piece, Pixels, VisionSpec};

use super::{ImageData, ImageInput, MAX_IMAGES, MediaLayout, RequestMedia, Run, Segment};
use crate::block_hash::BlockHash;
use crate::error::EngineError;
use crate::text::Tokenizer;

/// A prompt as the model sees it.
#[derive(Debug, Default)]
pub(crate) struct Expanded {
    pub tokens: Vec<u32>,
    /// `None` without pictures.
    pub media: Option<RequestMedia>,
}

/// Turns the prompts of one model into tokens.
pub(crate) struct Expander<'a> {
    pub vision: Option<&'a VisionSpec>,
    pub tokenizer: Option<&'a Tokenizer>,
    /// Tokens of a context.
    pub limit: usize,
    /// Ids that a caller may name.
    pub vocab: usize,
}

/// Tokens so far, and text that is not yet tokenised.
#[derive(Default)]
struct Draft {
    tokens: Vec<u32>,
    text: String,
    runs: Vec<Run>,
    markers: Vec<usize>,
}

fn wrong_image(place: usize, error: &impl std::fmt::Display) -> EngineError {
    EngineError::invalid(&format!("images.{place}"), format!("images.{place}: {error}"))
}

fn picture(input: &ImageInput, limits: &PictureLimits) -> Result<Picture, fastchat_models::ModelError> {
    match &input.data {
        ImageData::Encoded(bytes) => Picture::decode(bytes, limits),
        ImageData::Pixels { width, height, channels, bytes } => {
            Picture::from_pixels(*width, *height, *channels, bytes, limits)
        }
    }
}

fn size(input: &ImageInput, limits: &PictureLimits) -> Result<(usize, usize), fastchat_models::ModelError> {
    match &input.data {
        ImageData::Encoded(bytes) => Picture::size(bytes, limits),
        // Checked when it is read.
        ImageData::Pixels { width, height, .. } => Ok((*width, *height)),
    }
}

impl Expander<'_> {
    /// The tokens of `segments`, in which `images` stand in the order of their markers.
    pub fn expand(&self, segments: &[Segment], images: &[ImageInput]) -> Result<Expanded, EngineError> {
        let vision = self.vision_for(images)?;
        let limits = PictureLimits::default();
        let (mut pieces, mut pixels) = (Vec::with_capacity(images.len()), Vec::with_capacity(images.len()));
        for (place, input) in images.iter().enumerate() {
            let Some(vision) = vision else { break };
            let picture = picture(input, &limits).map_err(|error| wrong_image(place, &error))?;
            let fitting = self.fit(vision, (picture.width, picture.height), (place, input), &mut pieces)?;
            pixels.push(vision.processor.process(&picture, &fitting));
        }
        Ok(Self::finish(self.assemble(segments, vision, &pieces)?, vision, pixels))
    }

    /// How many tokens `expand` would make, by the headers of the pictures.
    pub fn count(&self, segments: &[Segment], images: &[ImageInput]) -> Result<usize, EngineError> {
        let vision = self.vision_for(images)?;
        let limits = PictureLimits::default();
        let mut pieces = Vec::with_capacity(images.len());
        for (place, input) in images.iter().enumerate() {
            let Some(vision) = vision else { break };
            let size = size(input, &limits).map_err(|error| wrong_image(place, &error))?;
            self.fit(vision, size, (place, input), &mut pieces)?;
        }
        Ok(self.assemble(segments, vision, &pieces)?.tokens.len())
    }

    fn vision_for(&self, images: &[ImageInput]) -> Result<Option<&VisionSpec>, EngineError> {
        if images.len() > MAX_IMAGES {
            let message = format!("images: {} pictures; at most {MAX_IMAGES} are read", images.len());
            return Err(EngineError::invalid("images", message));
        }
        match (self.vision, images) {
            (_, []) => Ok(None),
            (None, _) => Err(EngineError::invalid("images.0", "images.0: this model does not support image input")),
            (vision, _) => Ok(vision),
        }
    }

    /// Adds what stands for a picture of that size. Rows past the context are refused before pixels are resized: many
    /// large pictures must not cost more than few.
    fn fit(
        &self,
        vision: &VisionSpec,
        (width, height): (usize, usize),
        (place, input): (usize, &ImageInput),
        all: &mut Vec<Vec<Piece>>,
    ) -> Result<Fitting, EngineError> {
        let fitting = vision.processor.fit(width, height, input.detail).map_err(|error| wrong_image(place, &error))?;
        all.push(vision.pieces(&fitting));
        let rows = |piece: &Piece| if let Piece::Rows(rows) = piece { *rows } else { 0 };
        let rows = all.iter().flatten().map(rows).sum();
        if rows >= self.limit {
            return Err(EngineError::ContextLength { limit: self.limit, prompt: rows });
        }
        Ok(fitting)
    }

    fn assemble(
        &self,
        segments: &[Segment],
        vision: Option<&VisionSpec>,
        pictures: &[Vec<Piece>],
    ) -> Result<Draft, EngineError> {
        let marker = vision.map(|vision| vision.placement.marker);
        let spelling = marker.and_then(|marker| self.tokenizer?.id_to_token(marker));
        let mut draft = Draft::default();
        let mut found = 0;
        let mut picture = |draft: &mut Draft| -> Result<(), EngineError> {
            let place = found;
            found += 1;
            match (vision, pictures.get(place)) {
                (Some(vision), Some(pieces)) => self.insert(draft, vision, pieces, place),
                _ => Ok(()),
            }
        };
        for segment in segments {
            match segment {
                Segment::Text(text) => {
                    let mut rest = text.as_str();
                    while let Some((before, after)) = spelling.and_then(|marker| rest.split_once(marker)) {
                        draft.text.push_str(before);
                        picture(&mut draft)?;
                        rest = after;
                    }
                    draft.text.push_str(rest);
                }
                Segment::Literal(text) => {
                    self.flush(&mut draft)?;
                    draft.tokens.extend(self.encode(text, false)?);
                }
                Segment::Tokens(ids) => {
                    self.flush(&mut draft)?;
                    for &id in ids {
                        if Some(id) == marker {
                            picture(&mut draft)?;
                        } else if id as usize >= self.vocab {
                            let message = format!(
                                "prompt has token id {id}; it must be below {}, the size of the vocabulary",
                                self.vocab
                            );
                            return Err(EngineError::invalid("prompt", message));
                        } else {
                            self.flush(&mut draft)?;
                            draft.tokens.push(id);
                        }
                    }
                }
            }
        }
        self.flush(&mut draft)?;
        if found != pictures.len() {
            let message = format!("images: {} for {found} places in the prompt; each picture has one", pictures.len());
            return Err(EngineError::invalid("images", message));
        }
        Ok(draft)
    }

    fn finish(draft: Draft, vision: Option<&VisionSpec>, pixels: Vec<Pixels>) -> Expanded {
        let Draft { tokens, runs, markers, .. } = draft;
        let media = vision.filter(|_| !pixels.is_empty()).map(|vision| {
            let grids: Vec<_> = pixels.iter().map(|pixels| vision.grid_of(pixels)).collect();
            let manner = (vision.placement.turns, vision.placement.sight);
            let layout = MediaLayout::new(runs, markers, manner, tokens.len(), &grids);
            let hashed = |pixels: Pixels| (BlockHash::from_le_bytes(pixels.hash()), pixels);
            RequestMedia { images: pixels.into_iter().map(hashed).collect(), layout }
        });
        Expanded { tokens, media }
    }

    fn insert(
        &self,
        draft: &mut Draft,
        vision: &VisionSpec,
        pieces: &[Piece],
        image: usize,
    ) -> Result<(), EngineError> {
        let mut from = 0;
        for piece in pieces {
            match piece {
                Piece::Text(text) => draft.text.push_str(text),
                Piece::Token(id) => {
                    self.flush(draft)?;
                    if *id == vision.placement.token {
                        draft.markers.push(draft.tokens.len());
                    }
                    draft.tokens.push(*id);
                }
                Piece::Rows(rows) => {
                    self.flush(draft)?;
                    let start = draft.tokens.len();
                    draft.tokens.extend(std::iter::repeat_n(vision.placement.token, *rows));
                    draft.runs.push(Run { tokens: start..start + rows, image, from });
                    from += rows;
                }
            }
        }
        Ok(())
    }

    fn flush(&self, draft: &mut Draft) -> Result<(), EngineError> {
        if !draft.text.is_empty() {
            let text = std::mem::take(&mut draft.text);
            draft.tokens.extend(self.encode(&text, true)?);
        }
        Ok(())
    }

    fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, EngineError> {
        let no_tokenizer = || EngineError::invalid("prompt", "prompt: this engine has no tokenizer; pass token ids");
        Ok(self.tokenizer.ok_or_else(no_tokenizer)?.encode(text, false, parse_special)?)
    }
}
