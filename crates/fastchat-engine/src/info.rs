//! What was loaded, and how the engine is doing.

use std::collections::BTreeMap;
use std::sync::Arc;

use fastchat_models::{GenerationDefaults, LoadedModel};

use crate::error::EngineError;
use crate::memory::MemoryPlan;
use crate::prefix_disk::DiskStats;
use crate::text::Tokenizer;

/// Counters since the start and gauges of now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Whether requests can be served.
    pub alive: bool,
    /// Sequences that own blocks.
    pub running: usize,
    /// Requests that wait for their first step, and choices thrown back to waiting.
    pub waiting: usize,
    /// Blocks nobody references.
    pub free_blocks: usize,
    /// All blocks.
    pub total_blocks: usize,
    /// Steps that ran.
    pub steps: u64,
    /// Prompt tokens of requests that have started.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: u64,
    /// Sequences thrown back to waiting.
    pub preemptions: u64,
    /// Tokens checked ahead of their turn.
    pub draft_tokens: u64,
    /// Those that were chosen.
    pub accepted_tokens: u64,
    /// Tokens appended without a step, because nothing else could follow.
    pub forced_tokens: u64,
    /// Steps that were replayed as graphs.
    pub graph_steps: u64,
    /// Of all steps, those that a device was computing while the host was at the one before.
    pub overlapped_steps: u64,
    /// Why no more graphs are captured; steps of other sizes run eagerly.
    pub graph_failure: Option<Arc<str>>,
    /// The prefix cache on disk.
    pub disk: DiskStats,
}

/// What was loaded; constant for the life of the engine.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// The checkpoint's chat template.
    pub chat_template: Option<String>,
    /// Spelling of the token that begins a text.
    pub bos_token: Option<String>,
    /// Spelling of the first token that ends a text.
    pub eos_token: Option<String>,
    /// Token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Whether texts can be served.
    pub has_tokenizer: bool,
    /// Tokens of a sequence, prompt and completion together.
    pub max_model_len: usize,
    /// Width of a row of logits.
    pub vocab_size: usize,
    /// Hash of weights, kernels and settings that decide the output.
    pub fingerprint: String,
    /// The authors' recommendations, by field of `SamplingParams`.
    pub generation_defaults: BTreeMap<String, f64>,
    /// What serves the operations.
    pub kernels: String,
    /// Whether prompts may have pictures.
    pub takes_images: bool,
    /// Spelling of the token that stands for a picture in a chat template's text.
    pub image_marker: Option<String>,
    /// The resolved decoder.
    pub spec: serde_json::Value,
    /// Sizes of the caches.
    pub memory: MemoryPlan,
    /// Whether blocks are kept on disk, in one line.
    pub prefix_disk: String,
    /// Whether decode steps become graphs, in one line.
    pub graphs: String,
}

impl ModelInfo {
    pub(crate) fn new(
        model: &LoadedModel,
        tokenizer: Option<&Tokenizer>,
        memory: MemoryPlan,
        kernels: String,
    ) -> Result<Self, EngineError> {
        let spelling = |id: u32| tokenizer.and_then(|tokenizer| tokenizer.id_to_token(id)).map(str::to_owned);
        let decides = format!("{} {kernels} {:?}", model.fingerprint, memory.kv_dtype);
        let spec = serde_json::to_value(model.decoder.spec())
            .map_err(|error| EngineError::Internal(format!("the decoder's description: {error}")))?;
        Ok(Self {
            chat_template: model.chat_template.clone(),
            bos_token: model.bos_token_id.and_then(spelling),
            eos_token: model.eos_token_ids.first().copied().and_then(spelling),
            bos_token_id: model.bos_token_id,
            eos_token_ids: model.eos_token_ids.clone(),
            has_tokenizer: tokenizer.is_some(),
            max_model_len: memory.max_model_len,
            vocab_size: model.decoder.spec().vocab_size,
            fingerprint: blake3::hash(decides.as_bytes()).to_hex()[..16].to_owned(),
            generation_defaults: defaults(&model.generation),
            kernels,
            takes_images: model.vision.is_some(),
            image_marker: model.vision.as_ref().and_then(|tower| spelling(tower.spec().placement.marker)),
            spec,
            memory,
            prefix_disk: "off".to_owned(),
            graphs: "off".to_owned(),
        })
    }
}

fn defaults(generation: &GenerationDefaults) -> BTreeMap<String, f64> {
    // Through the shortest decimal, so that 0.7 stays 0.7.
    let float = |value: Option<f32>| value.and_then(|value| value.to_string().parse().ok());
    let pairs = [
        ("temperature", float(generation.temperature)),
        ("top_p", float(generation.top_p)),
        ("top_k", generation.top_k.map(f64::from)),
        ("min_p", float(generation.min_p)),
        ("repetition_penalty", float(generation.repetition_penalty)),
        ("max_tokens", generation.max_new_tokens.map(f64::from)),
    ];
    pairs.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}
