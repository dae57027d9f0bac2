//! A stranger's safetensors file beside a good configuration. Must hold: a model, or a typed error in one line; nothing is
//! allocated that the file does not justify (the harness measures it).

use std::sync::Arc;

use candle_core::Device;
use fastchat_kernels::DefaultKernels;
use fastchat_models::{LoadOptions, inspect, load};

use crate::folder::Folder;
use crate::text::check_message;

/// One layer of a Llama as small as they come.
pub const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 8, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64, "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu"}"#;

/// The whole weight file.
pub fn check(input: &[u8]) {
    let folder = Folder::new("safetensors");
    folder.write("config.json", CONFIG.as_bytes());
    folder.write("model.safetensors", input);
    if let Err(error) = inspect(folder.path(), None) {
        check_message(&error);
    }
    if let Err(error) = load(folder.path(), Arc::new(DefaultKernels(Device::Cpu)), &LoadOptions::default()) {
        check_message(&error);
    }
}
