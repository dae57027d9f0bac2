//! Every operation of a backend against the plain default on the CPU, on inputs made here: what `doctor` runs on a
//! machine that no test of ours has seen. Needs no file and no model.

use candle_core::{DType, Device, Result, Tensor};

use crate::{
    Activation, AttentionSpec, BLOCK_SIZE, DefaultKernels, ForwardBatch, GatedDeltaSpec, Kernels, KvCache, KvLayout,
    MoeSpec, MoeWeights, NormScope, QkvSpec, Rope, RopeLayout, RouterScore, StateCache, StateLayout, StateStep, Weight,
    WeightKind,
};

/// What one operation showed.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The operation and its variant.
    pub name: String,
    /// Largest difference, relative to the larger of one and the largest expected element; infinite after an error.
    pub difference: f32,
    /// What it may be.
    pub bound: f32,
    /// The error that the operation ended with.
    pub error: Option<String>,
}

impl Finding {
    /// Whether the operation may be trusted.
    pub fn ok(&self) -> bool {
        self.difference <= self.bound
    }
}

/// Sums of f32 in another order, functions in another approximation.
const EXACT: f32 = 2e-5;
/// Matrices: operands rounded to bf16, or to eight bits in groups of 32.
const ROUNDED: f32 = 2e-2;
/// Caches of 16 bits.
const HALF: f32 = 1e-2;

/// Runs all operations of `kernels`.
pub fn run(kernels: &dyn Kernels) -> Vec<Finding> {
    let bench = Bench { kernels, default: DefaultKernels(Device::Cpu) };
    let mut findings = Vec::new();
    for kind in [WeightKind::F32, WeightKind::BF16, WeightKind::F8_E4M3, WeightKind::Q8_0, WeightKind::Q4_K] {
        findings.push(bench.compare(&format!("linear {kind:?}"), ROUNDED, |on| linear(on, kind)));
        findings.push(bench.compare(&format!("embed {kind:?}"), EXACT, |on| embed(on, kind)));
    }
    findings.push(bench.compare("rms_norm", EXACT, |on| {
        Ok(vec![on.kernels.rms_norm(&on.tensor(&[9, 1024], 4., 1)?, &on.tensor(&[1024], 2., 2)?, 1e-6)?])
    }));
    findings.push(bench.compare("layer_norm", EXACT, |on| {
        let (weight, bias) = (on.tensor(&[384], 2., 2)?, on.tensor(&[384], 2., 3)?);
        Ok(vec![on.kernels.layer_norm(&on.tensor(&[9, 384], 4., 1)?, &weight, Some(&bias), 1e-6)?])
    }));
    findings.push(bench.compare("add_rms_norm", EXACT, |on| {
        let (x, residual) = (on.tensor(&[9, 1024], 4., 1)?, on.tensor(&[9, 1024], 4., 2)?);
        let (sum, normed) = on.kernels.add_rms_norm(&x, &residual, &on.tensor(&[1024], 2., 3)?, 1e-6)?;
        Ok(vec![sum, normed])
    }));
    let limited = Activation::SwigluOai { alpha: 1.702, limit: 7. };
    for act in
        [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu2, limited]
    {
        findings.push(bench.compare(&format!("act {act:?}"), EXACT, |on| {
            let x = on.tensor(&[7, 2 * 200], 8., 1)?;
            let gated = on.kernels.gated_act(&x, act)?;
            // The last one needs a gate.
            Ok(if act == limited { vec![gated] } else { vec![gated, on.kernels.act(&x, act)?] })
        }));
    }
    for (name, dtype, bound) in
        [("f32", DType::F32, EXACT), ("f16", DType::F16, HALF), ("bf16", DType::BF16, 4. * HALF)]
    {
        findings.push(bench.compare(&format!("attention, {name} cache"), bound, |on| attention(on, dtype, false)));
        let special = format!("attention with window, cap and sinks, {name} cache");
        findings.push(bench.compare(&special, bound, |on| attention(on, dtype, true)));
    }
    findings.push(bench.compare("full_attention", EXACT, full_attention));
    for score in [RouterScore::Softmax, RouterScore::SoftmaxTopK, RouterScore::Sigmoid] {
        findings.push(bench.compare(&format!("moe {score:?}"), ROUNDED, |on| moe(on, score)));
    }
    findings.push(bench.compare("gated_delta", 1e-4, gated_delta));
    findings
}

/// A backend and the reference.
struct Bench<'a> {
    kernels: &'a dyn Kernels,
    default: DefaultKernels,
}

impl Bench<'_> {
    fn compare(&self, name: &str, bound: f32, operation: impl Fn(&On) -> Result<Vec<Tensor>>) -> Finding {
        let found = operation(&On { kernels: &self.default })
            .and_then(|expected| difference(&operation(&On { kernels: self.kernels })?, &expected));
        let (difference, error) = match found {
            Ok(difference) => (difference, None),
            Err(error) => (f32::INFINITY, error.to_string().lines().next().map(str::to_owned)),
        };
        Finding { name: name.to_owned(), difference, bound, error }
    }
}

