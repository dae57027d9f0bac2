//! Runs token sequences through a decoder as a scheduler would: owns block tables and state slots, scattered on purpose.
//! Used by several test files.
#![allow(dead_code, unused_macros)] // every test file uses its part
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)] // a test may fail loudly

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use fastchat_kernels::{BLOCK_SIZE, ForwardBatch, StateStep};
use fastchat_models::{Cache, Decoder};

/// Blocks a test sequence may own.
const BLOCKS_PER_SEQUENCE: u32 = 8;

/// State slots a test sequence may own: its own and one per block border.
const SLOTS_PER_SEQUENCE: u32 = 1 + BLOCKS_PER_SEQUENCE;

/// The folder of reference outputs, or `None` with a loud line when it may be absent.
pub fn shared() -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let folder = std::env::var_os("FASTCHAT_SHARED").map_or(default, PathBuf::from);
    if folder.join("parity").is_dir() {
        return Some(folder.join("parity"));
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{} must hold parity/ in CI", folder.display());
    eprintln!("SKIPPED: {} has no parity/; set FASTCHAT_SHARED", folder.display());
    None
}

/// Names of the folders in `place`, sorted.
pub fn folders(place: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(place).unwrap().map(|entry| entry.unwrap()).filter(|entry| entry.path().is_dir());
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A test for each reference folder of a kind, which calls `$run` with its name, and one that none is left out.
macro_rules! every_folder {
    ($kind:literal, $run:ident: $($name:ident)*) => {
        $(#[test] fn $name() { $run(stringify!($name)); })*

        #[test]
        fn every_reference_folder_has_its_test() {
            let Some(shared) = rows::shared() else { return };
            let mut known = vec![$(stringify!($name)),*];
            known.sort_unstable();
            assert_eq!(rows::folders(&shared.join($kind)), known);
        }
    };
}

/// `every_folder` of the text families.
macro_rules! every_text_family {
    ($run:ident) => {
        every_folder! {
            "text", $run:
            llama3 llama_tied_bias mistral_window qwen2 qwen3 gemma3
            mixtral qwen2_yarn qwen3_moe gemma2 phi3 phi3_longrope smollm3 gpt_oss deepseek_v3 qwen3_next qwen3_5
        }
    };
}

/// One sequence in a cache.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Tokens fed so far.
    pub tokens: Vec<u32>,
    blocks: Vec<u32>,
    state: Option<u32>,
    slots: u32,
}

/// Tokens to feed to a sequence in one step.
pub struct Feed<'a> {
    pub sequence: &'a mut Sequence,
    pub tokens: &'a [u32],
}

/// A cache that holds `sequences` test sequences.
pub fn cache(decoder: &Decoder, sequences: u32, dtype: DType) -> Cache {
    let slots = if decoder.has_recurrent_state() { sequences * SLOTS_PER_SEQUENCE } else { 0 };
    decoder.new_cache((sequences * BLOCKS_PER_SEQUENCE) as usize, slots as usize, dtype).unwrap()
}

impl Sequence {
    /// The empty sequence `index` of `sequences` in a cache; its blocks are neither adjacent nor in order.
    pub fn new(index: u32, sequences: u32) -> Self {
        let blocks = (0..BLOCKS_PER_SEQUENCE).rev().map(|i| i * sequences + index).collect();
        Self { tokens: Vec::new(), blocks, state: None, slots: index * SLOTS_PER_SEQUENCE }
    }

    /// Continues after the first `blocks` whole blocks of `other`, sharing them and the state saved at their border.
    pub fn share(mut self, other: &Self, blocks: usize) -> Self {
        self.tokens = other.tokens[..blocks * BLOCK_SIZE].to_vec();
        self.blocks[..blocks].copy_from_slice(&other.blocks[..blocks]);
        self.state = Some(other.slots + blocks as u32);
        self
    }

    fn state_step(&mut self, fed: usize) -> StateStep {
        let (before, after) = (self.tokens.len(), self.tokens.len() + fed);
        let borders = (before / BLOCK_SIZE + 1)..=(after / BLOCK_SIZE);
        let snapshots =
            borders.map(|block| ((block * BLOCK_SIZE - before) as u32, self.slots + block as u32)).collect();
        let source = self.state.replace(self.slots);
        StateStep { source, target: self.slots, snapshots }
    }
}

/// Runs one step and returns the logits of all its rows, sequence after sequence.
pub fn step(decoder: &Decoder, cache: &Cache, feeds: &mut [Feed]) -> Vec<Vec<f32>> {
    let logits = decoder.forward(&batch(decoder, feeds), cache).unwrap();
    logits.to_dtype(DType::F32).unwrap().to_vec2().unwrap()
}

/// The batch of one step; the sequences are advanced.
pub fn batch(decoder: &Decoder, feeds: &mut [Feed]) -> ForwardBatch {
    let mut batch = ForwardBatch { query_start: vec![0], ..ForwardBatch::default() };
    for Feed { sequence, tokens } in feeds {
        let start = sequence.tokens.len();
        if decoder.has_recurrent_state() {
            batch.states.push(sequence.state_step(tokens.len()));
        }
        for (i, &token) in tokens.iter().enumerate() {
            let position = start + i;
            batch.token_ids.push(token);
            batch.positions.push(position as u32);
            let block = sequence.blocks[position / BLOCK_SIZE] as usize;
            batch.slot_mapping.push((block * BLOCK_SIZE + position % BLOCK_SIZE) as u32);
        }
        sequence.tokens.extend_from_slice(tokens);
        batch.query_start.push(batch.token_ids.len() as u32);
        batch.context_lens.push(sequence.tokens.len() as u32);
        batch.block_tables.push(sequence.blocks[..sequence.tokens.len().div_ceil(BLOCK_SIZE)].to_vec());
    }
    batch.logits_rows = (0..batch.token_ids.len() as u32).collect();
    batch
}

/// All tokens in chunks of `chunk`, alone in an f32 cache.
pub fn chunked(decoder: &Decoder, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    chunked_in(decoder, tokens, chunk, DType::F32)
}

/// All tokens in chunks of `chunk`, alone in a cache of that type.
pub fn chunked_in(decoder: &Decoder, tokens: &[u32], chunk: usize, dtype: DType) -> Vec<Vec<f32>> {
    let cache = cache(decoder, 1, dtype);
    let mut sequence = Sequence::new(0, 1);
    let mut rows = Vec::new();
    for tokens in tokens.chunks(chunk) {
        rows.extend(step(decoder, &cache, &mut [Feed { sequence: &mut sequence, tokens }]));
    }
    rows
}

/// Index of the largest logit, the first of equals.
pub fn argmax(row: &[f32]) -> u32 {
    let best = row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best });
    best as u32
}

/// Largest difference between two tables of the same shape; NaN counts as infinite.
pub fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let rows = a.iter().zip(b).flat_map(|(a, b)| {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b)
    });
    rows.map(|(a, b)| (a - b).abs()).fold(0.0, |most, x| if x.is_nan() { f32::INFINITY } else { most.max(x) })
}

/// A tensor of a reference file.
pub fn golden(file: &Path, name: &str) -> Tensor {
    let tensors = candle_core::safetensors::load(file, &candle_core::Device::Cpu).unwrap();
    tensors[name].clone()
}
