//! What can go wrong between text and tokens. Every message names the field or parameter, the value and the limit.

use thiserror::Error;

/// Errors of the text room.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TextError {
    /// The vocabulary of a checkpoint is of an unknown kind or contradicts itself.
    #[error("tokenizer field `{field}`: {message}")]
    Vocabulary {
        /// Field of the file, as the file spells it.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// A tokenizer file could not be read or parsed.
    #[error("tokenizer file {file}: {message}")]
    File {
        /// File name without its folder.
        file: String,
        /// What is wrong with it.
        message: String,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {size} tokens")]
    TokenId {
        /// The id.
        id: u32,
        /// Number of tokens.
        size: usize,
    },
    /// The tokenizer refused a text.
    #[error("text could not be tokenized: {0}")]
    Encode(String),
    /// A constraint that is too large, malformed or not supported; `kind` is what was asked for.
    #[error("{kind}: {message}")]
    Grammar {
        /// `json_schema`, `regex`, `grammar`, `choice` or `json_object`.
        kind: &'static str,
        /// What is wrong with it, in one line.
        message: String,
    },
    /// Nothing can follow a constrained text that is not complete, or its grammar became too expensive.
    #[error("the constraint cannot be followed: {0}")]
    Constraint(String),
    /// A token that the mask does not allow was to be accepted.
    #[error("token {0} is not allowed by the constraint here")]
    NotAllowed(u32),
}

impl TextError {
    pub(crate) fn vocabulary(field: &str, message: impl Into<String>) -> Self {
        Self::Vocabulary { field: field.into(), message: message.into() }
    }
}
