//! Model files as small as they come: one layer, eight wide.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, TensorView};

/// Name and shape, rows first, of the tensors of [`fastchat_fuzz::safetensors::CONFIG`].
const TENSORS: [(&str, &str, &[usize]); 11] = [
    ("model.embed_tokens", "token_embd", &[8, 8]),
    ("model.norm", "output_norm", &[8]),
    ("model.layers.0.input_layernorm", "blk.0.attn_norm", &[8]),
    ("model.layers.0.self_attn.q_proj", "blk.0.attn_q", &[8, 8]),
    ("model.layers.0.self_attn.k_proj", "blk.0.attn_k", &[4, 8]),
    ("model.layers.0.self_attn.v_proj", "blk.0.attn_v", &[4, 8]),
    ("model.layers.0.self_attn.o_proj", "blk.0.attn_output", &[8, 8]),
    ("model.layers.0.post_attention_layernorm", "blk.0.ffn_norm", &[8]),
    ("model.layers.0.mlp.gate_proj", "blk.0.ffn_gate", &[8, 8]),
    ("model.layers.0.mlp.up_proj", "blk.0.ffn_up", &[8, 8]),
    ("model.layers.0.mlp.down_proj", "blk.0.ffn_down", &[8, 8]),
];

/// In each of the three float kinds.
pub fn safetensors() -> Vec<Vec<u8>> {
    let file = |kind: Dtype, size: usize| {
        let zeros = vec![0; 64 * size];
        let view = |shape: &[usize]| {
            let bytes = shape.iter().product::<usize>() * size;
            TensorView::new(kind, shape.to_vec(), &zeros[..bytes]).expect("bytes of the shape")
        };
        let tensors: BTreeMap<String, TensorView> =
            TENSORS.iter().map(|(name, _, shape)| (format!("{name}.weight"), view(shape))).collect();
        safetensors::serialize(tensors, None).expect("good tensors")
    };
    vec![file(Dtype::BF16, 2), file(Dtype::F16, 2), file(Dtype::F32, 4)]
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), value].concat()
}

fn list(key: &str, kind: u32, items: &[Vec<u8>]) -> Vec<u8> {
    let head = [&kind.to_le_bytes()[..], &(items.len() as u64).to_le_bytes()].concat();
    entry(key, 9, &[head, items.concat()].concat())
}

/// Metadata of a vocabulary of eight tokens, of each algorithm.
fn vocabulary(model: &str) -> Vec<Vec<u8>> {
    let tokens: [&str; 8] = match model {
        "gpt2" => ["H", "e", "l", "He", "<|im_end|>", "Ġ", "1", "2"],
        "bert" => ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "##l", "w", "1"],
        _ => ["<unk>", "<s>", "</s>", "<0x0A>", "\u{2581}", "H", "e", "He"],
    };
    let kinds: [i32; 8] = if model == "gpt2" { [1, 1, 1, 1, 3, 1, 1, 1] } else { [2, 3, 3, 6, 1, 1, 1, 1] };
    let floats: Vec<Vec<u8>> = (0..8u8).map(|id| (-f32::from(id)).to_le_bytes().to_vec()).collect();
    let mut found = vec![
        entry("tokenizer.ggml.model", 8, &text(model)),
        list("tokenizer.ggml.tokens", 8, &tokens.map(text)),
        list("tokenizer.ggml.token_type", 5, &kinds.map(|kind| kind.to_le_bytes().to_vec())),
        list("tokenizer.ggml.scores", 6, &floats),
        entry("tokenizer.ggml.eos_token_id", 4, &2u32.to_le_bytes()),
        entry("tokenizer.ggml.add_bos_token", 7, &[1]),
        entry("tokenizer.ggml.bos_token_id", 4, &1u32.to_le_bytes()),
    ];
    if model == "gpt2" {
        found.push(entry("tokenizer.ggml.pre", 8, &text("gpt-2")));
        found.push(list("tokenizer.ggml.merges", 8, &[text("H e")]));
    }
    found
}

/// A Llama with each vocabulary, floats of four and of two bytes.
pub fn gguf() -> Vec<Vec<u8>> {
    ["gpt2", "llama", "t5", "bert"].into_iter().zip([0u32, 1, 0, 1]).map(|(model, kind)| file(model, kind)).collect()
}

fn file(model: &str, kind: u32) -> Vec<u8> {
    let sizes = [
        ("block_count", 1u32),
        ("context_length", 64),
        ("embedding_length", 8),
        ("feed_forward_length", 8),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("vocab_size", 8),
    ];
    let mut keys = vec![entry("general.architecture", 8, &text("llama"))];
    keys.extend(sizes.map(|(key, value)| entry(&format!("llama.{key}"), 4, &value.to_le_bytes())));
    keys.push(entry("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes()));
    keys.push(entry("tokenizer.chat_template", 8, &text("{{ messages[0].content }}")));
    keys.extend(vocabulary(model));
    let counts = [(TENSORS.len() as u64).to_le_bytes(), (keys.len() as u64).to_le_bytes()].concat();
    let mut out = [&b"GGUF"[..], &3u32.to_le_bytes(), &counts, &keys.concat()].concat();
    let mut offset = 0;
    for (_, name, shape) in TENSORS {
        out.extend(text(&format!("{name}.weight")));
        out.extend((shape.len() as u32).to_le_bytes());
        out.extend(shape.iter().rev().flat_map(|&size| (size as u64).to_le_bytes()));
        // Vectors are of four bytes always.
        let kind = if shape.len() == 1 { 0 } else { kind };
        out.extend(kind.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        let size = if kind == 0 { 4 } else { 2 };
        offset = (offset + shape.iter().product::<usize>() * size).next_multiple_of(32);
    }
    out.resize(out.len().next_multiple_of(32) + offset, 0);
    out
}
