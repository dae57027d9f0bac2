//! Who runs when: sequences, the scheduler with its paged blocks, sampling, text, and the thread that owns the model.
//! Knows nothing of HTTP.

pub mod block_manager;
mod choice;
mod config;
mod constraint;
mod delta;
mod doorbell;
mod embedding;
mod embedding_worker;
mod engine;
mod error;
mod fairness;
mod handle;
mod info;
pub mod media;
mod memory;
mod pace;
mod params;
mod prompt_logprobs;
pub mod rng;
pub mod rows;
mod runner;
pub mod sampler;
mod schedule;
pub mod scheduler;
pub mod sequence;
mod slot;
pub mod speculation;
pub mod state_pool;
pub mod text;
mod worker;

pub use candle_core::DType;
pub use config::{EngineConfig, Prompt, Request};
pub use delta::{Delta, Finish, PromptLogprobs, StopReason, Timings, Usage};
pub use embedding::{EmbeddingConfig, EmbeddingEngine, EmbeddingHandle, EmbeddingInfo};
pub use engine::Engine;
pub use error::EngineError;
pub use fastchat_models::Quantize;
pub use fastchat_models::vision::Detail;
pub use handle::{RequestHandle, Subscription};
pub use info::{EngineStats, ModelInfo};
pub use media::{ImageData, ImageInput, Segment};
pub use memory::{MemoryPlan, automatic_kv_memory};
pub use params::SamplingParams;
pub use sampler::TokenLogprobs;
pub use sequence::FinishReason;