fn difference(found: &[Tensor], expected: &[Tensor]) -> Result<f32> {
    let floats = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    let mut most = 0_f32;
    for (found, expected) in found.iter().zip(expected) {
        if found.dims() != expected.dims() {
            return Ok(f32::INFINITY);
        }
        let (found, expected) = (floats(found)?, floats(expected)?);
        let scale = expected.iter().fold(1_f32, |scale, x| scale.max(x.abs()));
        for (a, e) in found.iter().zip(&expected) {
            let off = (a - e).abs() / scale;
            // Not a number is as far off as can be.
            most = if off.is_nan() { f32::INFINITY } else { most.max(off) };
        }
    }
    Ok(most)
}

/// A backend with the inputs that all backends get.
struct On<'a> {
    kernels: &'a dyn Kernels,
}

impl On<'_> {
    /// Uniform in `-scale .. scale`, the same on every device.
    fn tensor(&self, shape: &[usize], scale: f32, seed: u64) -> Result<Tensor> {
        Tensor::from_vec(floats(shape.iter().product(), scale, seed), shape, self.kernels.device())
    }

    fn pack(&self, kind: WeightKind, rows: usize, cols: usize, seed: u64) -> Result<crate::Linear> {
        let values = floats(rows * cols, 1. / (cols as f32).sqrt(), seed);
        let dense = |bytes: Vec<u8>| Weight::new(kind, rows, cols, bytes.into());
        let weight = match kind {
            WeightKind::F32 => dense(values.iter().flat_map(|x| x.to_le_bytes()).collect())?,
            WeightKind::BF16 => dense(values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect())?,
            WeightKind::F8_E4M3 => dense(values.chunks_exact(128).flat_map(eight_bits).collect())?,
            _ => crate::quantize(kind, rows, cols, &values)?,
        };
        self.kernels.pack(&[weight], None)
    }
}

/// A block of `F8_E4M3` with some bits of 128 floats for its codes, and a scale that f16 holds together with any.
fn eight_bits(values: &[f32]) -> Vec<u8> {
    let code = |x: &f32| if x.to_bits() & 0x7f == 0x7f { 0 } else { x.to_bits() as u8 };
    (1f32 / 1024.).to_le_bytes().into_iter().chain(values.iter().map(code)).collect()
}

/// splitmix64.
fn floats(count: usize, scale: f32, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0xd129_0d3b_3a5c_1d2b);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.
    };
    (0..count).map(|_| next() * scale).collect()
}

fn linear(on: &On, kind: WeightKind) -> Result<Vec<Tensor>> {
    let layer = on.pack(kind, 384, 512, 1)?;
    // One row, a few, and more than a tile.
    [1, 5, 67].iter().map(|&rows| on.kernels.linear(&on.tensor(&[rows, 512], 2., 2)?, &layer)).collect()
}

fn embed(on: &On, kind: WeightKind) -> Result<Vec<Tensor>> {
    let table = on.pack(kind, 100, 256, 1)?;
    Ok(vec![on.kernels.embed(&table, &[0, 99, 7, 7, 50])?])
}

/// Three sequences in one step: a whole prompt, a chunk behind what is cached, and a decoding one.
const SEQUENCES: [(usize, usize); 3] = [(0, 37), (21, 20), (300, 1)];

fn batch(sequences: &[(usize, usize)]) -> (ForwardBatch, usize) {
    let mut batch = ForwardBatch { query_start: vec![0], ..ForwardBatch::default() };
    let mut next = 0;
    for &(before, new) in sequences {
        let count = (before + new).div_ceil(BLOCK_SIZE) as u32;
        // From the back, so that a kernel that ignores the table is found out.
        let table: Vec<u32> = (next..next + count).rev().collect();
        next += count;
        for position in before..before + new {
            batch.token_ids.push(0);
            batch.positions.push(position as u32);
            batch.slot_mapping.push(table[position / BLOCK_SIZE] * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32);
        }
        batch.query_start.push(batch.token_ids.len() as u32);
        batch.context_lens.push((before + new) as u32);
        batch.block_tables.push(table);
    }
    (batch, next as usize)
}

fn rope() -> Rope {
    let inv_freq = (0..32).map(|i| 10_000_f32.powf(-(i as f32) / 32.)).collect();
    Rope { index: 0, layout: RopeLayout::HalfSplit, inv_freq, attention_factor: 1., axes: Vec::new() }
}

fn qkv_spec(on: &On) -> Result<QkvSpec> {
    let qk_norm = Some((on.tensor(&[64], 2., 4)?, on.tensor(&[64], 2., 5)?, 1e-6, NormScope::PerHead));
    Ok(QkvSpec { num_heads: 8, num_kv_heads: 2, head_dim: 64, qk_norm, rope: Some(rope()) })
}

