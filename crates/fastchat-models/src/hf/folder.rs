//! Reads a Hugging Face folder: config, tensors, tokenizer, chat template, generation defaults.

use std::path::Path;

use serde_json::{Map, Value};

use super::config::Config;
use super::{quantized, sentence};
use crate::ModelError;
use crate::checkpoint::{
    Checkpoint, EmbedderDescription, EncoderCheckpoint, GenerationDefaults, TextSide, TokenizerSource,
};
use crate::safetensors::{self, MAX_JSON, read_json};
use crate::weights::TensorMap;

/// Name of the format.
const FORMAT: &str = "safetensors";

/// Opens `folder`, for sequences of up to `max_model_len` tokens where that decides a rope table.
pub fn open(folder: &Path, max_model_len: Option<usize>) -> Result<Checkpoint, ModelError> {
    let config = Config::read(folder, max_model_len)?;
    let description = super::describe(&config)?;
    let vision = super::describe_vision(&config, &description.spec, || processor(folder, &config))?;
    let tensors = tensors(folder, &config)?;
    let family = config.text("model_type")?.unwrap_or_default().to_owned();
    let text = text_side(folder, &config)?;
    Ok(Checkpoint { format: FORMAT, family, description, vision, tower_tensors: None, tensors, text })
}

/// Whether config.json names an encoder, or files of sentence-transformers say how a decoder's rows are pooled.
pub fn is_encoder(folder: &Path) -> Result<bool, ModelError> {
    Ok(super::encoder_family(&Config::read(folder, None)?)?.is_some() || sentence::is_there(folder))
}

/// Opens a folder that makes embeddings.
pub fn open_encoder(folder: &Path, max_model_len: Option<usize>) -> Result<EncoderCheckpoint, ModelError> {
    let config = Config::read(folder, max_model_len)?;
    let (description, hidden) = if let Some(description) = super::describe_encoder(&config)? {
        let hidden = description.spec.hidden_size;
        (EmbedderDescription::Encoder(description), hidden)
    } else if sentence::is_there(folder) {
        let description = super::describe(&config)?.without_head("lm_head");
        let hidden = description.spec.hidden_size;
        (EmbedderDescription::Decoder(description), hidden)
    } else {
        let name = config.text("model_type")?.unwrap_or("nothing");
        let known: Vec<_> = super::ENCODERS.iter().map(|(known, _)| *known).collect();
        return Err(config.unsupported("model_type", name, format!("for embeddings {} are", known.join(", "))));
    };
    let (pooling, max_seq_length) = sentence::read(folder, hidden)?;
    let tensors = tensors(folder, &config)?;
    let family = config.text("model_type")?.unwrap_or_default().to_owned();
    let text = text_side(folder, &config)?;
    Ok(EncoderCheckpoint { format: FORMAT, family, description, pooling, max_seq_length, tensors, text })
}

/// The fields of the image processor, in a file of their own or within those of all processors.
fn processor(folder: &Path, config: &Config) -> Result<Config, ModelError> {
    let own = folder.join("preprocessor_config.json");
    if own.is_file() {
        return Config::table_file(own);
    }
    let all = folder.join("processor_config.json");
    let table = if all.is_file() { Config::table_file(all)?.table("image_processor")? } else { None };
    Ok(table.unwrap_or_else(|| config.empty()))
}

fn tensors(folder: &Path, config: &Config) -> Result<TensorMap, ModelError> {
    let mut tensors = safetensors::open(folder, &safetensors::files(folder)?)?;
    if let Some(method) = quantized::method(config)? {
        quantized::join(&mut tensors, &method)?;
    }
    Ok(tensors)
}

fn text_side(folder: &Path, config: &Config) -> Result<TextSide, ModelError> {
    let optional = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
    let tokenizer_config = optional("tokenizer_config.json");
    let tokenizer = optional("tokenizer.json").map(|json| TokenizerSource::Json(json, tokenizer_config.clone()));
    let generation = match optional("generation_config.json") {
        Some(path) => Config::table_file(path)?,
        None => config.empty(),
    };
    let mut eos_token_ids = generation.token_ids("eos_token_id")?;
    for id in config.token_ids("eos_token_id")? {
        if !eos_token_ids.contains(&id) {
            eos_token_ids.push(id);
        }
    }
    let bos = config.token_ids("bos_token_id")?.first().copied();
    Ok(TextSide {
        tokenizer,
        chat_template: chat_template(folder, tokenizer_config.as_deref())?,
        generation: defaults(&generation)?,
        eos_token_ids,
        bos_token_id: bos.or(generation.token_ids("bos_token_id")?.first().copied()),
    })
}

fn defaults(c: &Config) -> Result<GenerationDefaults, ModelError> {
    let count =
        |field: &str| Ok::<_, ModelError>(c.get(field).map(|_| c.count_or(field, 0)).transpose()?.map(|n| n as u32));
    let greedy = c.get("do_sample") == Some(&Value::Bool(false));
    Ok(GenerationDefaults {
        temperature: if greedy { Some(0.0) } else { c.float_opt("temperature")? },
        top_p: c.float_opt("top_p")?,
        top_k: count("top_k")?,
        min_p: c.float_opt("min_p")?,
        repetition_penalty: c.float_opt("repetition_penalty")?,
        max_new_tokens: count("max_new_tokens")?,
    })
}

/// The template of its own file, else the one of the tokenizer's configuration (of several, the one named `default`).
fn chat_template(folder: &Path, tokenizer_config: Option<&Path>) -> Result<Option<String>, ModelError> {
    let own = folder.join("chat_template.jinja");
    if own.is_file() {
        let size = std::fs::metadata(&own).map_err(|error| ModelError::io(&own, error))?.len();
        if size > MAX_JSON {
            return Err(ModelError::field(&own, "file size", size, format!("at most {MAX_JSON} bytes")));
        }
        return std::fs::read_to_string(&own).map(Some).map_err(|error| ModelError::io(&own, error));
    }
    let json = folder.join("chat_template.json");
    for path in [Some(json.as_path()).filter(|path| path.is_file()), tokenizer_config].into_iter().flatten() {
        if let Some(template) = template_field(&read_json(path)?) {
            return Ok(Some(template));
        }
    }
    Ok(None)
}

fn template_field(fields: &Map<String, Value>) -> Option<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match fields.get("chat_template")? {
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"));
            text(default.or(named.first())?.get("template")?)
        }
        value => text(value),
    }
}
