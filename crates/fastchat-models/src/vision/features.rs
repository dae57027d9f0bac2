//! What a picture is to a decoder, and where a step places it. Knows no model and no request.

use std::ops::Range;

use candle_core::Tensor;

use crate::ModelError;

type Result<T> = std::result::Result<T, ModelError>;

/// A picture's rows for one decoder.
#[derive(Clone, Debug)]
pub struct ImageFeatures {
    /// `[rows, hidden]`: stand in for embeddings; no rows where the picture is only looked at.
    pub(crate) rows: Tensor,
    /// Added to the stream at the same places, one per layer from the first on.
    pub(crate) deep: Vec<Tensor>,
    /// Keys `[kv_heads, dim, patches]` and values `[kv_heads, patches, dim]` of each layer that looks at pictures.
    pub(crate) looked_at: Vec<(Tensor, Tensor)>,
    /// The first patches, which belong to the picture; the others fill it up.
    pub(crate) visible: usize,
}

impl ImageFeatures {
    /// Rows that stand in for embeddings.
    pub fn num_rows(&self) -> usize {
        self.rows.dims().first().copied().unwrap_or(0)
    }

    /// The rows, then those for the decoder's first layers.
    pub fn all_rows(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.rows).chain(&self.deep)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> usize {
        let pairs = self.looked_at.iter().flat_map(|(keys, values)| [keys, values]);
        let all = self.all_rows().chain(pairs);
        all.map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
    }
}

/// Pictures of one step.
#[derive(Debug, Default)]
pub struct Media<'a> {
    /// Rows that stand in for embeddings, by batch row, not overlapping.
    pub placed: Vec<Placed<'a>>,
    /// Sequences that look at pictures, by batch row.
    pub looking: Vec<CrossSequence<'a>>,
}

/// A run of a picture's rows in a batch.
#[derive(Clone, Debug)]
pub struct Placed<'a> {
    /// The picture.
    pub features: &'a ImageFeatures,
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Row of the picture that comes first.
    pub from: usize,
}

/// A sequence that looks at pictures.
#[derive(Clone, Debug)]
pub struct CrossSequence<'a> {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// All pictures of the sequence.
    pub images: Vec<&'a ImageFeatures>,
    /// For each row, which of them it sees. A row that stands before the first picture sees none.
    pub seen: Vec<Range<usize>>,
}

impl Media<'_> {
    /// Refuses what does not fit a batch of `tokens`.
    pub(crate) fn check(&self, tokens: usize) -> Result<()> {
        let bad = |what: String| Err(ModelError::request("media", what, format!("rows of a batch of {tokens} tokens")));
        let mut end = 0;
        for placed in &self.placed {
            let len = placed.rows.len();
            if placed.rows.start < end || placed.rows.end > tokens || placed.from + len > placed.features.num_rows() {
                return bad(format!("rows {:?} from {}", placed.rows, placed.from));
            }
            end = placed.rows.end;
        }
        end = 0;
        for looking in &self.looking {
            if looking.rows.start < end || looking.rows.end > tokens || looking.seen.len() != looking.rows.len() {
                return bad(format!("looking rows {:?}", looking.rows));
            }
            if looking.seen.iter().any(|seen| seen.end > looking.images.len()) {
                return bad(format!("{} pictures", looking.images.len()));
            }
            end = looking.rows.end;
        }
        Ok(())
    }

    /// The stream with pictures in place of embeddings.
    pub(crate) fn place(&self, stream: Tensor) -> Result<Tensor> {
        self.splice(stream, |placed, _| Ok(placed.features.rows.narrow(0, placed.from, placed.rows.len())?))
    }

    /// The stream after layer `layer`, with what pictures add there.
    pub(crate) fn deepen(&self, stream: Tensor, layer: usize) -> Result<Tensor> {
        if self.placed.iter().all(|placed| layer >= placed.features.deep.len()) {
            return Ok(stream);
        }
        self.splice(stream, |placed, old| match placed.features.deep.get(layer) {
            Some(deep) => Ok((old + deep.narrow(0, placed.from, placed.rows.len())?)?),
            None => Ok(old),
        })
    }

    fn splice(&self, stream: Tensor, new: impl Fn(&Placed, Tensor) -> Result<Tensor>) -> Result<Tensor> {
        if self.placed.is_empty() {
            return Ok(stream);
        }
        let mut parts = Vec::new();
        let mut next = 0;
        for placed in &self.placed {
            if placed.rows.start > next {
                parts.push(stream.narrow(0, next, placed.rows.start - next)?);
            }
            parts.push(new(placed, stream.narrow(0, placed.rows.start, placed.rows.len())?)?);
            next = placed.rows.end;
        }
        let rows = stream.dim(0)?;
        if next < rows {
            parts.push(stream.narrow(0, next, rows - next)?);
        }
        Ok(Tensor::cat(&parts, 0)?.contiguous()?)
    }
}
