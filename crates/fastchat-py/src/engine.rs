//! `Engine` and `Subscription`: every call that can wait or work lets go of the interpreter lock.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fastchat_engine::{
    DType, DeviceChoice, Engine, EngineConfig, EngineError, MaskLimits, PrefixDiskConfig, Prompt, Quantize, Request,
    Subscription,
};
use fastchat_kernels::Kernels;
use fastchat_kernels::cpu::CpuKernels;
use pyo3::prelude::*;

use crate::chat::PyChatFormat;
use crate::errors::{invalid, to_py};
use crate::handle::PyRequestHandle;
use crate::info::{PyEngineStats, PyModelInfo};
use crate::kernels::open_devices;
use crate::media::PyMediaPrompt;
use crate::params::PySamplingParams;

/// One loaded model with its own thread.
#[pyclass(name = "Engine", module = "fastchat_rs._engine", frozen)]
pub struct PyEngine(Engine);

/// A doorbell for an event loop.
#[pyclass(name = "Subscription", module = "fastchat_rs._engine", frozen)]
pub struct PySubscription(Subscription);

/// A text, token ids, or a prompt with pictures.
#[derive(FromPyObject)]
pub enum PyPrompt {
    Text(String),
    Tokens(Vec<u32>),
    Media(PyMediaPrompt),
}

impl PyPrompt {
    pub fn into_engine(self, add_special_tokens: bool) -> Prompt {
        match self {
            Self::Text(text) => Prompt::Text { text, add_special_tokens },
            Self::Tokens(ids) => Prompt::Tokens(ids),
            Self::Media(prompt) => prompt.into_engine(),
        }
    }
}

/// `auto`, `cpu`, `cuda` or `cuda:N`.
pub fn device_choice(name: &str) -> PyResult<DeviceChoice> {
    name.parse().map_err(|problem| invalid("device", problem))
}

/// The arguments that `Engine.submit` and `Subscription.submit` share.
fn request(
    prompt: PyPrompt,
    params: &PySamplingParams,
    add_special_tokens: bool,
    cache_salt: Option<String>,
    priority: i32,
    tenant: Option<String>,
) -> Request {
    let prompt = prompt.into_engine(add_special_tokens);
    Request { prompt, params: params.to_engine(), cache_salt, priority, tenant }
}

#[pymethods]
#[allow(clippy::too_many_arguments, clippy::fn_params_excessive_bools, reason = "keywords of the Python methods")]
#[allow(clippy::needless_pass_by_value, reason = "sequences are converted into owned values")]
impl PyEngine {
    #[new]
    #[pyo3(signature = (model, *, device="auto", cuda_libraries=Vec::new(), bf16_products=None, max_model_len=None, kv_memory=None, kv_dtype=None, max_batch_tokens=512,
        max_num_seqs=256, max_queue=512, enable_prefix_caching=true, speculation=true, enforce_eager=false, mask_timeout=1.0, threads=None, skip_tokenizer_init=false,
        num_blocks=None, quantize=None, mmproj=None, prefix_cache_dir=None, prefix_cache_size=4 << 30, tensor_parallel_size=1))]
    fn new(
        py: Python<'_>,
        model: &str,
        device: &str,
        cuda_libraries: Vec<PathBuf>,
        bf16_products: Option<bool>,
        max_model_len: Option<usize>,
        kv_memory: Option<u64>,
        kv_dtype: Option<&str>,
        max_batch_tokens: usize,
        max_num_seqs: usize,
        max_queue: usize,
        enable_prefix_caching: bool,
        speculation: bool,
        enforce_eager: bool,
        mask_timeout: f64,
        threads: Option<usize>,
        skip_tokenizer_init: bool,
        num_blocks: Option<usize>,
        quantize: Option<&str>,
        mmproj: Option<PathBuf>,
        prefix_cache_dir: Option<PathBuf>,
        prefix_cache_size: u64,
        tensor_parallel_size: usize,
    ) -> PyResult<Self> {
        let kv_dtype = kv_dtype
            .map(|name| match name {
                "f16" => Ok(DType::F16),
                "bf16" => Ok(DType::BF16),
                "f32" => Ok(DType::F32),
                _ => Err(invalid("kv_dtype", format!("kv_dtype is '{name}', expected f16, bf16 or f32"))),
            })
            .transpose()?;
        let timeout = Duration::try_from_secs_f64(mask_timeout)
            .map_err(|error| invalid("mask_timeout", format!("mask_timeout is {mask_timeout}: {error}")))?;
        let config = EngineConfig {
            device: device_choice(device)?,
            max_model_len,
            kv_memory,
            kv_dtype,
            max_batch_tokens,
            max_num_seqs,
            max_queue,
            enable_prefix_caching,
            speculation,
            enforce_eager,
            masks: MaskLimits { timeout, ..MaskLimits::default() },
            threads,
            bf16_products,
            skip_tokenizer_init,
            num_blocks,
            quantize: quantize.map(kind).transpose()?,
            mmproj,
            prefix_disk: prefix_cache_dir.map(|dir| PrefixDiskConfig { dir, bytes: prefix_cache_size }),
            tensor_parallel_size,
        };
        let engine = py.detach(|| {
            config.check()?;
            let size = config.tensor_parallel_size;
            let devices = open_devices(config.device, size, config.kernel_options(), &cuda_libraries)?;
            Engine::load_on(Path::new(model), config, devices)
        });
        engine.map(Self).map_err(|error| to_py(&error))
    }

    #[pyo3(signature = (prompt, params, *, add_special_tokens=true, cache_salt=None, priority=0, tenant=None))]
    fn submit(
        &self,
        py: Python<'_>,
        prompt: PyPrompt,
        params: &PySamplingParams,
        add_special_tokens: bool,
        cache_salt: Option<String>,
        priority: i32,
        tenant: Option<String>,
    ) -> PyResult<PyRequestHandle> {
        let request = request(prompt, params, add_special_tokens, cache_salt, priority, tenant);
        py.detach(|| self.0.submit(request)).map(PyRequestHandle).map_err(|error| to_py(&error))
    }

    #[pyo3(signature = (prompt, *, add_special_tokens=true))]
    fn count_tokens(&self, py: Python<'_>, prompt: PyPrompt, add_special_tokens: bool) -> PyResult<usize> {
        let prompt = prompt.into_engine(add_special_tokens);
        py.detach(|| self.0.count_tokens(prompt)).map_err(|error| to_py(&error))
    }

    fn subscribe(&self) -> PyResult<PySubscription> {
        self.0.subscribe().map(PySubscription).map_err(|error| to_py(&error))
    }

    #[pyo3(signature = (text, add_special_tokens=true, parse_special=true))]
    fn encode(&self, py: Python<'_>, text: &str, add_special_tokens: bool, parse_special: bool) -> PyResult<Vec<u32>> {
        py.detach(|| self.0.encode(text, add_special_tokens, parse_special)).map_err(|error| to_py(&error))
    }

    #[pyo3(signature = (token_ids, skip_special_tokens=true))]
    fn decode(&self, py: Python<'_>, token_ids: Vec<u32>, skip_special_tokens: bool) -> PyResult<String> {
        py.detach(|| self.0.decode(&token_ids, skip_special_tokens)).map_err(|error| to_py(&error))
    }

    fn token_bytes(&self, token_id: u32) -> PyResult<Vec<u8>> {
        self.0.token_bytes(token_id).map_err(|error| to_py(&error))
    }

    fn token_to_id(&self, token: &str) -> PyResult<Option<u32>> {
        self.0.token_to_id(token).map_err(|error| to_py(&error))
    }

    fn fence(&self, text: &str, mark: &str) -> PyResult<String> {
        self.0.fence(text, mark).map_err(|error| to_py(&error))
    }

    fn chat_format(&self, chat_template: &str) -> PyResult<PyChatFormat> {
        self.0.chat_format(chat_template).map(PyChatFormat).map_err(|error| to_py(&error))
    }

    fn stats(&self) -> PyEngineStats {
        self.0.stats().into()
    }

    fn info(&self) -> PyModelInfo {
        self.0.info().into()
    }

    fn shutdown(&self, py: Python<'_>) {
        py.detach(|| self.0.shutdown());
    }
}

