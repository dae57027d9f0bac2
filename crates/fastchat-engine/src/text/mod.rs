//! The text side of a request: tokens to text and back, stop strings, grammars, reasoning and tool calls.
//! Knows no tensors, no scheduling and no HTTP; one request's state is one owned value.

mod bpe;
mod byte_level;
mod chat;
mod detokenizer;
mod error;
mod gguf_tokenizer;
mod grammar;
mod grammar_cache;
#[cfg(test)]
mod grammar_tests;
mod grammar_tokens;
mod json_tokenizer;
mod lark;
mod matcher;
mod reasoning;
mod schema;
mod schema_formats;
#[cfg(test)]
mod schema_suite_tests;
mod sentencepiece;
mod special_tokens;
mod spellings;
mod split;
mod split_patterns;
mod stop;
#[cfg(test)]
mod test_vocabulary;
mod thinking;
mod together;
mod token_table;
mod tokenizer;
pub mod tools;
mod unigram;
mod wordpiece;

pub use chat::{ChatFormat, ChatParser};
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use grammar::{GrammarCompiler, GrammarSpec};
pub use matcher::{Matcher, TokenMask};
pub use reasoning::{REASONING_MARKERS, ReasoningDelta, ReasoningMarkers, ReasoningSplitter};
pub use stop::StopMatcher;
pub(crate) use thinking::Thinking;
pub use thinking::ThinkingBudget;
pub use tokenizer::Tokenizer;
