//! A small vocabulary that spells everything: each byte, a few words that end inside a character, control tokens.

use fastchat_engine::text::Tokenizer;
use fastchat_models::GgufVocab;

/// Ends a text.
pub(crate) const END: u32 = 257;

/// Bytes are the tokens 0 to 255.
pub(crate) fn tokenizer() -> Tokenizer {
    let mut tokens: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    tokens.extend(
        ["<|im_start|>", "<|im_end|>", "\u{2581}", "\u{2581}a", "é", "\":", "true", "\u{2581}\u{2581}"]
            .map(str::to_owned),
    );
    let mut token_types = vec![1; tokens.len()];
    token_types[256..=257].fill(3);
    let scores = (0..tokens.len()).map(|id| -(id as f32)).collect();
    let vocab = GgufVocab {
        model: "llama".into(),
        tokens,
        token_types,
        scores,
        eos: Some(END),
        add_space_prefix: true,
        ..GgufVocab::default()
    };
    Tokenizer::from_gguf(&vocab).expect("a good vocabulary")
}
