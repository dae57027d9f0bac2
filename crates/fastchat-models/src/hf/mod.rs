//! From a Hugging Face folder's config.json and tensor names to a [`Description`]. The only place, with `gguf`, that
//! knows models by name: one file per family.

pub mod base;
pub mod config;
mod encoder_base;
pub mod folder;
mod quantized;
mod rope;
mod sentence;
mod vision_base;

mod bert;
mod cohere2;
mod deepseek_v2;
mod deepseek_v3;
mod ernie4_5;
mod exaone4;
mod gemma2;
mod gemma3;
mod gemma3_vision;
mod glm4;
mod glm4_moe;
mod gpt_oss;
mod granite;
mod idefics3;
mod llama;
mod llava;
mod mistral;
mod mixtral;
mod mllama;
mod modernbert;
mod nomic_bert;
mod olmo2;
mod olmo3;
mod olmoe;
mod phi3;
mod qwen2;
mod qwen2_5_vl;
mod qwen2_moe;
mod qwen3;
mod qwen3_5;
mod qwen3_5_moe;
mod qwen3_moe;
mod qwen3_next;
mod qwen3_vl;
mod seed_oss;
mod smollm3;
mod starcoder2;
mod xlm_roberta;

use crate::ModelError;
use crate::encoder_spec::EncoderDescription;
use crate::spec::DecoderSpec;
use crate::vision::VisionDescription;
use base::Description;
use config::Config;
use vision_base::Parts;

type Family = fn(&Config) -> Result<Description, ModelError>;

/// `model_type` to mapping.
const FAMILIES: &[(&str, Family)] = &[
    ("cohere2", cohere2::describe),
    ("deepseek_v2", deepseek_v2::describe),
    ("deepseek_v3", deepseek_v3::describe),
    ("ernie4_5", ernie4_5::describe),
    ("exaone4", exaone4::describe),
    ("gemma2", gemma2::describe),
    ("gemma3", gemma3::describe),
    ("gemma3_text", gemma3::describe),
    ("glm4", glm4::describe),
    ("glm4_moe", glm4_moe::describe),
    ("gpt_oss", gpt_oss::describe),
    ("granite", granite::describe),
    ("llama", llava::describe_llama),
    ("mistral", mistral::describe),
    ("mixtral", mixtral::describe),
    ("mllama_text_model", mllama::describe),
    ("olmo2", olmo2::describe),
    ("olmo3", olmo3::describe),
    ("olmoe", olmoe::describe),
    ("phi3", phi3::describe),
    ("qwen2", qwen2::describe),
    ("qwen2_5_vl", qwen2::describe),
    ("qwen2_5_vl_text", qwen2::describe),
    ("qwen2_moe", qwen2_moe::describe),
    ("qwen3", qwen3::describe),
    ("qwen3_5", qwen3_5::describe),
    ("qwen3_5_moe", qwen3_5_moe::describe),
    ("qwen3_5_moe_text", qwen3_5_moe::describe),
    ("qwen3_5_text", qwen3_5::describe),
    ("qwen3_moe", qwen3_moe::describe),
    ("qwen3_next", qwen3_next::describe),
    ("qwen3_vl_text", qwen3::describe),
    ("seed_oss", seed_oss::describe),
    ("smollm3", smollm3::describe),
    ("starcoder2", starcoder2::describe),
];

type EncoderFamily = fn(&Config) -> Result<EncoderDescription, ModelError>;

/// The same for encoders.
const ENCODERS: &[(&str, EncoderFamily)] = &[
    ("bert", bert::describe),
    ("modernbert", modernbert::describe),
    ("nomic_bert", nomic_bert::describe),
    ("roberta", xlm_roberta::describe),
    ("xlm-roberta", xlm_roberta::describe),
];

type VisionFamily = fn(&Parts) -> Result<VisionDescription, ModelError>;

/// `model_type` of the whole to the mapping of its tower.
const TOWERS: &[(&str, VisionFamily)] = &[
    ("gemma3", gemma3_vision::describe_vision),
    ("idefics3", idefics3::describe_vision),
    ("llava", llava::describe_vision),
    ("mllama", mllama::describe_vision),
    ("qwen2_5_vl", qwen2_5_vl::describe_vision),
    ("qwen3_vl", qwen3_vl::describe_vision),
    ("smolvlm", idefics3::describe_vision),
];

/// The tower of a config that has one of a known kind; models of others are served for text.
pub fn describe_vision(
    c: &Config,
    decoder: &DecoderSpec,
    processor: impl FnOnce() -> Result<Config, ModelError>,
) -> Result<Option<VisionDescription>, ModelError> {
    let Some((_, family)) = TOWERS.iter().find(|(known, _)| Some(*known) == c.outer.as_deref()) else {
        return Ok(None);
    };
    let Some(vision) = c.table("vision_config")? else { return Ok(None) };
    let parts = Parts { whole: c, vision, processor: processor()?, out: decoder.hidden_size };
    let description = family(&parts)?;
    let placement = &description.spec.placement;
    let known = decoder.vocab_size + decoder.added_rows;
    for (field, token) in [("image_token_id", placement.token), ("the marker of images", placement.marker)] {
        if token as usize >= known {
            return Err(c.bad(field, token, format!("below {known}, the rows of the embedding table")));
        }
    }
    Ok(Some(description))
}

fn encoder_family(c: &Config) -> Result<Option<EncoderFamily>, ModelError> {
    let name = c.text("model_type")?;
    Ok(ENCODERS.iter().find(|(known, _)| Some(*known) == name).map(|(_, family)| *family))
}

/// The description of an encoder's config by its `model_type`; `None` for the name of no encoder.
pub fn describe_encoder(c: &Config) -> Result<Option<EncoderDescription>, ModelError> {
    encoder_family(c)?.map(|family| family(c)).transpose()
}

/// The description of a config by its `model_type`.
pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let name = c.text("model_type")?.ok_or_else(|| c.bad("model_type", "nothing", "the name of a family"))?;
    if encoder_family(c)?.is_some() {
        return Err(c.unsupported(
            "model_type",
            name,
            "it is an encoder, which makes embeddings and generates nothing",
        ));
    }
    let Some((_, family)) = FAMILIES.iter().find(|(known, _)| *known == name) else {
        let known: Vec<_> = FAMILIES.iter().map(|(known, _)| *known).collect();
        return Err(c.unsupported("model_type", name, format!("{} are", known.join(", "))));
    };
    family(c)
}
