//! What the engine is given: its configuration, and requests.

use std::path::PathBuf;
use std::time::Duration;

use candle_core::DType;
use fastchat_kernels::{DeviceChoice, KernelOptions};
use fastchat_models::Quantize;

use crate::constraint::MaskLimits;
use crate::error::EngineError;
use crate::media::{ImageInput, Segment};
use crate::params::SamplingParams;
use crate::prefix_disk::PrefixDiskConfig;

/// Longest deadline of a mask.
const MAX_MASK_TIMEOUT: Duration = Duration::from_mins(10);

/// How to load a model and how much to run at once.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct EngineConfig {
    /// Where the model runs.
    pub device: DeviceChoice,
    /// Tokens of a sequence, prompt and completion together; `None` is the model's own, or what the cache can hold.
    pub max_model_len: Option<usize>,
    /// Bytes for the cache; `None` is a share of the free memory.
    pub kv_memory: Option<u64>,
    /// Type of cached keys and values; `None` is what suits the weights.
    pub kv_dtype: Option<DType>,
    /// Tokens per step.
    pub max_batch_tokens: usize,
    /// Sequences per step.
    pub max_num_seqs: usize,
    /// Requests that may wait; more are refused.
    pub max_queue: usize,
    /// Whether requests share equal prefixes.
    pub enable_prefix_caching: bool,
    /// Whether tokens that the text suggests are checked ahead (prompt lookup); the tokens chosen are the same.
    pub speculation: bool,
    /// Runs every step launch by launch, also on devices that capture decode steps as graphs.
    pub enforce_eager: bool,
    /// How long masks of constrained texts may take.
    pub masks: MaskLimits,
    /// Threads of the CPU kernels; `None` is what the process may use.
    pub threads: Option<usize>,
    /// Rounds inputs of bf16 weights to bf16 where the device multiplies that, or does not; `None` does on a GPU.
    pub bf16_products: Option<bool>,
    /// Serves token ids only.
    pub skip_tokenizer_init: bool,
    /// Rounds matrices stored as floats.
    pub quantize: Option<Quantize>,
    /// File of the tower of a GGUF model that takes pictures; `None` is the one beside it.
    pub mmproj: Option<PathBuf>,
    /// Blocks of the cache, in place of `kv_memory`.
    pub num_blocks: Option<usize>,
    /// Keeps blocks over a restart; `None` keeps none.
    pub prefix_disk: Option<PrefixDiskConfig>,
    /// Devices that compute the model together, from `device` on.
    pub tensor_parallel_size: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            device: DeviceChoice::Auto,
            max_model_len: None,
            kv_memory: None,
            kv_dtype: None,
            max_batch_tokens: 512,
            max_num_seqs: 256,
            max_queue: 512,
            enable_prefix_caching: true,
            speculation: true,
            enforce_eager: false,
            masks: MaskLimits::default(),
            threads: None,
            bf16_products: None,
            skip_tokenizer_init: false,
            quantize: None,
            mmproj: None,
            num_blocks: None,
            prefix_disk: None,
            tensor_parallel_size: 1,
        }
    }
}

impl EngineConfig {
    /// How the device computes.
    pub fn kernel_options(&self) -> KernelOptions {
        KernelOptions { threads: self.threads, bf16_products: self.bf16_products }
    }

    /// # Errors
    /// Names the first field that is out of range.
    pub fn check(&self) -> Result<(), EngineError> {
        let counts = [
            ("max_model_len", self.max_model_len, 1 << 24),
            ("max_batch_tokens", Some(self.max_batch_tokens), 1 << 20),
            ("max_num_seqs", Some(self.max_num_seqs), 1 << 16),
            ("max_queue", Some(self.max_queue), 1 << 24),
            ("threads", self.threads, 1024),
            ("tensor_parallel_size", Some(self.tensor_parallel_size), 64),
            ("num_blocks", self.num_blocks, u32::MAX as usize / fastchat_kernels::BLOCK_SIZE),
        ];
        for (param, value, most) in counts {
            if let Some(value) = value.filter(|value| !(1..=most).contains(value)) {
                return Err(EngineError::invalid(param, format!("{param} is {value}; it must be 1 to {most}")));
            }
        }
        if self.prefix_disk.is_some() && !self.enable_prefix_caching {
            let message = "prefix_cache_dir keeps blocks of the prefix cache, which enable_prefix_caching turns off";
            return Err(EngineError::invalid("prefix_cache_dir", message.to_owned()));
        }
        if self.prefix_disk.is_some() && self.tensor_parallel_size > 1 {
            let size = self.tensor_parallel_size;
            let message = format!("prefix_cache_dir keeps the blocks of one device; tensor_parallel_size is {size}");
            return Err(EngineError::invalid("prefix_cache_dir", message));
        }
        let timeout = self.masks.timeout;
        if timeout.is_zero() || timeout > MAX_MASK_TIMEOUT {
            let limit = format!("above 0 and at most {MAX_MASK_TIMEOUT:?}");
            return Err(EngineError::invalid(
                "mask_timeout",
                format!("mask_timeout is {timeout:?}; it must be {limit}"),
            ));
        }
        Ok(())
    }
}

/// What to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A text; `add_special_tokens` frames it as the tokenizer does.
    Text {
        /// The text, control tokens included.
        text: String,
        /// Off when a chat template has framed it already.
        add_special_tokens: bool,
    },
    /// Token ids.
    Tokens(Vec<u32>),
    /// Segments with places for pictures, and the pictures in the order of their places.
    Media {
        /// What is between the pictures.
        segments: Vec<Segment>,
        /// The pictures.
        images: Vec<ImageInput>,
    },
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to continue.
    pub prompt: Prompt,
    /// How.
    pub params: SamplingParams,
    /// Requests share cached prefixes only with those of the same salt.
    pub cache_salt: Option<String>,
    /// Less is served earlier among the requests of a tenant; each level is worth 64 arrivals.
    pub priority: i32,
    /// Tenants share the engine evenly, however much each asks for; requests without one are one tenant.
    pub tenant: Option<String>,
}
