//! A stranger's GGUF file: header, tensors and vocabulary. Must hold: a model (or an encoder) with a tokenizer that can be
//! asked, or a typed error in one line; nothing is allocated that the file does not justify (the harness measures it).

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use fastchat_engine::text::Tokenizer;
use fastchat_kernels::DefaultKernels;
use fastchat_models::{LoadOptions, ModelError, TokenizerSource, inspect, is_encoder, load, load_encoder};

use crate::folder::Folder;
use crate::text::check_message;

/// The whole file.
pub fn check(input: &[u8]) {
    let folder = Folder::new("gguf");
    let file = folder.write("model.gguf", input);
    if let Err(error) = inspect(&file, None) {
        check_message(&error);
    }
    let source = match tokenizer(&file) {
        Ok(source) => source,
        Err(error) => return check_message(&error),
    };
    let Some(source) = source else { return };
    match Tokenizer::new(&source) {
        Ok(tokenizer) => match tokenizer.encode("Hello <|im_end|> w\u{f6}rld 12345\n", true, true) {
            Ok(ids) => {
                if let Err(error) = tokenizer.decode(&ids, false) {
                    check_message(&error);
                }
            }
            Err(error) => check_message(&error),
        },
        Err(error) => check_message(&error),
    }
}

fn tokenizer(file: &Path) -> Result<Option<TokenizerSource>, ModelError> {
    let kernels = Arc::new(DefaultKernels(Device::Cpu));
    let options = LoadOptions::default();
    Ok(if is_encoder(file)? {
        load_encoder(file, kernels, &options)?.tokenizer
    } else {
        load(file, kernels, &options)?.tokenizer
    })
}
