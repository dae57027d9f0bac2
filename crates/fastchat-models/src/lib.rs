//! What a model is: a configuration and tensor names become a closed description, weights are packed once, and one
//! decoder or one encoder runs them all. Knows no scheduling, no text and no hardware; model names are known in `hf` and `gguf` only.

mod cache;
mod checkpoint;
mod coded;
mod convert;
mod cross;
mod decode_step;
mod decoder;
mod description;
mod embedder;
mod encoder;
pub mod encoder_spec;
mod error;
mod gguf;
mod hf;
mod inspect;
mod layers;
mod load;
mod names;
mod options;
mod pooling;
mod quantize;
mod rearrange;
mod rope;
mod safetensors;
mod shard;
mod slots;
pub mod spec;
mod step;
pub mod vision;
mod weights;

pub use cache::Cache;
pub use checkpoint::{GenerationDefaults, GgufVocab, TokenizerSource};
pub use convert::{Converted, FileKind, convert};
pub use decode_step::{Choosing, DecodeStep};
pub use decoder::Decoder;
pub use embedder::{Embedder, PooledDecoder};
pub use encoder::{Encoder, Pair};
pub use error::ModelError;
pub use inspect::{Inspection, KindTotal, ModelSpec, inspect};
pub use load::{LoadedEncoder, LoadedModel, OpenModel, is_encoder, load, load_encoder};
pub use options::LoadOptions;
pub use quantize::Quantize;
pub use vision::{Picture, VisionTower};
