//! How many kernels a decode step launches on the emulated CUDA backend, which counts: for the families of Llama and Qwen3,
//! and for the shapes of two of their models, all layers of them at small widths. A captured step is one launch of these.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)] // a test may fail loudly

mod checkpoints;
mod rows;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::DType;
use checkpoints::{Entry, Folder};
use fastchat_kernels::StepInput;
use fastchat_models::{Choosing, DecodeStep, Decoder, LoadOptions, load};
use rows::{Feed, Sequence, batch, cache, step};
use serde_json::json;

/// A model on the emulated kernels and the counter of their launches, or `None` with a loud line.
fn emulated(folder: &Path) -> Option<(Decoder, Arc<AtomicU64>)> {
    let Some(emulated) = fastchat_emulator::emulated(false) else {
        eprintln!("SKIPPED: the CUDA kernels are not emulated without a C++ compiler");
        return None;
    };
    let decoder = load(folder, emulated.kernels, &LoadOptions::default()).unwrap().decoder;
    Some((decoder, emulated.launches))
}

fn both<'a>(a: &'a mut Sequence, b: &'a mut Sequence, tokens: &'a [u32]) -> [Feed<'a>; 2] {
    [Feed { sequence: a, tokens }, Feed { sequence: b, tokens }]
}

/// Launches of a decode step alone, in company, and of one that is captured.
fn counts(decoder: &Decoder, launches: &AtomicU64) -> [u64; 3] {
    let cache = cache(decoder, 2, DType::F32);
    let [mut a, mut b] = [0, 1].map(|index| Sequence::new(index, 2));
    step(decoder, &cache, &mut [Feed { sequence: &mut a, tokens: &[1, 2, 3] }]);
    step(decoder, &cache, &mut [Feed { sequence: &mut b, tokens: &[4, 5] }]);
    let count = |run: &mut dyn FnMut()| {
        let before = launches.load(Ordering::Relaxed);
        run();
        launches.load(Ordering::Relaxed) - before
    };
    let alone = count(&mut || drop(step(decoder, &cache, &mut [Feed { sequence: &mut a, tokens: &[4] }])));
    let company = count(&mut || drop(step(decoder, &cache, &mut both(&mut a, &mut b, &[5]))));
    let captured = DecodeStep::new(decoder, &cache, 2, decoder.max_model_len()).unwrap();
    let last = batch(decoder, &mut both(&mut a, &mut b, &[6]));
    captured.write(decoder, &cache, &StepInput::of(&last)).unwrap();
    let run = |choosing| captured.run(decoder, &cache, choosing).unwrap();
    let [plain, chosen] = [Choosing::Nothing, Choosing::MostLikely].map(|choosing| count(&mut || run(choosing)));
    // A graph's own tokens: from the step before, and for the next one.
    assert_eq!(chosen, plain + 2);
    [alone, company, plain]
}

/// A layer is norm, qkv, rope and cache, attention, output, norm, gate and up, down; the embedding, the final norm and the
/// output matrix come on top.
#[test]
fn a_decode_step_launches_eight_kernels_a_layer() {
    let Some(shared) = rows::shared() else { return };
    for name in ["llama3", "llama_tied_bias", "qwen2", "qwen3", "smollm3", "phi3"] {
        let Some((decoder, launches)) = emulated(&shared.join("text").join(name)) else { return };
        let expected = 8 * decoder.spec().layers.len() as u64 + 3;
        assert_eq!(counts(&decoder, &launches), [expected; 3], "{name}");
    }
}

/// What a published config says of layers, groups and norms, with `hidden` 64 and heads of 16.
fn small(name: &str, kind: &str, layers: usize, (heads, kv_heads): (usize, usize), tied: bool) -> Folder {
    let (hidden, head_dim, inter, vocab) = (64, 16, 128, 256);
    let mut config = json!({
        "model_type": kind, "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inter,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": head_dim, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 500000.0,
        "hidden_act": "silu", "tie_word_embeddings": tied, "attention_bias": false, "torch_dtype": "float32",
    });
    if kind == "llama" {
        config["rope_scaling"] = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        });
    }
    let mut entries: Vec<Entry> =
        vec![("model.embed_tokens.weight".into(), vec![vocab, hidden]), ("model.norm.weight".into(), vec![hidden])];
    if !tied {
        entries.push(("lm_head.weight".into(), vec![vocab, hidden]));
    }
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[usize]| {
            entries.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
        add("self_attn.q_proj", &[heads * head_dim, hidden]);
        add("self_attn.k_proj", &[kv_heads * head_dim, hidden]);
        add("self_attn.v_proj", &[kv_heads * head_dim, hidden]);
        add("self_attn.o_proj", &[hidden, heads * head_dim]);
        if kind == "qwen3" {
            add("self_attn.q_norm", &[head_dim]);
            add("self_attn.k_norm", &[head_dim]);
        }
        add("mlp.gate_proj", &[inter, hidden]);
        add("mlp.up_proj", &[inter, hidden]);
        add("mlp.down_proj", &[hidden, inter]);
    }
    let folder = Folder::new(&format!("launches-{name}"));
    folder.write("config.json", config.to_string());
    checkpoints::write(&folder.0.join("model.safetensors"), &entries);
    folder
}

#[test]
fn whole_models_launch_as_many() {
    let models = [
        ("Llama-3.1-8B", small("llama", "llama", 32, (8, 2), false), 259),
        ("Qwen3-0.6B", small("qwen3", "qwen3", 28, (4, 2), true), 227),
    ];
    for (name, folder, expected) in models {
        let Some((decoder, launches)) = emulated(&folder.0) else { return };
        let [alone, company, captured] = counts(&decoder, &launches);
        let layers = decoder.spec().layers.len() as u64;
        println!(
            "{name}: {alone} launches a decode step, {} a layer and 3; {company} with two sequences; {captured} in a graph, which is one",
            (alone - 3) / layers
        );
        assert_eq!([alone, company, captured], [expected; 3], "{name}");
    }
}
