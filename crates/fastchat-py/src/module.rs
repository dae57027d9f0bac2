//! The list of everything that Python sees.

/// `fastchat_rs._engine`.
#[pyo3::pymodule]
mod _engine {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::chat::{PyChatEvent, PyChatFormat, PyChatParser, PyStructuredOutput, PyThinkingBudget};
    #[pymodule_export]
    use crate::device::{check_kernels, probe_device};
    #[pymodule_export]
    use crate::embed::{PyEmbedder, is_encoder};
    #[pymodule_export]
    use crate::engine::{PyEngine, PySubscription, automatic_kv_memory, convert, inspect, machine_limits};
    #[pymodule_export]
    use crate::errors::{
        CancelledError, ContextLengthError, EngineError, InternalError, InvalidRequestError, OverloadedError,
        UnsupportedModelError, WeightsError,
    };
    #[pymodule_export]
    use crate::handle::{PyDelta, PyPromptLogprobs, PyRequestHandle, PyTokenLogprobs};
    #[pymodule_export]
    use crate::info::{PyEngineStats, PyModelInfo};
    #[pymodule_export]
    use crate::media::{PyImage, PyMediaPrompt};
    #[pymodule_export]
    use crate::params::PySamplingParams;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
