//! Every text family computed by several ranks together, each with a thread of its own: the logits of one device, the same
//! bits at every rank, and a share of the work for each.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

mod checkpoints;
#[macro_use]
mod rows;

use std::path::Path;
use std::sync::Arc;
use std::thread;

use candle_core::{DType, Device};
use fastchat_kernels::cpu::CpuKernels;
use fastchat_kernels::{Collective, DefaultKernels, HostRank, Kernels};
use fastchat_models::spec::{DecoderSpec, Mixer, Mlp};
use fastchat_models::{Decoder, LoadOptions, load};
use rows::{argmax, chunked, difference, golden};

/// Terms of a sum are added in another order.
const TOLERANCE: f32 = 1e-4;

/// Families whose gated delta rule multiplies roundings; `parity.rs` says how.
const AMPLIFIED: &[&str] = &["qwen3_5", "qwen3_next"];
const AMPLIFIED_TOLERANCE: f32 = 5e-4;

/// A rank's part of a model, or all of it. Weights that are codes are made f32: inputs are not rounded then.
fn decoder(path: &Path, ranks: Option<HostRank>) -> Decoder {
    let ranks = ranks.map(|rank| Arc::new(rank) as Arc<dyn Collective>);
    let options = LoadOptions { ranks, ..LoadOptions::default() };
    let kernels: Arc<dyn Kernels> =
        if path.is_dir() { Arc::new(CpuKernels::new(Some(1))) } else { Arc::new(DefaultKernels(Device::Cpu)) };
    load(path, kernels, &options).unwrap().decoder
}

