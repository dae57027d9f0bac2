//! The one error of this crate. Every message is one line and names the file, the field, the value and what would do.

use std::path::{Path, PathBuf};

/// Why a model could not be described, loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file is well formed but asks for something this engine does not do.
    #[error("{}: {field} = {value} is not supported; {expected}", file.display())]
    Unsupported {
        /// File that holds the field.
        file: PathBuf,
        /// Field, dotted.
        field: String,
        /// Its value.
        value: String,
        /// What is supported.
        expected: String,
    },
    /// A field of a configuration or a header is missing, of the wrong type or out of bounds.
    #[error("{}: {field} = {value}: expected {expected}", file.display())]
    Field {
        /// File that holds the field.
        file: PathBuf,
        /// Field, dotted.
        field: String,
        /// Its value, or `nothing`.
        value: String,
        /// The limit.
        expected: String,
    },
    /// A tensor is missing, left over, or not of the shape the configuration implies.
    #[error("{}: tensor {tensor}: {problem}", file.display())]
    Tensor {
        /// Weight file or folder.
        file: PathBuf,
        /// Tensor name as stored.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file could not be read.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The caller asked for something outside the model's limits.
    #[error("{param} = {value}: {limit}")]
    Request {
        /// Parameter.
        param: &'static str,
        /// Its value.
        value: String,
        /// The limit.
        limit: String,
    },
    /// An operation failed on the device.
    #[error("kernel: {0}")]
    Kernel(#[from] candle_core::Error),
}

#[allow(clippy::needless_pass_by_value)] // literals, numbers and formatted text alike
impl ModelError {
    pub(crate) fn unsupported(file: &Path, field: &str, value: impl ToString, expected: impl ToString) -> Self {
        Self::Unsupported {
            file: file.to_owned(),
            field: field.to_owned(),
            value: short(&value),
            expected: one_line(&expected),
        }
    }

    pub(crate) fn field(file: &Path, field: &str, value: impl ToString, expected: impl ToString) -> Self {
        Self::Field {
            file: file.to_owned(),
            field: field.to_owned(),
            value: short(&value),
            expected: one_line(&expected),
        }
    }

    pub(crate) fn tensor(file: &Path, tensor: &str, problem: impl ToString) -> Self {
        Self::Tensor { file: file.to_owned(), tensor: short(&tensor), problem: one_line(&problem) }
    }

    pub(crate) fn request(param: &'static str, value: impl ToString, limit: impl ToString) -> Self {
        Self::Request { param, value: short(&value), limit: one_line(&limit) }
    }

    pub(crate) fn io(file: &Path, source: std::io::Error) -> Self {
        Self::Io { file: file.to_owned(), source }
    }
}

/// A value from a file as one short line: hostile values must not flood a terminal or forge log lines.
fn short(value: &impl ToString) -> String {
    let text = value.to_string();
    let line: String = text.chars().take(120).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() < text.len() { format!("{line}...") } else { line }
}

fn one_line(text: &impl ToString) -> String {
    text.to_string().replace(['\n', '\r'], " ")
}
