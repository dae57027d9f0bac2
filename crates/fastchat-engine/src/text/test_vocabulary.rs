//! Small complete vocabularies for tests: every byte, a few words, control tokens at the end.

use fastchat_models::GgufVocab;

use super::Tokenizer;
use super::byte_level::ByteAlphabet;

/// Control tokens of both vocabularies; the last ends a sequence.
pub(crate) const CONTROL: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

fn build(vocab: GgufVocab, words: &[&str]) -> Tokenizer {
    let mut vocab = vocab;
    let ordinary = vocab.tokens.len();
    vocab.tokens.extend(CONTROL.map(str::to_owned));
    vocab.tokens.extend(words.iter().map(|word| (*word).to_owned()));
    vocab.token_types = vec![1; vocab.tokens.len()];
    vocab.token_types[ordinary] = 3;
    vocab.token_types[ordinary + 1] = 3;
    vocab.eos = Some(ordinary as u32 + 1);
    vocab.scores = (0..vocab.tokens.len()).map(|id| -(id as f32)).collect();
    Tokenizer::from_gguf(&vocab).unwrap()
}

/// 256 bytes in GPT-2's alphabet, then [`CONTROL`], then merged words.
pub(crate) fn byte_level() -> Tokenizer {
    byte_level_without(&[])
}

/// The same with tokens of no use in place of some bytes.
pub(crate) fn byte_level_without(lacking: &[u8]) -> Tokenizer {
    let alphabet = ByteAlphabet::new();
    let letter = |byte: u8| {
        let mut out = String::new();
        alphabet.spell(&[byte], &mut out);
        out
    };
    let token = |byte| if lacking.contains(&byte) { format!("unused{byte}") } else { letter(byte) };
    let tokens = (0..=255).map(token).collect();
    let merges = ["t r", "tr u", "tru e", "\" :", "{ \"", "Ġ t", "a b", "ò µ", "òµ İ"];
    let words: Vec<String> = merges.iter().map(|merge| merge.replace(' ', "")).collect();
    let merges = merges.iter().map(|&merge| merge.to_owned()).collect();
    let vocab = GgufVocab { model: "gpt2".into(), pre: "gpt-2".into(), tokens, merges, ..GgufVocab::default() };
    build(vocab, &words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// 256 byte tokens, then [`CONTROL`], then words; a space is put before a text.
pub(crate) fn sentencepiece() -> Tokenizer {
    with_words(&["\u{2581}", "a", "b", "\u{2581}a", "é", "\u{2581}\u{2581}"])
}

/// The same with other words.
pub(crate) fn with_words(words: &[&str]) -> Tokenizer {
    let tokens = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    let vocab = GgufVocab { model: "llama".into(), tokens, add_space_prefix: true, ..GgufVocab::default() };
    build(vocab, words)
}