/// What every rank of `size` computes, and its spec.
fn together(folder: &Path, tokens: &[u32], size: usize, chunk: usize) -> Vec<(Vec<Vec<f32>>, DecoderSpec)> {
    let run = |rank| {
        let decoder = decoder(folder, Some(rank));
        (chunked(&decoder, tokens, chunk), decoder.spec().clone())
    };
    thread::scope(|scope| {
        let ranks: Vec<_> = HostRank::all(size).into_iter().map(|rank| scope.spawn(move || run(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// (elements of heads, elements of MLPs) over all layers.
fn work(spec: &DecoderSpec) -> (usize, usize) {
    let heads = spec.layers.iter().map(|layer| match &layer.mixer {
        Mixer::Attention(spec) => spec.heads * spec.head_dim,
        Mixer::Mla(spec) => spec.heads * spec.v_dim,
        Mixer::GatedDeltaNet(spec) => spec.v_heads * spec.v_dim,
        Mixer::Cross(_) => 0,
    });
    let widths = spec.layers.iter().map(|layer| match &layer.mlp {
        Mlp::Gated(dense) | Mlp::Plain(dense) => dense.inter,
        Mlp::Moe(moe) => moe.experts * moe.expert.inter + moe.shared.inter(),
    });
    (heads.sum(), widths.sum())
}

fn check(name: &str, folder: &Path, tokens: &[u32], size: usize) {
    let alone = decoder(folder, None);
    let expected = chunked(&alone, tokens, tokens.len());
    let tolerance = if AMPLIFIED.contains(&name) { AMPLIFIED_TOLERANCE } else { TOLERANCE };
    for chunk in [tokens.len(), 5] {
        let ranks = together(folder, tokens, size, chunk);
        let (heads, widths) = work(alone.spec());
        for (rank, (rows, spec)) in ranks.iter().enumerate() {
            assert!(rows == &ranks[0].0, "{name}: rank {rank} of {size} has other bits than the first");
            let (own_heads, own_widths) = work(spec);
            // A norm over all heads keeps them together.
            let kept = own_heads == heads && name == "olmo2";
            assert!(own_heads * size == heads || kept, "{name}: {own_heads} of {heads} in heads of rank {rank}");
            assert_eq!(own_widths * size, widths, "{name}: MLPs of rank {rank}");
        }
        let most = difference(&ranks[0].0, &expected);
        assert!(most <= tolerance, "{name}: {size} ranks in chunks of {chunk} differ by {most}");
    }
}

fn family(name: &str) {
    let Some(shared) = rows::shared() else { return };
    let folder = shared.join("text").join(name);
    let ids = golden(&folder.join("golden.safetensors"), "input_ids").to_dtype(DType::U32).unwrap();
    check(name, &folder, &ids.to_vec1::<u32>().unwrap()[..40], 2);
}

every_text_family!(family);

/// Families with what the others lack: a plain MLP with biases, halves side by side, a norm over all heads, a shared
/// expert behind a switch, an output gate.
#[test]
fn other_halves() {
    let tokens: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 256).collect();
    for name in ["starcoder2", "cohere2", "olmo2", "qwen2_moe", "glm4_moe"] {
        let folder = checkpoints::random(name, "tensor-parallel");
        check(name, &folder.0, &tokens, 2);
    }
}

/// With more ranks than heads of keys, neighbours keep the same ones.
#[test]
fn more_ranks_than_kv_heads() {
    let Some(shared) = rows::shared() else { return };
    let folder = shared.join("text/llama3");
    let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 256).collect();
    let one = decoder(&folder, None);
    let Mixer::Attention(whole) = &one.spec().layers[0].mixer else { panic!("llama3 has attention") };
    assert_eq!((whole.heads, whole.kv_heads), (4, 2), "this test is about four ranks of two key heads");
    check("llama3", &folder, &ids, 4);
    let expected: Vec<_> = chunked(&one, &ids, 40).iter().map(|row| argmax(row)).collect();
    let ranks = together(&folder, &ids, 4, 40);
    let Mixer::Attention(own) = &ranks[3].1.layers[0].mixer else { panic!("a rank has attention") };
    assert_eq!((own.heads, own.kv_heads), (1, 1));
    assert_eq!(ranks[3].0.iter().map(|row| argmax(row)).collect::<Vec<_>>(), expected);
}

/// Whoever waits for a rank that does not come is told.
#[test]
fn a_rank_that_fails_ends_the_others() {
    let Some(shared) = rows::shared() else { return };
    let folder = shared.join("text/llama3");
    let mut ranks = HostRank::all(2);
    let (second, first) = (ranks.pop().unwrap(), ranks.pop().unwrap());
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let decoder = decoder(&folder, Some(first));
            let cache = rows::cache(&decoder, 1, DType::F32);
            let batch =
                rows::batch(&decoder, &mut [rows::Feed { sequence: &mut rows::Sequence::new(0, 1), tokens: &[1, 2] }]);
            decoder.forward(&batch, &cache).unwrap_err().to_string()
        });
        second.abort();
        assert!(waits.join().unwrap().contains("another device of this model has failed"));
    });
}

/// Codes are cut between blocks: 48 blocks for five ranks, and heads that do not come out even stay together.
#[test]
fn blocks_of_codes_stay_whole() {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let folder = std::env::var_os("FASTCHAT_MODELS").map_or(default, std::path::PathBuf::from);
    let file = folder.join("smollm2-135m-instruct-q4_1.gguf");
    if !file.is_file() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{} must be there in CI", file.display());
        eprintln!("SKIPPED: {} is not there; set FASTCHAT_MODELS", file.display());
        return;
    }
    let tokens: Vec<u32> = (0..24).map(|i| (i * 977 + 11) % 49152).collect();
    let alone = chunked(&decoder(&file, None), &tokens, 24);
    let ranks = together(&file, &tokens, 5, 24);
    let inters = ranks.iter().map(|(_, spec)| match &spec.layers[0].mlp {
        Mlp::Gated(dense) => dense.inter,
        _ => 0,
    });
    assert_eq!(inters.collect::<Vec<_>>(), [288, 320, 288, 320, 320]);
    for (rows, spec) in &ranks {
        assert_eq!(work(spec).0, 30 * 576, "nine heads are not dealt out");
        assert!(rows == &ranks[0].0, "ranks differ");
    }
    let most = difference(&ranks[0].0, &alone);
    assert!(most <= TOLERANCE, "{most}");
}
