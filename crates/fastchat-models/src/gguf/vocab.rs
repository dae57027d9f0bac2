//! The text side of a GGUF file: vocabulary, special tokens, chat template, sampling defaults. Checks that the tables fit
//! each other and the embedding; knows no tokenization.

use super::meta::Meta;
use crate::ModelError;
use crate::checkpoint::{GenerationDefaults, GgufVocab, TextSide, TokenizerSource};

/// Longest chat template; the longest in use have 20 kB.
const MAX_TEMPLATE: usize = 1 << 20;
/// Longest token; runs of spaces reach some hundred bytes.
const MAX_TOKEN: usize = 4096;
/// Most merges; the largest tables have 600,000.
const MAX_MERGES: usize = 1 << 22;

/// Most bytes of a table of normal forms; those in use have 240,000.
const MAX_TABLE: usize = 1 << 22;
/// Pre-tokenizers of models whose texts begin with a token where the file does not say, as llama.cpp has it.
const BEGINNING: [&str; 11] = [
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "tekken",
    "chameleon",
];

/// Everything the text side needs; `vocab_size` is the number of embedding rows.
pub fn read(m: &Meta, vocab_size: usize) -> Result<TextSide, ModelError> {
    let vocab = vocab(m, vocab_size)?;
    let template = m.text("tokenizer.chat_template")?;
    if let Some(template) = template.filter(|text| text.len() > MAX_TEMPLATE) {
        let limit = format!("at most {MAX_TEMPLATE} bytes");
        return Err(m.bad("tokenizer.chat_template", format!("{} bytes", template.len()), limit));
    }
    let mut eos_token_ids = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        let id = special(m, key, vocab_size)?;
        eos_token_ids.extend(id.filter(|id| !eos_token_ids.contains(id)));
    }
    Ok(TextSide {
        bos_token_id: special(m, "bos_token_id", vocab_size)?,
        tokenizer: vocab.map(TokenizerSource::Gguf),
        chat_template: template.map(str::to_owned),
        generation: generation(m)?,
        eos_token_ids,
    })
}

fn special(m: &Meta, name: &str, vocab_size: usize) -> Result<Option<u32>, ModelError> {
    let key = format!("tokenizer.ggml.{name}");
    match m.token_id(&key)? {
        Some(id) if id as usize >= vocab_size => {
            Err(m.bad(&key, id, format!("a token below the vocabulary's {vocab_size}")))
        }
        other => Ok(other),
    }
}

fn vocab(m: &Meta, vocab_size: usize) -> Result<Option<GgufVocab>, ModelError> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let Some(model) = m.text(&key("model"))?.filter(|model| !matches!(*model, "none" | "no_vocab")) else {
        return Ok(None);
    };
    let tokens = m.texts(&key("tokens"), vocab_size, MAX_TOKEN)?;
    if tokens.is_empty() {
        return Err(m.bad(&key("tokens"), "nothing", format!("up to {vocab_size} tokens")));
    }
    let scores = m.floats(&key("scores"), vocab_size)?;
    let token_types = m.wholes(&key("token_type"), vocab_size)?;
    for (name, len) in [("scores", scores.len()), ("token_type", token_types.len())] {
        if len != 0 && len != tokens.len() {
            return Err(m.bad(&key(name), format!("{len} entries"), format!("{}, one per token", tokens.len())));
        }
    }
    // What llama.cpp assumes of files that say nothing.
    let by_pieces = model == "llama";
    let pre = m.text(&key("pre"))?.unwrap_or("default");
    let begins = model == "gpt2" && BEGINNING.contains(&pre);
    // Texts of word pieces stand between [CLS] and [SEP].
    let framed = model == "bert";
    let special = |name| special(m, name, tokens.len());
    let (mut bos, mut eos) = (special("bos_token_id")?, special("eos_token_id")?);
    if framed {
        // The format spells it so.
        (bos, eos) = (special("cls_token_id")?.or(bos), special("seperator_token_id")?.or(eos));
        (bos, eos) = (bos.or(Some(101)), eos.or(Some(102)));
    }
    let (unk, pad) = (special("unknown_token_id")?, special("padding_token_id")?);
    Ok(Some(GgufVocab {
        model: model.to_owned(),
        pre: pre.to_owned(),
        scores,
        token_types,
        merges: m.texts(&key("merges"), MAX_MERGES, 2 * MAX_TOKEN)?,
        bos: bos.or(by_pieces.then_some(1)),
        eos: eos.or(by_pieces.then_some(2)),
        unk: unk.or(by_pieces.then_some(0)),
        pad,
        add_bos: m.flag_or(&key("add_bos_token"), by_pieces || begins || framed)?,
        add_eos: m.flag_or(&key("add_eos_token"), model == "t5" || framed)?,
        remove_extra_whitespaces: m.flag_or(&key("remove_extra_whitespaces"), false)?,
        precompiled_charsmap: m
            .wholes(&key("precompiled_charsmap"), MAX_TABLE)?
            .into_iter()
            .map(|byte| byte as u8)
            .collect(),
        add_space_prefix: m.flag_or(&key("add_space_prefix"), by_pieces)?,
        tokens,
    }))
}

fn generation(m: &Meta) -> Result<GenerationDefaults, ModelError> {
    let number = |name: &str| m.float_opt(&format!("general.sampling.{name}"));
    Ok(GenerationDefaults {
        temperature: number("temp")?,
        top_p: number("top_p")?,
        top_k: m.token_id("general.sampling.top_k")?,
        min_p: number("min_p")?,
        repetition_penalty: number("penalty_repeat")?,
        max_new_tokens: None,
    })
}
