//! What makes vectors of texts: an encoder, or a decoder whose rows are pooled. Knows no model and no request.

use std::sync::Arc;

use candle_core::DType;
use fastchat_kernels::{BLOCK_SIZE, ForwardBatch, Kernels};

use crate::checkpoint::EmbedderDescription;
use crate::encoder_spec::Pooling;
use crate::options::LoadOptions;
use crate::pooling::pool;
use crate::spec::DecoderSpec;
use crate::weights::TensorMap;
use crate::{Cache, Decoder, Encoder, ModelError};

type Result<T> = std::result::Result<T, ModelError>;

/// Tokens that a decoder computes at a time.
const STEP: usize = 512;

/// A model whose rows become vectors, or scores.
#[derive(Debug)]
pub enum Embedder {
    /// Tokens see both directions.
    Encoder(Encoder),
    /// Tokens see those before them.
    Decoder(PooledDecoder),
}

impl Embedder {
    pub(crate) fn new(
        description: EmbedderDescription,
        pooling: Pooling,
        tensors: &TensorMap,
        kernels: Arc<dyn Kernels>,
        options: &LoadOptions,
    ) -> Result<Self> {
        match description {
            EmbedderDescription::Encoder(description) => {
                let max_model_len = options.max_model_len.unwrap_or(description.spec.max_positions);
                let limits = (max_model_len, options.quantize);
                Ok(Self::Encoder(Encoder::new(description, pooling, tensors, kernels, limits)?))
            }
            EmbedderDescription::Decoder(description) => {
                let decoder = Decoder::new(description, tensors, kernels, options)?;
                Ok(Self::Decoder(PooledDecoder::new(decoder, pooling)?))
            }
        }
    }

    /// The encoder, if it is one.
    pub fn encoder(&self) -> Option<&Encoder> {
        match self {
            Self::Encoder(encoder) => Some(encoder),
            Self::Decoder(_) => None,
        }
    }

    /// Longest sequence that is served.
    pub fn max_model_len(&self) -> usize {
        match self {
            Self::Encoder(encoder) => encoder.max_model_len(),
            Self::Decoder(decoder) => decoder.decoder.max_model_len(),
        }
    }

    /// (token ids are below this, elements of a vector).
    pub fn sizes(&self) -> (usize, usize) {
        match self {
            Self::Encoder(encoder) => (encoder.spec().vocab_size, encoder.spec().hidden_size),
            Self::Decoder(decoder) => (decoder.spec().vocab_size, decoder.spec().hidden_size),
        }
    }

    /// One vector per sequence.
    ///
    /// # Errors
    /// An empty or too long sequence, a token that the vocabulary lacks, or the device's error.
    pub fn embeddings(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Encoder(encoder) => encoder.embeddings(sequences),
            Self::Decoder(decoder) => decoder.embeddings(sequences),
        }
    }
}

/// A decoder without its output matrix, and a cache for its longest sequence.
#[derive(Debug)]
pub struct PooledDecoder {
    decoder: Decoder,
    pooling: Pooling,
    cache: Cache,
}

impl PooledDecoder {
    fn new(decoder: Decoder, pooling: Pooling) -> Result<Self> {
        if decoder.has_recurrent_state() {
            let limit = "decoders with attention in every layer make embeddings";
            return Err(ModelError::request("model", "a recurrent decoder", limit));
        }
        let blocks = decoder.max_model_len().div_ceil(BLOCK_SIZE);
        let cache = decoder.new_cache(blocks, 0, DType::F32)?;
        Ok(Self { decoder, pooling, cache })
    }

    /// What is computed.
    pub fn spec(&self) -> &DecoderSpec {
        self.decoder.spec()
    }

    /// How rows become one vector.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// As `Embedder::embeddings`: as many sequences at a time as the cache has blocks for.
    fn embeddings(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let limit = self.decoder.max_model_len();
        if let Some(bad) = sequences.iter().find(|ids| ids.is_empty() || ids.len() > limit) {
            let expected = format!("a sequence has 1 to {limit} tokens");
            return Err(ModelError::request("sequence", format!("{} tokens", bad.len()), expected));
        }
        let mut vectors = Vec::with_capacity(sequences.len());
        while let Some(rest) = sequences.get(vectors.len()..).filter(|rest| !rest.is_empty()) {
            let mut blocks = 0;
            let fits = rest.iter().take_while(|ids| {
                blocks += ids.len().div_ceil(BLOCK_SIZE);
                blocks <= self.cache.num_blocks
            });
            let count = fits.count();
            vectors.extend(self.group(&rest[..count])?);
        }
        Ok(vectors)
    }

    /// Sequences that fit into the cache together.
    fn group(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let mut free = 0..;
        let tables: Vec<Vec<u32>> =
            sequences.iter().map(|ids| free.by_ref().take(ids.len().div_ceil(BLOCK_SIZE)).collect()).collect();
        let mut rows: Vec<Vec<Vec<f32>>> = vec![Vec::new(); sequences.len()];
        let mut computed = vec![0; sequences.len()];
        loop {
            let mut batch = ForwardBatch { query_start: vec![0], ..ForwardBatch::default() };
            let mut owners = Vec::new();
            for (at, ids) in sequences.iter().enumerate() {
                let start = computed[at];
                let end = ids.len().min(start + STEP - batch.num_tokens());
                if start == end {
                    continue;
                }
                for position in start..end {
                    if self.pooling.mode.needs(position, ids.len()) {
                        batch.logits_rows.push(batch.token_ids.len() as u32);
                        owners.push(at);
                    }
                    let slot = tables[at][position / BLOCK_SIZE] * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32;
                    batch.token_ids.push(ids[position]);
                    batch.positions.push(position as u32);
                    batch.slot_mapping.push(slot);
                }
                batch.query_start.push(batch.token_ids.len() as u32);
                batch.context_lens.push(end as u32);
                batch.block_tables.push(tables[at].clone());
                computed[at] = end;
            }
            if batch.num_tokens() == 0 {
                return Ok(rows.iter().map(|rows| pool(rows, self.pooling)).collect());
            }
            let found = self.decoder.hidden(&batch, &self.cache)?.to_vec2::<f32>()?;
            owners.into_iter().zip(found).for_each(|(at, row)| rows[at].push(row));
        }
    }
}
