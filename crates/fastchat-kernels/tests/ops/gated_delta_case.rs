//! One step of the gated delta rule, whole and cut, on any backend: what the tests of each folder hold theirs to.

use fastchat_kernels::{GatedDeltaSpec, Kernels, StateCache, StateLayout, StateStep};

use crate::data::{DEFAULT, Random, alone, assert_close, assert_same_bits, batch};

/// A cache of random states; the same for the same random numbers.
fn states(layout: StateLayout, slots: usize, seed: u64) -> StateCache {
    let mut random = Random(seed);
    let conv = random.tensor(&[slots, layout.conv_taps - 1, layout.conv_channels], 1.);
    let recurrent = random.tensor(&[slots, layout.num_v_heads, layout.k_head_dim, layout.v_head_dim], 1.);
    StateCache { layout, conv, recurrent }
}

/// The shape of a step.
#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    /// Tokens of each sequence.
    pub lens: Vec<usize>,
    /// Key heads, value heads for each of them, widths of a key's and of a value's head.
    pub heads: (usize, usize, usize, usize),
    pub conv_taps: usize,
    /// 0: a sequence reads a slot that another writes.
    pub entangled: u8,
}

/// Equals the default, and has the same bits when the last sequence goes alone in two steps.
pub fn check(case: &Case, backends: impl IntoIterator<Item = impl Kernels>) {
    let Case { seed, ref lens, heads: (num_k_heads, repeats, k_head_dim, v_head_dim), conv_taps, entangled } = *case;
    let mut random = Random(seed);
    let num_v_heads = num_k_heads * repeats;
    let conv_channels = 2 * num_k_heads * k_head_dim + num_v_heads * v_head_dim;
    let layout = StateLayout { conv_channels, conv_taps, num_v_heads, k_head_dim, v_head_dim };
    let sequences: Vec<_> = lens.iter().map(|&len| (0, len)).collect();
    let (mut batch, _) = batch(&sequences, &mut random);
    // Slots 4 s .. 4 s + 4 belong to sequence s; slot 12 may be read by all of them.
    for (s, &len) in lens.iter().enumerate() {
        let own = 4 * s as u32;
        let source = match random.next() % 4 {
            0 => None,
            1 => Some(own),
            2 => Some(own + 1),
            _ => Some(12),
        };
        let half = len as u32 / 2;
        let snapshots = vec![(len as u32, own + 3), (half, own + 2)];
        batch.states.push(StateStep { source, target: own, snapshots });
    }
    if entangled == 0 && lens.len() > 1 {
        batch.states[1].source = Some(0);
    }
    let tokens = batch.num_tokens();
    let qkv = random.tensor(&[tokens, conv_channels], 2.);
    let beta = random.tensor(&[tokens, num_v_heads], 0.5).affine(1., 0.5).unwrap();
    let decay = random.tensor(&[tokens, num_v_heads], 1.).affine(1., -1.).unwrap();
    let conv_weight = random.tensor(&[conv_channels, conv_taps], 1.);
    let spec = GatedDeltaSpec { num_k_heads, conv_weight, l2_eps: 1e-6 };
    let expected_states = states(layout, 13, seed);
    let inputs = [&qkv, &beta, &decay];
    let expected = DEFAULT.gated_delta(&inputs, &spec, &expected_states, &DEFAULT.plan(&batch, &[]).unwrap()).unwrap();
    for kernels in backends {
        let name = kernels.name();
        let cache = states(layout, 13, seed);
        let out = kernels.gated_delta(&inputs, &spec, &cache, &kernels.plan(&batch, &[]).unwrap()).unwrap();
        assert_close(&name, &out, &expected, 2e-5);
        assert_same_bits(&name, &cache.conv, &expected_states.conv);
        assert_close(&name, &cache.recurrent, &expected_states.recurrent, 2e-5);
        if entangled == 0 {
            continue;
        }
        // The last sequence alone, in two steps.
        let s = lens.len() - 1;
        let (start, cut) = (batch.query_start[s] as usize, lens[s] / 2);
        let cache = states(layout, 13, seed);
        let mut source = batch.states[s].source;
        for rows in [0..cut, cut..lens[s]] {
            if rows.is_empty() {
                continue;
            }
            let mut own = alone(&batch, s, rows.clone());
            own.states = vec![StateStep { source, target: 4 * s as u32, snapshots: vec![] }];
            source = Some(4 * s as u32);
            let inputs = inputs.map(|x| x.narrow(0, start + rows.start, rows.len()).unwrap());
            let inputs = [&inputs[0], &inputs[1], &inputs[2]];
            let part = kernels.gated_delta(&inputs, &spec, &cache, &kernels.plan(&own, &[]).unwrap()).unwrap();
            assert_same_bits(&name, &part, &out.narrow(0, start + rows.start, rows.len()).unwrap());
        }
    }
}

/// A slot beyond the cache is an error that says so.
pub fn check_slots(backends: impl IntoIterator<Item = impl Kernels>) {
    let mut random = Random(1);
    let layout = StateLayout { conv_channels: 3, conv_taps: 2, num_v_heads: 1, k_head_dim: 1, v_head_dim: 1 };
    let (mut batch, _) = batch(&[(0, 1)], &mut random);
    batch.states = vec![StateStep { source: None, target: 2, snapshots: vec![] }];
    let spec = GatedDeltaSpec { num_k_heads: 1, conv_weight: random.tensor(&[3, 2], 1.), l2_eps: 0. };
    let (qkv, one) = (random.tensor(&[1, 3], 1.), random.tensor(&[1, 1], 1.));
    for kernels in backends {
        let cache = states(layout, 2, 1);
        let error =
            kernels.gated_delta(&[&qkv, &one, &one], &spec, &cache, &kernels.plan(&batch, &[]).unwrap()).unwrap_err();
        assert!(error.to_string().contains("slot 2 of 2"), "{error}");
    }
}
