//! Which mapping belongs to which `general.architecture`.

use super::meta::Meta;
use super::{
    bert, cohere2, deepseek2, exaone4, gemma2, gemma3, glm4, glm4moe, gpt_oss, granite, llama, modern_bert, nomic_bert,
    olmo2, olmoe, phi3, qwen2, qwen2moe, qwen2vl, qwen3, qwen3moe, qwen3next, qwen3vl, qwen35, seed_oss, smollm3,
    starcoder2,
};
use crate::ModelError;
use crate::description::Description;
use crate::encoder_spec::EncoderDescription;

/// From the keys of a file to a decoder.
pub type Architecture = fn(&Meta) -> Result<Description, ModelError>;

/// `general.architecture` to mapping.
pub const ARCHITECTURES: &[(&str, Architecture)] = &[
    ("cohere2", cohere2::describe),
    ("deepseek2", deepseek2::describe),
    ("ernie4_5", llama::describe),
    ("exaone4", exaone4::describe),
    ("gemma2", gemma2::describe),
    ("gemma3", gemma3::describe),
    ("glm4", glm4::describe),
    ("glm4moe", glm4moe::describe),
    ("gpt-oss", gpt_oss::describe),
    ("granite", granite::describe),
    ("llama", llama::describe),
    ("olmo2", olmo2::describe),
    ("olmoe", olmoe::describe),
    ("phi3", phi3::describe),
    ("qwen2", qwen2::describe),
    ("qwen2moe", qwen2moe::describe),
    ("qwen2vl", qwen2vl::describe),
    ("qwen3", qwen3::describe),
    ("qwen35", qwen35::describe),
    ("qwen35moe", qwen35::describe),
    ("qwen3moe", qwen3moe::describe),
    ("qwen3next", qwen3next::describe),
    ("qwen3vl", qwen3vl::describe),
    ("seed_oss", seed_oss::describe),
    ("smollm3", smollm3::describe),
    ("starcoder2", starcoder2::describe),
];

/// From the keys of a file to an encoder.
pub type EncoderArchitecture = fn(&Meta) -> Result<EncoderDescription, ModelError>;

/// The same for encoders.
pub const ENCODERS: &[(&str, EncoderArchitecture)] =
    &[("bert", bert::describe), ("modern-bert", modern_bert::describe), ("nomic-bert", nomic_bert::describe)];
