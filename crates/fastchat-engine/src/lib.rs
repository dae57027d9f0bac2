//! Who runs when: sequences, the scheduler with its paged blocks, sampling, text, and the thread that owns the model.
//! Knows nothing of HTTP.

pub mod block_manager;
pub mod error;
pub mod params;
pub mod rng;
pub mod rows;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod state_pool;
pub mod text;

pub use error::EngineError;
pub use params::SamplingParams;
