//! What a file or folder holds once it is read and before any weight is packed: description, tensors, and what the text
//! side needs. `hf` and `gguf` each make one; nothing here knows which.

use std::path::PathBuf;

use serde::Serialize;

use crate::description::Description;
use crate::encoder_spec::{EncoderDescription, Pooling};
use crate::vision::VisionDescription;
use crate::weights::TensorMap;

/// A checkpoint, described and mapped.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// File format, for `inspect`.
    pub format: &'static str,
    /// Name of the family in the format's words.
    pub family: String,
    pub description: Description,
    /// The tower of a model that takes pictures.
    pub vision: Option<VisionDescription>,
    /// The tower's, where they lie in a file of their own.
    pub tower_tensors: Option<TensorMap>,
    pub tensors: TensorMap,
    pub text: TextSide,
}

/// What makes the rows that become vectors.
#[derive(Debug)]
pub(crate) enum EmbedderDescription {
    Encoder(EncoderDescription),
    Decoder(Description),
}

/// The same for what makes vectors.
#[derive(Debug)]
pub(crate) struct EncoderCheckpoint {
    /// File format, for `inspect`.
    pub format: &'static str,
    /// Name of the family in the format's words.
    pub family: String,
    pub description: EmbedderDescription,
    pub pooling: Pooling,
    /// Longest text the authors allow, where they say so.
    pub max_seq_length: Option<usize>,
    pub tensors: TensorMap,
    pub text: TextSide,
}

impl EncoderCheckpoint {
    /// Longest sequence that positions reach.
    pub fn reach(&self) -> usize {
        match &self.description {
            EmbedderDescription::Encoder(encoder) => encoder.spec.max_positions,
            EmbedderDescription::Decoder(decoder) => decoder.spec.max_positions,
        }
    }

    /// Longest sequence that is served where the caller does not say.
    pub fn longest(&self) -> usize {
        self.max_seq_length.map_or(self.reach(), |longest| longest.min(self.reach()))
    }
}

/// What the text side of an engine needs from a checkpoint.
#[derive(Clone, Debug, Default)]
pub(crate) struct TextSide {
    pub tokenizer: Option<TokenizerSource>,
    pub chat_template: Option<String>,
    pub generation: GenerationDefaults,
    pub eos_token_ids: Vec<u32>,
    pub bos_token_id: Option<u32>,
}

/// Where the tokenizer comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizerSource {
    /// Paths of tokenizer.json and, where there is one, tokenizer_config.json.
    Json(PathBuf, Option<PathBuf>),
    /// Tables stored beside the weights.
    Gguf(GgufVocab),
}

/// A vocabulary as GGUF metadata holds it.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(clippy::struct_excessive_bools)] // the format's own switches
pub struct GgufVocab {
    /// Algorithm: `gpt2`, `llama`, ...
    pub model: String,
    /// Name of the pre-tokenizer.
    pub pre: String,
    /// Tokens by id.
    pub tokens: Vec<String>,
    /// Scores by id; empty when the algorithm has none.
    pub scores: Vec<f32>,
    /// Kinds by id, in GGUF's numbers.
    pub token_types: Vec<i32>,
    /// Merges, best first.
    pub merges: Vec<String>,
    /// Token that begins a text.
    pub bos: Option<u32>,
    /// Token that ends a text.
    pub eos: Option<u32>,
    /// Token for what the vocabulary lacks.
    pub unk: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Whether encoding begins with `bos`.
    pub add_bos: bool,
    /// Whether encoding ends with `eos`.
    pub add_eos: bool,
    /// Whether a space is put before the text.
    pub add_space_prefix: bool,
    /// Whether runs of spaces become one (`t5`).
    pub remove_extra_whitespaces: bool,
    /// SentencePiece's table of normal forms (`t5`); empty where there is none.
    pub precompiled_charsmap: Vec<u8>,
}

/// Sampling defaults that a model's authors recommend; `None` where they say nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GenerationDefaults {
    /// Temperature; 0 where the authors switch sampling off.
    pub temperature: Option<f32>,
    /// Nucleus.
    pub top_p: Option<f32>,
    /// Most likely tokens kept.
    pub top_k: Option<u32>,
    /// Least probability relative to the best.
    pub min_p: Option<f32>,
    /// Multiplicative penalty on tokens already seen.
    pub repetition_penalty: Option<f32>,
    /// Most tokens to generate.
    pub max_new_tokens: Option<u32>,
}
