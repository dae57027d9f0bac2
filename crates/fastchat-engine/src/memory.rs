//! How much memory the cache gets, and how that divides into blocks and recurrent state slots.

use std::fs;

use candle_core::DType;
use fastchat_kernels::{BLOCK_SIZE, DeviceMemory, ForwardBatch, Kernels, StateStep};
use fastchat_models::{Decoder, ModelError};

use crate::config::EngineConfig;
use crate::error::EngineError;

/// One part in this many of the free memory goes to the cache when nothing is said: the rest is for activations, other
/// processes, and the page cache that holds mapped weights.
const SHARE: u64 = 4;
/// Most that the engine takes of its own accord.
const MOST: u64 = 4 << 30;
/// One part in this many of a device's memory stays free of its own accord: for fragments, and for libraries that take
/// workspaces when they are first used.
const SPARE: u64 = 32;

/// Sizes of the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Type of keys and values.
    pub kv_dtype: DType,
    /// Blocks.
    pub num_blocks: usize,
    /// Recurrent state slots; `None` for models without recurrent layers.
    pub num_state_slots: Option<usize>,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Bytes that were free after the weights were loaded, if the system says.
    pub available: Option<u64>,
    /// Tokens of a sequence that the model and the cache allow.
    pub max_model_len: usize,
}

impl MemoryPlan {
    /// Divides `kv_memory`, or a share of what is free but no more than `max_num_seqs` full sequences could use. On a
    /// device with memory of its own, all that the largest step leaves.
    ///
    /// # Errors
    /// When not even one sequence of the length asked for fits.
    pub fn new(decoder: &Decoder, kernels: &dyn Kernels, config: &EngineConfig) -> Result<Self, EngineError> {
        let kv_dtype = config.kv_dtype.unwrap_or_else(|| decoder.default_kv_dtype());
        let (block, slot) = (decoder.bytes_per_block(kv_dtype) as u64, decoder.bytes_per_state_slot() as u64);
        let per_sequence = decoder.max_model_len().div_ceil(BLOCK_SIZE);
        let wanted = (per_sequence as u64).saturating_mul(config.max_num_seqs as u64);
        let own = left_on_device(decoder, kernels, config, kv_dtype)?;
        let available = own.map_or_else(available_bytes, |memory| Some(memory.free));
        let automatic = match own {
            Some(memory) => memory.free.saturating_sub(memory.total / SPARE),
            None => share(available),
        };
        let budget = config.kv_memory.unwrap_or(automatic);
        let mut num_state_slots = None;
        let mut left = budget;
        if decoder.has_recurrent_state() {
            // As many snapshots as running sequences, within half of the memory.
            let slots = (2 * config.max_num_seqs as u64).min(budget / 2 / slot.max(1)).max(2);
            num_state_slots = Some(slots as usize);
            left = budget.saturating_sub(slots * slot);
        }
        // Models whose every layer is recurrent need block numbers but no memory for them.
        let affordable = left.checked_div(block).unwrap_or(wanted);
        let num_blocks = config.num_blocks.unwrap_or(affordable.min(wanted) as usize);
        let max_model_len = decoder.max_model_len().min(num_blocks * BLOCK_SIZE);
        if max_model_len < 2
            || (config.num_blocks.is_none() && config.max_model_len.is_some_and(|len| len > max_model_len))
        {
            let needed = block.saturating_mul(per_sequence as u64);
            let len = decoder.max_model_len();
            let message = format!("kv_memory is {budget} bytes; one sequence of max_model_len {len} needs {needed}");
            return Err(EngineError::invalid("kv_memory", message));
        }
        let bytes = num_blocks as u64 * block + num_state_slots.unwrap_or(0) as u64 * slot;
        Ok(Self { kv_dtype, num_blocks, num_state_slots, bytes, available, max_model_len })
    }

    /// What fits where both do.
    pub(crate) fn least(self, other: &Self) -> Self {
        Self {
            num_blocks: self.num_blocks.min(other.num_blocks),
            num_state_slots: self.num_state_slots.min(other.num_state_slots),
            bytes: self.bytes.min(other.bytes),
            available: self.available.min(other.available),
            max_model_len: self.max_model_len.min(other.max_model_len),
            ..self
        }
    }
}

/// Memory of a device with memory of its own after the largest step that can come: what that took is not given back
/// before the end. `None` where tensors lie in the host's memory.
fn left_on_device(
    decoder: &Decoder,
    kernels: &dyn Kernels,
    config: &EngineConfig,
    kv_dtype: DType,
) -> Result<Option<DeviceMemory>, EngineError> {
    if kernels.memory().is_none() || config.kv_memory.is_some() || config.num_blocks.is_some() {
        return Ok(kernels.memory());
    }
    let tokens = config.max_batch_tokens.min(decoder.max_model_len()) as u32;
    let blocks = (tokens as usize).div_ceil(BLOCK_SIZE);
    let recurrent = decoder.has_recurrent_state();
    let cache = decoder.new_cache(blocks, usize::from(recurrent), kv_dtype)?;
    let state = StateStep { source: None, target: 0, snapshots: Vec::new() };
    let batch = ForwardBatch {
        token_ids: vec![0; tokens as usize],
        positions: (0..tokens).collect(),
        slot_mapping: (0..tokens).collect(),
        query_start: vec![0, tokens],
        context_lens: vec![tokens],
        block_tables: vec![(0..blocks as u32).collect()],
        logits_rows: (0..tokens.min(config.max_num_seqs as u32)).collect(),
        states: if recurrent { vec![state] } else { Vec::new() },
        ..ForwardBatch::default()
    };
    let logits = decoder.forward(&batch, &cache)?;
    // Waits for the device: what fails in the step fails here.
    logits.narrow(0, 0, 1).and_then(|row| row.to_device(&candle_core::Device::Cpu)).map_err(ModelError::Kernel)?;
    drop((logits, cache));
    Ok(kernels.memory())
}

/// What caches get when nothing is said: `budget` of several models that are not loaded yet, `weights` bytes of them.
pub fn automatic_kv_memory(weights: u64) -> u64 {
    share(available_bytes().map(|bytes| bytes.saturating_sub(weights))).max(1)
}

fn share(available: Option<u64>) -> u64 {
    MOST.min(available.map_or(MOST, |bytes| bytes / SHARE))
}

/// Free memory of the machine or, if less, of the control group.
fn available_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    });
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let group = |limit: &str, used: &str| Some(number(limit)?.saturating_sub(number(used)?));
    let v2 = group("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current");
    let v1 = || group("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes");
    machine.into_iter().chain(v2.or_else(v1)).min()
}
