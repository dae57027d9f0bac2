//! One Python class per variant of the engine's error, with the variant's numbers as attributes.

use fastchat_engine::EngineError as Error;
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(fastchat_rs._engine, EngineError, PyException, "Base of every error the engine raises on purpose.");
create_exception!(fastchat_rs._engine, InvalidRequestError, EngineError, "A value of a request is wrong.");
create_exception!(fastchat_rs._engine, ContextLengthError, EngineError, "The prompt alone does not fit.");
create_exception!(fastchat_rs._engine, OverloadedError, EngineError, "The waiting queue is full; try again later.");
create_exception!(
    fastchat_rs._engine,
    UnsupportedModelError,
    EngineError,
    "The configuration names something unknown."
);
create_exception!(fastchat_rs._engine, WeightsError, EngineError, "A model file is missing or damaged.");
create_exception!(fastchat_rs._engine, CancelledError, EngineError, "The request was aborted.");
create_exception!(fastchat_rs._engine, InternalError, EngineError, "The engine failed; the request is lost.");

/// The Python error of an engine error.
pub fn to_py(error: &Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::InvalidRequest { param, .. } => with(InvalidRequestError::new_err(message), "param", param),
        Error::ContextLength { limit, prompt, .. } => {
            with(with(ContextLengthError::new_err(message), "limit", *limit), "prompt_tokens", *prompt)
        }
        Error::Overloaded(_) => OverloadedError::new_err(message),
        Error::UnsupportedModel(_) => UnsupportedModelError::new_err(message),
        Error::Weights(_) => WeightsError::new_err(message),
        Error::Cancelled => CancelledError::new_err(message),
        Error::Internal(_) => InternalError::new_err(message),
    }
}

/// An `InvalidRequestError` made on this side of the border, for values the engine's types cannot hold.
pub fn invalid(param: &str, message: String) -> PyErr {
    with(InvalidRequestError::new_err(message), "param", param)
}

fn with<T>(error: PyErr, name: &str, value: T) -> PyErr
where
    for<'a> T: IntoPyObject<'a>,
{
    Python::attach(|py| match error.value(py).setattr(name, value) {
        Ok(()) => error,
        Err(failed) => failed,
    })
}