fn attention(on: &On, dtype: DType, special: bool) -> Result<Vec<Tensor>> {
    let spec = qkv_spec(on)?;
    let (batch, blocks) = batch(&SEQUENCES);
    let layout = KvLayout { num_kv_heads: 2, head_dim: 64, v_head_dim: 64, dtype };
    let past = |shape: &[usize], seed| on.tensor(shape, 1., seed)?.to_dtype(dtype);
    let k = past(&[blocks, 2, 64, BLOCK_SIZE], 6)?;
    let cache = KvCache { layout, k, v: Some(past(&[blocks, 2, BLOCK_SIZE, 64], 7)?) };
    let plan = on.kernels.plan(&batch, &[rope()])?;
    let qkv = on.tensor(&[batch.num_tokens(), 12 * 64], 2., 8)?;
    let q = on.kernels.qk_norm_rope_write(&qkv, &spec, &cache, &plan)?;
    let attention = AttentionSpec {
        num_heads: 8,
        v_head_dim: 64,
        scale: 0.125,
        window: special.then_some(70),
        softcap: special.then_some(30.),
        sinks: if special { Some(on.tensor(&[8], 1., 9)?) } else { None },
    };
    let out = on.kernels.attention(&q, &attention, &cache, &plan)?;
    Ok(vec![q, out])
}

fn full_attention(on: &On) -> Result<Vec<Tensor>> {
    let (batch, _) = batch(&[(0, 33), (0, 5)]);
    let plan = on.kernels.plan(&batch, &[rope()])?;
    let qkv = on.tensor(&[38, 12 * 64], 1., 1)?;
    let spec = AttentionSpec { num_heads: 8, v_head_dim: 64, scale: 0.125, window: None, softcap: None, sinks: None };
    let of = |rows| on.kernels.full_attention(&qkv, &qkv_spec(on)?, &spec, &plan, rows);
    Ok(vec![of(0..38)?, of(20..36)?])
}

fn moe(on: &On, score: RouterScore) -> Result<Vec<Tensor>> {
    let (experts, hidden, inter) = (8, 64, 32);
    let spec = MoeSpec {
        num_experts: experts,
        top_k: 2,
        score,
        renormalize: true,
        scaling: 1.,
        groups: None,
        act: Activation::Silu,
    };
    // A router of whole numbers: rounding must not choose other experts.
    let router: Vec<u8> =
        (0..experts * hidden).flat_map(|i| if i % hidden == i / hidden { 8_f32 } else { 0. }.to_le_bytes()).collect();
    let router = Weight::new(WeightKind::F32, experts, hidden, router.into())?;
    let weights = MoeWeights {
        router: on.kernels.pack(&[router], None)?,
        score_bias: None,
        gate_up: (0..experts as u64)
            .map(|e| on.pack(WeightKind::F32, 2 * inter, hidden, 10 + e))
            .collect::<Result<_>>()?,
        down: (0..experts as u64).map(|e| on.pack(WeightKind::F32, hidden, inter, 30 + e)).collect::<Result<_>>()?,
    };
    Ok(vec![on.kernels.moe(&on.tensor(&[19, hidden], 2., 1)?, &spec, &weights)?])
}

fn gated_delta(on: &On) -> Result<Vec<Tensor>> {
    let layout = StateLayout {
        conv_channels: 2 * 2 * 32 + 4 * 48,
        conv_taps: 4,
        num_v_heads: 4,
        k_head_dim: 32,
        v_head_dim: 48,
    };
    let (mut batch, _) = batch(&[(0, 40), (0, 1)]);
    batch.states = vec![
        StateStep { source: None, target: 0, snapshots: vec![(16, 2), (32, 3)] },
        StateStep { source: Some(1), target: 1, snapshots: vec![] },
    ];
    let conv = on.tensor(&[4, 3, layout.conv_channels], 1., 1)?;
    let cache = StateCache { layout, conv, recurrent: on.tensor(&[4, 4, 32, 48], 1., 2)? };
    let qkv = on.tensor(&[41, layout.conv_channels], 2., 3)?;
    let beta = on.tensor(&[41, 4], 0.5, 4)?.affine(1., 0.5)?;
    let decay = on.tensor(&[41, 4], 1., 5)?.affine(1., -1.)?;
    let spec =
        GatedDeltaSpec { num_k_heads: 2, conv_weight: on.tensor(&[layout.conv_channels, 4], 1., 6)?, l2_eps: 1e-6 };
    let plan = on.kernels.plan(&batch, &[])?;
    let out = on.kernels.gated_delta(&[&qkv, &beta, &decay], &spec, &cache, &plan)?;
    Ok(vec![out, cache.conv, cache.recurrent])
}
