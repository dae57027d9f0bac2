//! A request in flight and what it yields.

use std::time::Duration;

use fastchat_engine::{Delta, FinishReason, PromptLogprobs, RequestHandle, StopReason, TokenLogprobs};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::{invalid, to_py};

/// One request in flight.
#[pyclass(name = "RequestHandle", module = "fastchat_rs._engine", frozen)]
pub struct PyRequestHandle(pub RequestHandle);

/// News of one choice since the last `take`.
#[pyclass(name = "Delta", module = "fastchat_rs._engine", frozen)]
pub struct PyDelta(Delta);

/// Log-probabilities of one step.
#[pyclass(name = "TokenLogprobs", module = "fastchat_rs._engine", frozen)]
pub struct PyTokenLogprobs(TokenLogprobs);

/// Log-probabilities of the prompt.
#[pyclass(name = "PromptLogprobs", module = "fastchat_rs._engine", frozen)]
pub struct PyPromptLogprobs(PromptLogprobs);

#[pymethods]
impl PyRequestHandle {
    #[getter]
    fn id(&self) -> u64 {
        self.0.id()
    }

    #[getter]
    fn prompt_token_ids(&self) -> Vec<u32> {
        self.0.prompt_token_ids().to_vec()
    }

    #[getter]
    fn finished(&self) -> bool {
        self.0.is_finished()
    }

    #[getter]
    fn started(&self) -> bool {
        self.0.timings().queue.is_some()
    }

    fn take(&self) -> Vec<PyDelta> {
        self.0.take().into_iter().map(PyDelta).collect()
    }

    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Vec<PyDelta>> {
        let timeout = timeout
            .map(Duration::try_from_secs_f64)
            .transpose()
            .map_err(|error| invalid("timeout", format!("timeout: {error}")))?;
        Ok(py.detach(|| self.0.wait(timeout)).into_iter().map(PyDelta).collect())
    }

    fn prompt_logprobs(&self) -> Option<PyPromptLogprobs> {
        self.0.prompt_logprobs().map(PyPromptLogprobs)
    }

    fn abort(&self) {
        self.0.abort();
    }
}

#[pymethods]
impl PyDelta {
    #[getter]
    fn index(&self) -> u32 {
        self.0.index
    }

    #[getter]
    fn text(&self) -> &str {
        &self.0.text
    }

    #[getter]
    fn token_ids(&self) -> Vec<u32> {
        self.0.token_ids.clone()
    }

    #[getter]
    fn logprobs(&self) -> Option<Vec<PyTokenLogprobs>> {
        self.0.logprobs.as_ref().map(|all| all.iter().cloned().map(PyTokenLogprobs).collect())
    }

    #[getter]
    fn finish_reason(&self) -> Option<&'static str> {
        self.0.finish.as_ref().map(|finish| match finish.reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Abort => "abort",
            FinishReason::Error => "error",
        })
    }

    #[getter]
    fn stop_reason(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let reason = self.0.finish.as_ref().and_then(|finish| finish.stop.as_ref());
        reason
            .map(|reason| match reason {
                StopReason::Text(text) => Ok(text.into_pyobject(py)?.into_any().unbind()),
                StopReason::Token(id) => Ok(id.into_pyobject(py)?.into_any().unbind()),
            })
            .transpose()
    }

    #[getter]
    fn prompt_tokens(&self) -> usize {
        self.0.usage.prompt_tokens
    }

    #[getter]
    fn completion_tokens(&self) -> usize {
        self.0.usage.completion_tokens
    }

    #[getter]
    fn cached_tokens(&self) -> usize {
        self.0.usage.cached_tokens
    }

    #[getter]
    fn error(&self) -> Option<PyErr> {
        self.0.error.as_ref().map(to_py)
    }
}

#[pymethods]
impl PyTokenLogprobs {
    #[getter]
    fn token_id(&self) -> u32 {
        self.0.token_id
    }

    #[getter]
    fn logprob(&self) -> f32 {
        self.0.logprob
    }

    #[getter]
    fn rank(&self) -> u32 {
        self.0.rank
    }

    #[getter]
    fn top(&self) -> Vec<(u32, f32)> {
        self.0.top.clone()
    }
}

#[pymethods]
impl PyPromptLogprobs {
    #[getter]
    fn tokens(&self) -> Vec<PyTokenLogprobs> {
        self.0.tokens.iter().cloned().map(PyTokenLogprobs).collect()
    }

    #[getter]
    fn matrix<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let Some(matrix) = &self.0.matrix else { return Ok(None) };
        let fill = |bytes: &mut [u8]| {
            for (out, value) in bytes.chunks_exact_mut(4).zip(matrix) {
                out.copy_from_slice(&value.to_le_bytes());
            }
            Ok(())
        };
        PyBytes::new_with(py, matrix.len() * 4, fill).map(Some)
    }

    #[getter]
    fn rows(&self) -> usize {
        self.0.rows
    }
}
