//! Damaged GGUF files: thousands of headers with flipped bytes, cuts and absurd numbers, and one file for every rule of
//! the format. Each is an error in one line or a model; none panics, and none makes the loader ask for memory that the
//! file does not justify.
#![allow(missing_docs, clippy::unwrap_used)] // a test may fail loudly

mod checkpoints;
mod damaging;

use std::sync::Arc;

use candle_core::Device;
use checkpoints::Folder;
use damaging::{Random, peak};
use fastchat_kernels::DefaultKernels;
use fastchat_models::{LoadOptions, load};

/// Growth of the address space that files of less than 100 kB may cause; a wrong size asks for far more.
const MOST: u64 = 100 << 20;
const ROUNDS: u64 = 8000;

/// Bytes after the tensors of the good file.
const SLACK: usize = 4096;

/// A file in the making.
#[derive(Clone)]
struct File {
    version: u32,
    counts: Option<(u64, u64)>,
    keys: Vec<(String, Vec<u8>)>,
    tensors: Vec<Tensor>,
    /// Bytes taken off the end.
    cut: usize,
}

#[derive(Clone)]
struct Tensor {
    name: String,
    dims: Vec<u64>,
    kind: u32,
    offset: u64,
    bytes: usize,
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

fn whole(value: u32) -> Vec<u8> {
    [&4u32.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

fn string(value: &str) -> Vec<u8> {
    [&8u32.to_le_bytes()[..], &text(value)].concat()
}

fn list(kind: u32, count: u64, entries: &[u8]) -> Vec<u8> {
    [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes(), entries].concat()
}

impl File {
    /// One layer of a small Llama with a vocabulary.
    fn good() -> Self {
        let mut file = Self { version: 3, counts: None, keys: Vec::new(), tensors: Vec::new(), cut: 0 };
        file.keys.push(("general.architecture".to_owned(), string("llama")));
        let sizes = [
            ("block_count", 1),
            ("context_length", 64),
            ("embedding_length", 32),
            ("feed_forward_length", 64),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
        ];
        file.keys.extend(sizes.map(|(key, value)| (format!("llama.{key}"), whole(value))));
        file.keys.push(("tokenizer.ggml.model".to_owned(), string("gpt2")));
        let tokens: Vec<u8> = (0..16).flat_map(|i| text(&format!("t{i}"))).collect();
        file.keys.push(("tokenizer.ggml.tokens".to_owned(), list(8, 16, &tokens)));
        file.keys.push(("tokenizer.ggml.token_type".to_owned(), list(5, 16, &[1, 0, 0, 0].repeat(16))));
        file.keys.push(("tokenizer.ggml.eos_token_id".to_owned(), whole(2)));
        file.add("token_embd.weight", &[32, 16], 0);
        file.add("output_norm.weight", &[32], 0);
        for (name, dims) in [
            ("attn_norm", &[32][..]),
            ("attn_q", &[32, 32]),
            ("attn_k", &[32, 16]),
            ("attn_v", &[32, 16]),
            ("attn_output", &[32, 32]),
            ("ffn_norm", &[32]),
            ("ffn_gate", &[32, 64]),
            ("ffn_up", &[32, 64]),
            ("ffn_down", &[64, 32]),
        ] {
            // Matrices in blocks of Q8_0, vectors in f32.
            file.add(&format!("blk.0.{name}.weight"), dims, if dims.len() == 2 { 8 } else { 0 });
        }
        file
    }

    fn add(&mut self, name: &str, dims: &[u64], kind: u32) {
        let offset = self.tensors.last().map_or(0, |last| (last.offset + last.bytes as u64).next_multiple_of(32));
        let elements = dims.iter().product::<u64>() as usize;
        let bytes = if kind == 8 { elements / 32 * 34 } else { elements * 4 };
        self.tensors.push(Tensor { name: name.to_owned(), dims: dims.to_vec(), kind, offset, bytes });
    }

    fn header(&self) -> Vec<u8> {
        let (tensors, keys) = self.counts.unwrap_or((self.tensors.len() as u64, self.keys.len() as u64));
        let mut out = [b"GGUF", &self.version.to_le_bytes()[..], &tensors.to_le_bytes(), &keys.to_le_bytes()].concat();
        for (key, value) in &self.keys {
            out.extend(text(key));
            out.extend(value);
        }
        for tensor in &self.tensors {
            out.extend(text(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out
    }

    fn body() -> Vec<u8> {
        let len = Self::good().tensors.iter().map(|tensor| tensor.offset as usize + tensor.bytes).max().unwrap();
        vec![0; len + SLACK]
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(Self::body());
        out.truncate(out.len() - self.cut);
        out
    }

    fn key(&mut self, key: &str) -> &mut Vec<u8> {
        &mut self.keys.iter_mut().find(|(known, _)| known == key).unwrap().1
    }
}

fn attempt(folder: &Folder, bytes: &[u8]) -> Result<(), String> {
    folder.write("model.gguf", bytes);
    let path = folder.0.join("model.gguf");
    match load(&path, Arc::new(DefaultKernels(Device::Cpu)), &LoadOptions::default()) {
        Ok(_) => Ok(()),
        Err(error) => {
            let line = error.to_string();
            assert!(!line.contains('\n') && line.contains("model.gguf"), "{line}");
            assert!(line.len() < 1000, "{line}");
            Err(line)
        }
    }
}

/// Every rule broken once: the message names the field or tensor and the value.
fn rules(folder: &Folder) {
    let check = |expected: &str, edit: &dyn Fn(&mut File)| {
        let mut file = File::good();
        edit(&mut file);
        let line = attempt(folder, &file.bytes()).expect_err(expected);
        assert!(line.contains(expected), "{line:?} does not say {expected:?}");
    };
    check("version = 1 is not supported", &|f| f.version = 1);
    check("version = 3 in big-endian order is not supported", &|f| f.version = 3u32.swap_bytes());
    check("tensor count = 1152921504606846976", &|f| f.counts = Some((1 << 60, 1)));
    check("key count = 18446744073709551615", &|f| f.counts = Some((1, u64::MAX)));
    check("llama.block_count = two values", &|f| f.keys.push(f.keys[1].clone()));
    check("key 11 = a b", &|f| f.keys.push(("a\nb".to_owned(), whole(1))));
    check("x = a value of type 77", &|f| f.keys.push(("x".to_owned(), 77u32.to_le_bytes().to_vec())));
    check("x = flag 2", &|f| f.keys.push(("x".to_owned(), [&7u32.to_le_bytes()[..], &[2]].concat())));
    check("x = a list of lists", &|f| f.keys.push(("x".to_owned(), list(9, 1, &[]))));
    check("tokenizer.ggml.tokens = 4611686018427387904", &|f| {
        *f.key("tokenizer.ggml.tokens") = list(8, 1 << 62, &[]);
    });
    check("general.alignment = 24", &|f| f.keys.push(("general.alignment".to_owned(), whole(24))));
    check("tensor output_norm.weight: has 0 dimensions", &|f| f.tensors[1].dims.clear());
    check("tensor output_norm.weight: has 5 dimensions", &|f| f.tensors[1].dims = vec![1; 5]);
    check("tensor output_norm.weight: has shape [0]", &|f| f.tensors[1].dims = vec![0]);
    check("tensor output_norm.weight: has shape", &|f| f.tensors[1].dims = vec![1 << 33; 2]);
    check("tensor output_norm.weight: has element type 4", &|f| f.tensors[1].kind = 4);
    check("has rows of 33 elements of kind Q8_0", &|f| f.tensors[3].dims[0] = 33);
    check("has offset 2049: expected a multiple of 32", &|f| f.tensors[1].offset += 1);
    check("overlap those of token_embd.weight", &|f| f.tensors[1].offset = 32);
    check("has offset 18446744073709551584", &|f| f.tensors[1].offset = u64::MAX - 31);
    check("blk.0.ffn_down.weight: has 2176 bytes at offset", &|f| f.cut = SLACK + 1);
    check("tensor token_embd.weight: is stored twice", &|f| "token_embd.weight".clone_into(&mut f.tensors[1].name));
    check("general.architecture = mamba is not supported", &|f| *f.key("general.architecture") = string("mamba"));
    check("llama.block_count = 0", &|f| *f.key("llama.block_count") = whole(0));
    check("llama.block_count = 4096", &|f| *f.key("llama.block_count") = whole(4096));
    check("llama.attention.head_count_kv = 3", &|f| *f.key("llama.attention.head_count_kv") = whole(3));
    check("blk.1.attn_norm.weight: is missing", &|f| *f.key("llama.block_count") = whole(2));
    check("tensor blk.0.extra.weight: is left over", &|f| f.add("blk.0.extra.weight", &[32], 0));
    check("tokenizer.ggml.eos_token_id = 16", &|f| *f.key("tokenizer.ggml.eos_token_id") = whole(16));
    check("tokenizer.ggml.token_type = 1 entries", &|f| {
        *f.key("tokenizer.ggml.token_type") = list(5, 1, &[1, 0, 0, 0]);
    });
    check("split.no = 0: expected a file name that ends in -00001-of-00002.gguf", &|f| {
        f.keys.push(("split.count".to_owned(), whole(2)));
    });
    check("split.count = 1025", &|f| f.keys.push(("split.count".to_owned(), whole(1025))));
    check("magic", &|f| f.cut = f.bytes().len() - 3);
}

const ABSURD: [u64; 9] = [0, 1, u64::MAX, 1 << 63, 1 << 32, u32::MAX as u64, 1 << 26, 1 << 20, 0x7fff_ffff];

/// `header` with one to three random damages.
fn damaged(header: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = header.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(out.len());
        let number = ABSURD[random.below(ABSURD.len())].to_le_bytes();
        let width = [4, 8][random.below(2)].min(out.len() - at);
        match random.below(8) {
            0..3 => out[at] ^= 1 << random.below(8),
            3 => out[at] = random.next() as u8,
            4 => out.truncate(at.max(1)),
            5 => drop(out.drain(at..at + width)),
            _ => out[at..at + width].copy_from_slice(&number[..width]),
        }
        if out.is_empty() {
            break;
        }
    }
    out
}

/// One test, because the peak is the whole process's.
#[test]
fn damaged_files_are_refused() {
    let folder = Folder::new("gguf-damage");
    let good = File::good();
    attempt(&folder, &good.bytes()).unwrap();
    rules(&folder);
    let before = peak();
    let mut refused = 0;
    for round in 0..ROUNDS {
        let mut random = Random(round);
        let mut bytes = damaged(&good.header(), &mut random);
        // Most damages keep the body, some cut it too.
        if random.below(8) != 0 {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(File::body());
        }
        refused += u64::from(attempt(&folder, &bytes).is_err());
    }
    assert!(refused > ROUNDS / 2 && refused < ROUNDS, "{refused} of {ROUNDS} damaged files were refused");
    let grown = peak().zip(before).map_or(0, |(after, before)| after - before);
    assert!(grown < MOST, "a damaged file asked for {grown} bytes");
}
