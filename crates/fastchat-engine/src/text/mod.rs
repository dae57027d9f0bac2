//! The text side of a request: tokens to text and back, stop strings, grammars, reasoning and tool calls.
//! Knows no tensors, no scheduling and no HTTP; one request's state is one owned value.

mod bpe;
mod byte_level;
mod error;
mod gguf_tokenizer;
mod json_tokenizer;
mod sentencepiece;
mod special_tokens;
mod split;
mod split_patterns;
mod tokenizer;
mod wordpiece;

pub use error::TextError;
pub use tokenizer::Tokenizer;
