//! `Image` and `MediaPrompt`: pictures on their way to the engine. Nothing is decoded here.

use fastchat_engine::{Detail, ImageData, ImageInput, Prompt, Segment};
use pyo3::prelude::*;

use crate::errors::invalid;

/// A picture as a caller has it; immutable.
#[pyclass(name = "Image", module = "fastchat_rs._engine", frozen, from_py_object)]
#[derive(Clone, Debug)]
pub struct PyImage(ImageInput);

/// A prompt with places for pictures; immutable.
#[pyclass(name = "MediaPrompt", module = "fastchat_rs._engine", frozen, from_py_object)]
#[derive(Clone, Debug)]
pub struct PyMediaPrompt {
    segments: Vec<Segment>,
    images: Vec<PyImage>,
}

/// A text, or token ids.
#[derive(FromPyObject)]
enum TextOrTokens {
    Text(String),
    Tokens(Vec<u32>),
}

fn detail(name: &str) -> PyResult<Detail> {
    match name {
        "auto" => Ok(Detail::Auto),
        "low" => Ok(Detail::Low),
        "high" => Ok(Detail::High),
        _ => Err(invalid("detail", format!("detail is '{name}', expected auto, low or high"))),
    }
}

#[pymethods]
impl PyImage {
    #[staticmethod]
    #[pyo3(signature = (data, *, detail="auto"))]
    fn encoded(data: &[u8], detail: &str) -> PyResult<Self> {
        Ok(Self(ImageInput { data: ImageData::Encoded(data.into()), detail: self::detail(detail)? }))
    }

    #[staticmethod]
    #[pyo3(signature = (data, width, height, channels, *, detail="auto"))]
    fn pixels(data: &[u8], width: usize, height: usize, channels: usize, detail: &str) -> PyResult<Self> {
        let data = ImageData::Pixels { width, height, channels, bytes: data.into() };
        Ok(Self(ImageInput { data, detail: self::detail(detail)? }))
    }

    fn __repr__(&self) -> String {
        format!("Image({:?}, detail={:?})", self.0.data, self.0.detail)
    }
}

#[pymethods]
#[allow(clippy::needless_pass_by_value, reason = "sequences are converted into owned values")]
impl PyMediaPrompt {
    #[new]
    fn new(segments: Vec<(TextOrTokens, bool)>, images: Vec<PyImage>) -> Self {
        let segment = |(segment, literal)| match (segment, literal) {
            (TextOrTokens::Text(text), false) => Segment::Text(text),
            (TextOrTokens::Text(text), true) => Segment::Literal(text),
            (TextOrTokens::Tokens(ids), _) => Segment::Tokens(ids),
        };
        Self { segments: segments.into_iter().map(segment).collect(), images }
    }

    fn __repr__(&self) -> String {
        format!("MediaPrompt({} segments, {} images)", self.segments.len(), self.images.len())
    }
}

impl PyMediaPrompt {
    pub fn into_engine(self) -> Prompt {
        Prompt::Media { segments: self.segments, images: self.images.into_iter().map(|image| image.0).collect() }
    }
}
