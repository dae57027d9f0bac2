//! Encoded pictures to pixels, with every limit checked against the header before a pixel is decoded. Knows no models.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use crate::ModelError;

/// What a picture may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureLimits {
    /// Pixels of a side.
    pub side: u32,
    /// Pixels in all.
    pub pixels: u64,
    /// Bytes that decoding may hold at once.
    pub bytes: u64,
}

impl Default for PictureLimits {
    fn default() -> Self {
        Self { side: 8192, pixels: 64 << 20, bytes: 320 << 20 }
    }
}

/// Eight-bit RGB, row by row from the top.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`.
    pub rgb: Vec<u8>,
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({} x {})", self.width, self.height)
    }
}

type Result<T> = std::result::Result<T, ModelError>;

fn refuse(value: impl ToString, limit: impl ToString) -> ModelError {
    ModelError::request("image", value, limit)
}

impl PictureLimits {
    fn check(&self, width: u32, height: u32) -> Result<()> {
        let size = || format!("{width} x {height}");
        if width == 0 || height == 0 {
            return Err(refuse(size(), "a picture has at least one pixel"));
        }
        if width > self.side || height > self.side {
            return Err(refuse(size(), format!("at most {} pixels a side", self.side)));
        }
        if u64::from(width) * u64::from(height) > self.pixels {
            return Err(refuse(size(), format!("at most {} pixels", self.pixels)));
        }
        Ok(())
    }
}

impl Picture {
    /// A picture from pixels that are there already, `channels` (1, 3 or 4) bytes each; opacity is dropped.
    ///
    /// # Errors
    /// A size past the limits, or bytes that do not make it up.
    pub fn from_pixels(
        width: usize,
        height: usize,
        channels: usize,
        bytes: &[u8],
        limits: &PictureLimits,
    ) -> Result<Self> {
        let side = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        limits.check(side(width), side(height))?;
        if bytes.len() != width * height * channels {
            let limit = format!("{width} x {height} pixels of {channels} bytes are");
            return Err(refuse(format!("{} bytes", bytes.len()), limit));
        }
        let rgb = match channels {
            1 => bytes.iter().flat_map(|&grey| [grey; 3]).collect(),
            3 => bytes.to_vec(),
            4 => bytes.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
            other => return Err(refuse(format!("{other} channels"), "1 (grey), 3 (RGB) or 4 (RGBA)")),
        };
        Ok(Self { width, height, rgb })
    }

    /// Decodes PNG, JPEG, WebP or GIF (the first frame of what moves), upright as its EXIF orientation says.
    ///
    /// # Errors
    /// What is no such picture, damaged, or past the limits, as a reason for its sender.
    pub fn decode(bytes: &[u8], limits: &PictureLimits) -> Result<Self> {
        let (decoder, orientation, format) = open(bytes, limits)?;
        let decoded = DynamicImage::from_decoder(decoder);
        let mut decoded = decoded.map_err(|error| damaged(&error, format, limits))?;
        decoded.apply_orientation(orientation);
        let rgb = decoded.into_rgb8();
        let (width, height) = rgb.dimensions();
        Ok(Self { width: width as usize, height: height as usize, rgb: rgb.into_raw() })
    }

    /// (width, height) that `decode` would give, from the header alone.
    ///
    /// # Errors
    /// As `decode`, but for damage past the header.
    pub fn size(bytes: &[u8], limits: &PictureLimits) -> Result<(usize, usize)> {
        let (decoder, orientation, _) = open(bytes, limits)?;
        let (width, height) = decoder.dimensions();
        let lies = matches!(
            orientation,
            Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH
        );
        let (width, height) = if lies { (height, width) } else { (width, height) };
        Ok((width as usize, height as usize))
    }
}

/// A decoder whose header has been read and found within the limits.
fn open<'a>(bytes: &'a [u8], limits: &PictureLimits) -> Result<(impl ImageDecoder + 'a, Orientation, ImageFormat)> {
    const KNOWN: &str = "a picture in PNG, JPEG, WebP or GIF format";
    if bytes.is_empty() {
        return Err(refuse("0 bytes", KNOWN));
    }
    let format = image::guess_format(bytes)
        .ok()
        .filter(|format| [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif].contains(format))
        .ok_or_else(|| refuse("data of another kind", KNOWN))?;
    let damaged = |error: ImageError| damaged(&error, format, limits);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut allowed = Limits::default();
    // Sides are checked below, for a message that names them.
    allowed.max_alloc = Some(limits.bytes);
    reader.limits(allowed);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    if decoder.total_bytes() > limits.bytes {
        return Err(refuse(format!("{width} x {height}"), format!("its pixels may take {} bytes", limits.bytes)));
    }
    let orientation = decoder.orientation().map_err(damaged)?;
    Ok((decoder, orientation, format))
}

fn damaged(error: &ImageError, format: ImageFormat, limits: &PictureLimits) -> ModelError {
    match error {
        ImageError::Limits(_) => refuse("a picture", format!("decoding may hold at most {} bytes", limits.bytes)),
        _ => refuse(format!("{format:?} data"), "damaged or cut off"),
    }
}
