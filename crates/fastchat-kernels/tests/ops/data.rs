//! Random tensors, batches and backends for the tests of this folder.

use candle_core::{DType, Device, Tensor};
use fastchat_kernels::cpu::{CpuKernels, Isa};
use fastchat_kernels::{BLOCK_SIZE, DefaultKernels, ForwardBatch, KvCache, KvLayout, Plan};

/// Small and reproducible (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Uniform in `-scale .. scale`.
    pub fn floats(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| ((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.) * scale).collect()
    }

    pub fn tensor(&mut self, shape: &[usize], scale: f32) -> Tensor {
        Tensor::from_vec(self.floats(shape.iter().product(), scale), shape, &Device::Cpu).unwrap()
    }
}

pub const DEFAULT: DefaultKernels = DefaultKernels(Device::Cpu);

/// One backend per instruction set of this machine and number of threads.
pub fn backends() -> Vec<CpuKernels> {
    let sets = [Isa::Portable, Isa::Avx2, Isa::Avx512Vnni];
    let found = sets.into_iter().filter(|isa| *isa <= Isa::detect());
    found.flat_map(|isa| [1, 3].map(|threads| CpuKernels::with_isa(Some(threads), isa))).collect()
}

/// Sequences of (tokens cached before, tokens of this step), in shuffled blocks; returns the number of blocks too.
pub fn batch(sequences: &[(usize, usize)], random: &mut Random) -> (ForwardBatch, usize) {
    let blocks_of = |&(before, new): &(usize, usize)| (before + new).div_ceil(BLOCK_SIZE);
    let num_blocks = sequences.iter().map(blocks_of).sum::<usize>() + 2;
    let mut free: Vec<u32> = (0..num_blocks as u32).collect();
    for i in (1..free.len()).rev() {
        free.swap(i, random.next() as usize % (i + 1));
    }
    let mut batch = ForwardBatch { query_start: vec![0], ..ForwardBatch::default() };
    for sequence in sequences {
        let &(before, new) = sequence;
        let table = free.split_off(free.len() - blocks_of(sequence));
        for position in before..before + new {
            batch.token_ids.push(0);
            batch.positions.push(position as u32);
            batch.slot_mapping.push(table[position / BLOCK_SIZE] * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32);
        }
        batch.query_start.push(batch.token_ids.len() as u32);
        batch.context_lens.push((before + new) as u32);
        batch.block_tables.push(table);
    }
    batch.check(num_blocks).unwrap();
    (batch, num_blocks)
}

/// The rows `range` of sequence `s` alone, with the same blocks.
pub fn alone(batch: &ForwardBatch, s: usize, range: std::ops::Range<usize>) -> ForwardBatch {
    let start = batch.query_start[s] as usize;
    let range = start + range.start..start + range.end;
    ForwardBatch {
        token_ids: batch.token_ids[range.clone()].to_vec(),
        positions: batch.positions[range.clone()].to_vec(),
        reach: batch.reach.get(range.clone()).unwrap_or_default().to_vec(),
        slot_mapping: batch.slot_mapping[range.clone()].to_vec(),
        query_start: vec![0, range.len() as u32],
        // What sees later tokens finds them in the cache.
        context_lens: vec![if batch.reach.is_empty() {
            batch.positions[range.end - 1] + 1
        } else {
            batch.context_lens[s]
        }],
        block_tables: vec![batch.block_tables[s].clone()],
        ..ForwardBatch::default()
    }
}

pub fn plan(batch: ForwardBatch) -> Plan {
    Plan::new(batch, vec![])
}

/// A cache full of random numbers, with NaN wherever no sequence of the batch has a token.
pub fn cache(layout: KvLayout, num_blocks: usize, batch: &ForwardBatch, random: &mut Random) -> KvCache {
    let KvLayout { num_kv_heads: heads, head_dim, v_head_dim, dtype } = layout;
    let mut live = vec![false; num_blocks * BLOCK_SIZE];
    for (table, &len) in batch.block_tables.iter().zip(&batch.context_lens) {
        for position in 0..len as usize {
            live[table[position / BLOCK_SIZE] as usize * BLOCK_SIZE + position % BLOCK_SIZE] = true;
        }
    }
    let mut fill = |dim: usize, token: &dyn Fn(usize) -> usize, shape: [usize; 4]| {
        let mut values = random.floats(num_blocks * heads * dim * BLOCK_SIZE, 1.);
        for (i, value) in values.iter_mut().enumerate() {
            if !live[i / (heads * dim * BLOCK_SIZE) * BLOCK_SIZE + token(i)] {
                *value = f32::NAN;
            }
        }
        Tensor::from_vec(values, &shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    };
    let k = fill(head_dim, &|i| i % BLOCK_SIZE, [num_blocks, heads, head_dim, BLOCK_SIZE]);
    let v = (v_head_dim > 0)
        .then(|| fill(v_head_dim, &|i| i / v_head_dim % BLOCK_SIZE, [num_blocks, heads, BLOCK_SIZE, v_head_dim]));
    KvCache { layout, k, v }
}

/// Elements as f32.
pub fn floats(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Asserts that two tensors have the same shape and agree to `tolerance`, relative to values above one.
pub fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(actual.dims(), expected.dims(), "{what}");
    for (i, (a, e)) in floats(actual).into_iter().zip(floats(expected)).enumerate() {
        assert!((a - e).abs() <= tolerance * e.abs().max(1.), "{what}: element {i} is {a}, expected {e}");
    }
}

/// Asserts that two tensors have the same bits.
pub fn assert_same_bits(what: &str, actual: &Tensor, expected: &Tensor) {
    assert_eq!(actual.dims(), expected.dims(), "{what}");
    for (i, (a, e)) in floats(actual).into_iter().zip(floats(expected)).enumerate() {
        assert!(a.to_bits() == e.to_bits(), "{what}: element {i} is {a:?}, expected {e:?} bit by bit");
    }
}