#[pymethods]
#[allow(clippy::too_many_arguments, reason = "keywords of the Python methods")]
impl PySubscription {
    fn fileno(&self) -> i32 {
        self.0.as_raw_fd()
    }

    fn ready(&self) -> Vec<u64> {
        self.0.ready()
    }

    #[pyo3(signature = (prompt, params, *, add_special_tokens=true, cache_salt=None, priority=0, tenant=None))]
    fn submit(
        &self,
        py: Python<'_>,
        prompt: PyPrompt,
        params: &PySamplingParams,
        add_special_tokens: bool,
        cache_salt: Option<String>,
        priority: i32,
        tenant: Option<String>,
    ) -> PyResult<PyRequestHandle> {
        let request = request(prompt, params, add_special_tokens, cache_salt, priority, tenant);
        py.detach(|| self.0.submit(request)).map(PyRequestHandle).map_err(|error| to_py(&error))
    }

    fn close(&self) {
        self.0.close();
    }
}

/// The budget for caches, when nothing is said and several models share it, `weights` bytes of which are not loaded yet.
#[pyfunction]
pub fn automatic_kv_memory(weights: u64) -> u64 {
    fastchat_engine::automatic_kv_memory(weights)
}

/// A kind to round weights to, by name.
pub fn kind(name: &str) -> PyResult<Quantize> {
    name.parse().map_err(|problem| invalid("quantize", format!("quantize: {problem}")))
}

/// Resolved description, tensor kinds and byte counts of a model as JSON, without loading its weights.
#[pyfunction]
#[pyo3(signature = (model, mmproj=None))]
pub fn inspect(py: Python<'_>, model: &str, mmproj: Option<PathBuf>) -> PyResult<String> {
    py.detach(move || {
        let inspection = fastchat_models::inspect(Path::new(model), mmproj.as_deref())
            .map_err(|error| to_py(&EngineError::from(error)))?;
        serde_json::to_string(&inspection).map_err(|error| to_py(&EngineError::Internal(error.to_string())))
    })
}

/// Bytes read and 8-bit operations a second of this machine on `threads` threads, and the name of the kernels.
#[pyfunction]
#[pyo3(signature = (threads=None))]
pub fn machine_limits(py: Python<'_>, threads: Option<usize>) -> (f64, f64, String) {
    py.detach(|| {
        let kernels = CpuKernels::new(threads);
        let limits = kernels.limits();
        (limits.bytes_per_second, limits.int8_ops_per_second, kernels.name())
    })
}

/// Writes a model as a GGUF file; what was written, as JSON.
#[pyfunction]
#[pyo3(signature = (model, out, kind=None))]
pub fn convert(py: Python<'_>, model: &str, out: &str, kind: Option<&str>) -> PyResult<String> {
    let kind = kind.map(str::parse).transpose().map_err(|problem| invalid("type", format!("type: {problem}")))?;
    py.detach(|| {
        let converted = fastchat_models::convert(Path::new(model), Path::new(out), kind)
            .map_err(|error| to_py(&EngineError::from(error)))?;
        serde_json::to_string(&converted).map_err(|error| to_py(&EngineError::Internal(error.to_string())))
    })
}
