//! The one error of the engine. Each message is one line that names the field, the value and the limit, and is safe to
//! show to a client. Knows nothing of status codes.

use fastchat_models::ModelError;

use crate::text::TextError;

/// Why a model could not be loaded or a request could not be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// A value of a request or of the configuration is wrong.
    #[error("{message}")]
    InvalidRequest {
        /// The field, as `SamplingParams`, `Request` or `EngineConfig` spells it.
        param: String,
        /// One line.
        message: String,
    },
    /// The prompt alone does not fit.
    #[error("the prompt has {prompt} tokens; at most {} fit, because the context is {limit} tokens and one must be left to generate", limit.saturating_sub(1))]
    ContextLength {
        /// Tokens of the context, prompt and completion together.
        limit: usize,
        /// Tokens of the prompt.
        prompt: usize,
    },
    /// The queue is full; the same request may succeed later.
    #[error("{0}")]
    Overloaded(String),
    /// The configuration names something this engine does not do.
    #[error("{0}")]
    UnsupportedModel(String),
    /// A model file is missing, damaged, or does not match its configuration.
    #[error("{0}")]
    Weights(String),
    /// The request was aborted, or the engine was shut down before it ended.
    #[error("the request was cancelled")]
    Cancelled,
    /// The engine failed; the request is lost.
    #[error("{0}")]
    Internal(String),
}

impl EngineError {
    /// An `InvalidRequest` of field `param`.
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::InvalidRequest { param: param.to_owned(), message: message.into() }
    }
}

impl From<ModelError> for EngineError {
    fn from(error: ModelError) -> Self {
        let message = error.to_string();
        match error {
            ModelError::Unsupported { .. } => Self::UnsupportedModel(message),
            ModelError::Field { .. } | ModelError::Tensor { .. } | ModelError::Io { .. } => Self::Weights(message),
            ModelError::Request { param, .. } => Self::invalid(param, message),
            ModelError::Kernel(_) => Self::Internal(message),
        }
    }
}

impl From<TextError> for EngineError {
    fn from(error: TextError) -> Self {
        let message = error.to_string();
        match error {
            TextError::Vocabulary { .. } | TextError::File { .. } => Self::Weights(message),
            TextError::TokenId { .. } => Self::invalid("token_ids", message),
            TextError::Encode(_) => Self::invalid("prompt", message),
            TextError::Grammar { kind, .. } => Self::invalid(kind, message),
            TextError::Constraint(_) => Self::invalid("structured", message),
            TextError::NotAllowed(_) => Self::Internal(message),
        }
    }
}
