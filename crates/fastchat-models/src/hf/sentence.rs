//! Reads the sentence-transformers files of a folder: which modules follow the encoder, how it is pooled, how long its
//! texts may be.

use std::path::{Component, Path};

use serde_json::Value;

use super::config::Config;
use crate::ModelError;
use crate::encoder_spec::{Pooling, PoolingMode};
use crate::safetensors::MAX_JSON;

/// Longer lists of modules are not read.
const MAX_MODULES: usize = 16;

/// Whether the folder says what follows its model.
pub fn is_there(folder: &Path) -> bool {
    folder.join("modules.json").is_file()
}

/// (pooling, longest text). Without modules.json: the normalised mean.
pub fn read(folder: &Path, hidden: usize) -> Result<(Pooling, Option<usize>), ModelError> {
    let limit = folder.join("sentence_bert_config.json");
    let max_seq_length = if limit.is_file() { Config::table_file(limit)?.size_opt("max_seq_length")? } else { None };
    Ok((pooling(folder, hidden)?, max_seq_length))
}

fn pooling(folder: &Path, hidden: usize) -> Result<Pooling, ModelError> {
    let file = folder.join("modules.json");
    if !file.is_file() {
        return Ok(Pooling { mode: PoolingMode::Mean, normalize: true });
    }
    let size = std::fs::metadata(&file).map_err(|error| ModelError::io(&file, error))?.len();
    if size > MAX_JSON {
        return Err(ModelError::field(&file, "file size", size, format!("at most {MAX_JSON} bytes")));
    }
    let text = std::fs::read(&file).map_err(|error| ModelError::io(&file, error))?;
    let modules: Vec<Value> =
        serde_json::from_slice(&text).map_err(|error| ModelError::field(&file, "json", error, "a list"))?;
    if modules.len() > MAX_MODULES {
        return Err(ModelError::field(&file, "modules", modules.len(), format!("at most {MAX_MODULES}")));
    }
    let mut mode = None;
    let mut normalize = false;
    for (i, module) in modules.iter().enumerate() {
        let kind = module.get("type").and_then(Value::as_str).unwrap_or_default();
        match (i, kind.rsplit('.').next().unwrap_or_default()) {
            (0, "Transformer") => {}
            (_, "Pooling") if mode.is_none() && !normalize => {
                let path = module.get("path").and_then(Value::as_str).unwrap_or_default();
                let mut parts = Path::new(path).components();
                if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                    return Err(ModelError::field(&file, &format!("[{i}].path"), path, "the name of a folder"));
                }
                mode = Some(pooling_mode(&Config::table_file(folder.join(path).join("config.json"))?, hidden)?);
            }
            (_, "Normalize") if mode.is_some() => normalize = true,
            _ => {
                let field = format!("[{i}].type");
                return Err(ModelError::unsupported(
                    &file,
                    &field,
                    kind,
                    "Transformer, Pooling, Normalize are, in order",
                ));
            }
        }
    }
    match mode {
        Some(mode) => Ok(Pooling { mode, normalize }),
        None => Err(ModelError::field(&file, "Pooling", "nothing", "a module that pools")),
    }
}

/// A mode by flag, as older versions write it, or by name.
fn pooling_mode(c: &Config, hidden: usize) -> Result<PoolingMode, ModelError> {
    let width = c.size_or("word_embedding_dimension", hidden)?;
    if width != hidden {
        return Err(c.bad("word_embedding_dimension", width, format!("the encoder's hidden_size {hidden}")));
    }
    let modes = [
        ("cls", "pooling_mode_cls_token", PoolingMode::Cls),
        ("lasttoken", "pooling_mode_lasttoken", PoolingMode::Last),
        ("mean", "pooling_mode_mean_tokens", PoolingMode::Mean),
        ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens", PoolingMode::MeanSqrtLen),
        ("max", "pooling_mode_max_tokens", PoolingMode::Max),
    ];
    if let Some(name) = c.text("pooling_mode")? {
        let found = modes.iter().find(|(known, ..)| *known == name);
        let expected = "one of cls, lasttoken, mean, mean_sqrt_len_tokens and max is";
        return found.map(|mode| mode.2).ok_or_else(|| c.unsupported("pooling_mode", name, expected));
    }
    c.only("pooling_mode_weightedmean_tokens", &Value::Bool(false))?;
    let mut chosen = Vec::new();
    for (_, flag, mode) in modes {
        if c.flag_or(flag, false)? {
            chosen.push(mode);
        }
    }
    match chosen[..] {
        [mode] => Ok(mode),
        _ => Err(c.unsupported("pooling_mode_*", format!("{} modes", chosen.len()), "exactly one is")),
    }
}
