//! How a model is loaded, as its caller says it.

use std::path::PathBuf;
use std::sync::Arc;

use fastchat_kernels::Collective;

use crate::quantize::Quantize;

/// How to load.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Longest sequence to serve; `None` is the model's own.
    pub max_model_len: Option<usize>,
    /// Rounds matrices stored as floats.
    pub quantize: Option<Quantize>,
    /// File with the tower of a GGUF model that takes pictures; `None` is the `*mmproj*.gguf` beside the only model of a
    /// folder.
    pub mmproj: Option<PathBuf>,
    /// The other devices of a decoder that several compute together; `None`: there are none.
    pub ranks: Option<Arc<dyn Collective>>,
}
