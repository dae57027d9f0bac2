//! `Embedder`: an encoder with its own thread. Waiting lets go of the interpreter lock and notices Ctrl-C.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fastchat_engine::{EmbeddingConfig, EmbeddingEngine, EmbeddingHandle, EngineError, Prompt, open_device};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::engine::{PyPrompt, device_choice, kind};
use crate::errors::to_py;

/// How often a waiting call looks for signals.
const LOOK: Duration = Duration::from_millis(200);

/// One loaded encoder with its own thread.
#[pyclass(name = "Embedder", module = "fastchat_rs._engine", frozen)]
pub struct PyEmbedder(EmbeddingEngine);

/// Vectors as little-endian f32, and the tokens of each text.
type Embedded<'py> = (Vec<Bound<'py, PyBytes>>, Vec<usize>);

#[pymethods]
#[allow(clippy::too_many_arguments, reason = "keywords of the Python methods")]
#[allow(clippy::needless_pass_by_value, reason = "sequences are converted into owned values")]
impl PyEmbedder {
    #[new]
    #[pyo3(signature = (model, *, device="auto", cuda_libraries=Vec::new(), bf16_products=None, max_model_len=None, max_batch_tokens=2048, max_queue=65536,
        threads=None, skip_tokenizer_init=false, quantize=None))]
    fn new(
        py: Python<'_>,
        model: &str,
        device: &str,
        cuda_libraries: Vec<PathBuf>,
        bf16_products: Option<bool>,
        max_model_len: Option<usize>,
        max_batch_tokens: usize,
        max_queue: usize,
        threads: Option<usize>,
        skip_tokenizer_init: bool,
        quantize: Option<&str>,
    ) -> PyResult<Self> {
        let device = device_choice(device)?;
        let config = EmbeddingConfig {
            device,
            max_model_len,
            max_batch_tokens,
            max_queue,
            threads,
            bf16_products,
            skip_tokenizer_init,
            quantize: quantize.map(kind).transpose()?,
        };
        let engine = py.detach(|| {
            config.check()?;
            let kernels = open_device(config.device, config.kernel_options(), &cuda_libraries)?;
            EmbeddingEngine::load_with(Path::new(model), config, kernels)
        });
        engine.map(Self).map_err(|error| to_py(&error))
    }

    #[pyo3(signature = (inputs, *, add_special_tokens=true))]
    fn embed<'py>(&self, py: Python<'py>, inputs: Vec<PyPrompt>, add_special_tokens: bool) -> PyResult<Embedded<'py>> {
        let inputs: Vec<Prompt> = inputs.into_iter().map(|input| input.into_engine(add_special_tokens)).collect();
        let handle = py.detach(|| self.0.submit(&inputs)).map_err(|error| to_py(&error))?;
        let vectors = waited(py, &handle)?;
        let bytes = |vector: Vec<f32>| {
            let bytes: Vec<u8> = vector.into_iter().flat_map(f32::to_le_bytes).collect();
            PyBytes::new(py, &bytes)
        };
        Ok((vectors.into_iter().map(bytes).collect(), handle.lengths().to_vec()))
    }

    #[pyo3(signature = (query, documents, *, max_tokens_per_doc=None))]
    fn score(
        &self,
        py: Python<'_>,
        query: &str,
        documents: Vec<String>,
        max_tokens_per_doc: Option<usize>,
    ) -> PyResult<(Vec<f32>, Vec<usize>)> {
        let submit = move || self.0.submit_pairs(query, &documents, max_tokens_per_doc);
        let handle = py.detach(submit).map_err(|error| to_py(&error))?;
        let scores = waited(py, &handle)?.into_iter().flatten().collect();
        Ok((scores, handle.lengths().to_vec()))
    }

    #[pyo3(signature = (text, add_special_tokens=true))]
    fn encode(&self, py: Python<'_>, text: &str, add_special_tokens: bool) -> PyResult<Vec<u32>> {
        py.detach(|| self.0.encode(text, add_special_tokens)).map_err(|error| to_py(&error))
    }

    #[getter]
    fn max_model_len(&self) -> usize {
        self.0.info().max_model_len
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.0.info().vocab_size
    }

    #[getter]
    fn dimensions(&self) -> usize {
        self.0.info().dimensions
    }

    #[getter]
    fn makes_scores(&self) -> bool {
        self.0.info().makes_scores
    }

    #[getter]
    fn fingerprint(&self) -> &str {
        &self.0.info().fingerprint
    }

    #[getter]
    fn kernels(&self) -> &str {
        &self.0.info().kernels
    }

    #[getter]
    fn alive(&self) -> bool {
        self.0.alive()
    }

    fn shutdown(&self, py: Python<'_>) {
        py.detach(|| self.0.shutdown());
    }
}

fn waited(py: Python<'_>, handle: &EmbeddingHandle) -> PyResult<Vec<Vec<f32>>> {
    loop {
        if let Some(vectors) = py.detach(|| handle.wait(LOOK)).map_err(|error| to_py(&error))? {
            return Ok(vectors);
        }
        py.check_signals()?;
    }
}

/// Whether a model folder holds an encoder, for `Embedder`, and not a decoder, for `Engine`.
#[pyfunction]
pub fn is_encoder(model: &str) -> PyResult<bool> {
    fastchat_models::is_encoder(Path::new(model)).map_err(|error| to_py(&EngineError::from(error)))
}
