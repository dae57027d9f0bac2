//! What was loaded, and how the engine is doing.

use std::collections::BTreeMap;

use fastchat_engine::{EngineStats, ModelInfo};
use pyo3::prelude::*;

/// Counters since the start and gauges of now.
#[pyclass(name = "EngineStats", module = "fastchat_rs._engine", frozen, get_all)]
pub struct PyEngineStats {
    alive: bool,
    running: usize,
    waiting: usize,
    free_blocks: usize,
    total_blocks: usize,
    block_size: usize,
    steps: u64,
    prompt_tokens: u64,
    generation_tokens: u64,
    cached_tokens: u64,
    preemptions: u64,
    draft_tokens: u64,
    accepted_tokens: u64,
    forced_tokens: u64,
    graph_steps: u64,
    overlapped_steps: u64,
    graph_failure: Option<String>,
    disk_hits: u64,
    disk_written: u64,
    disk_damaged: u64,
    disk_dropped: u64,
    disk_bytes: u64,
}

/// What was loaded.
#[pyclass(name = "ModelInfo", module = "fastchat_rs._engine", frozen, get_all)]
pub struct PyModelInfo {
    chat_template: Option<String>,
    bos_token: Option<String>,
    eos_token: Option<String>,
    bos_token_id: Option<u32>,
    eos_token_ids: Vec<u32>,
    has_tokenizer: bool,
    max_model_len: usize,
    vocab_size: usize,
    fingerprint: String,
    generation_defaults: BTreeMap<String, f64>,
    kernels: String,
    image_marker: Option<String>,
    takes_images: bool,
    spec_json: String,
    prefix_disk: String,
    graphs: String,
}

impl From<EngineStats> for PyEngineStats {
    fn from(stats: EngineStats) -> Self {
        Self {
            alive: stats.alive,
            running: stats.running,
            waiting: stats.waiting,
            free_blocks: stats.free_blocks,
            total_blocks: stats.total_blocks,
            block_size: fastchat_kernels::BLOCK_SIZE,
            steps: stats.steps,
            prompt_tokens: stats.prompt_tokens,
            generation_tokens: stats.generation_tokens,
            cached_tokens: stats.cached_tokens,
            preemptions: stats.preemptions,
            draft_tokens: stats.draft_tokens,
            accepted_tokens: stats.accepted_tokens,
            forced_tokens: stats.forced_tokens,
            graph_steps: stats.graph_steps,
            overlapped_steps: stats.overlapped_steps,
            graph_failure: stats.graph_failure.as_deref().map(str::to_owned),
            disk_hits: stats.disk.hits,
            disk_written: stats.disk.written,
            disk_damaged: stats.disk.damaged,
            disk_dropped: stats.disk.dropped,
            disk_bytes: stats.disk.bytes,
        }
    }
}

impl From<&ModelInfo> for PyModelInfo {
    fn from(info: &ModelInfo) -> Self {
        Self {
            chat_template: info.chat_template.clone(),
            bos_token: info.bos_token.clone(),
            eos_token: info.eos_token.clone(),
            bos_token_id: info.bos_token_id,
            eos_token_ids: info.eos_token_ids.clone(),
            has_tokenizer: info.has_tokenizer,
            max_model_len: info.max_model_len,
            vocab_size: info.vocab_size,
            fingerprint: info.fingerprint.clone(),
            generation_defaults: info.generation_defaults.clone(),
            kernels: info.kernels.clone(),
            image_marker: info.image_marker.clone(),
            takes_images: info.takes_images,
            spec_json: info.spec.to_string(),
            prefix_disk: info.prefix_disk.clone(),
            graphs: info.graphs.clone(),
        }
    }
}
