//! The gated delta rule (arXiv 2412.06464) behind its causal convolution, token by token, in plain candle.

use candle_core::{D, DType, Result, Tensor, bail};

use crate::{Plan, StateCache, StateLayout};

/// What one gated delta layer computes; sizes come from the cache's layout.
///
/// Per token: the last `conv_taps` rows of `qkv` are weighted channel by channel and pass through SiLU; the channels are
/// q and k `[k_heads, k_head_dim]` and v `[v_heads, v_head_dim]`. q and k are brought to unit length, q is divided by
/// `sqrt(k_head_dim)`, and value head `h` uses key head `h / (v_heads / k_heads)`. With decay `g` and `beta` per value
/// head, the state `S [k_head_dim, v_head_dim]` becomes `S' = e^g S + k (beta (v - k^T e^g S))` and the output is `q^T S'`.
#[derive(Clone, Debug)]
pub struct GatedDeltaSpec {
    /// Key heads; value heads are a multiple of them.
    pub num_k_heads: usize,
    /// f32 `[conv_channels, conv_taps]`, depthwise, oldest tap first.
    pub conv_weight: Tensor,
    /// Added under the root when q and k are brought to unit length.
    pub l2_eps: f32,
}

/// Refuses shapes that do not fit together.
pub(crate) fn check(inputs: &[&Tensor; 3], spec: &GatedDeltaSpec, layout: &StateLayout, plan: &Plan) -> Result<()> {
    let StateLayout { conv_channels, conv_taps, num_v_heads, k_head_dim, v_head_dim } = *layout;
    let tokens = plan.batch.num_tokens();
    for (name, tensor, width) in
        [("qkv", inputs[0], conv_channels), ("beta", inputs[1], num_v_heads), ("decay", inputs[2], num_v_heads)]
    {
        if tensor.dims() != [tokens, width] {
            bail!("{name} is {:?}, expected [{tokens}, {width}]", tensor.dims());
        }
    }
    if spec.num_k_heads == 0 || !num_v_heads.is_multiple_of(spec.num_k_heads) {
        bail!("{num_v_heads} value heads are not a multiple of {} key heads", spec.num_k_heads);
    }
    let channels = 2 * spec.num_k_heads * k_head_dim + num_v_heads * v_head_dim;
    if channels != conv_channels || conv_taps == 0 || spec.conv_weight.dims() != [conv_channels, conv_taps] {
        bail!("q, k, v need {channels} channels; {layout:?}, conv_weight {:?}", spec.conv_weight.dims());
    }
    if plan.batch.states.len() != plan.batch.num_sequences() {
        bail!("{} state steps for {} sequences", plan.batch.states.len(), plan.batch.num_sequences());
    }
    Ok(())
}

pub(crate) fn gated_delta(
    inputs: &[&Tensor; 3],
    spec: &GatedDeltaSpec,
    cache: &StateCache,
    plan: &Plan,
) -> Result<Tensor> {
    check(inputs, spec, &cache.layout, plan)?;
    // All sources are read before any slot is written: one sequence's target may be another's source.
    let mut states = Vec::with_capacity(plan.batch.states.len());
    for step in &plan.batch.states {
        states.push(match step.source {
            // A sum makes a copy, where a narrow would be a view of the slot.
            Some(slot) => (
                (cache.conv.narrow(0, slot as usize, 1)?.squeeze(0)? + 0.)?,
                (cache.recurrent.narrow(0, slot as usize, 1)?.squeeze(0)? + 0.)?,
            ),
            None => (cache.conv.narrow(0, 0, 1)?.squeeze(0)?.zeros_like()?, zeros(cache)?),
        });
    }
    let mut outputs = Vec::with_capacity(plan.batch.num_tokens());
    for (s, (conv, mut recurrent)) in states.into_iter().enumerate() {
        let range = plan.batch.query_range(s);
        let step = &plan.batch.states[s];
        let rows = |x: &Tensor| x.narrow(0, range.start, range.len())?.contiguous();
        // [taps - 1 + tokens, channels]: token t convolves rows t .. t + taps.
        let dtype = inputs[0].dtype();
        let history = Tensor::cat(&[conv.to_dtype(dtype)?, rows(inputs[0])?], 0)?;
        recurrent = recurrent.to_dtype(dtype)?;
        let (beta, decay) = (rows(inputs[1])?, rows(inputs[2])?.exp()?);
        let save = |consumed: usize, slot: u32, recurrent: &Tensor| -> Result<()> {
            let last = history.narrow(0, consumed, cache.layout.conv_taps - 1)?.unsqueeze(0)?.contiguous()?;
            let (last, recurrent) = (last.to_dtype(cache.conv.dtype())?, recurrent.to_dtype(cache.recurrent.dtype())?);
            cache.conv.slice_set(&last, 0, slot as usize)?;
            cache.recurrent.slice_set(&recurrent.unsqueeze(0)?.contiguous()?, 0, slot as usize)
        };
        for t in 0..range.len() {
            let (q, k, v) = convolved_token(&history, t, spec, &cache.layout)?;
            let per_head = |x: &Tensor| x.narrow(0, t, 1)?.reshape(((), 1, 1));
            let decayed = recurrent.broadcast_mul(&per_head(&decay)?)?;
            let remembered = k.unsqueeze(1)?.matmul(&decayed)?;
            let delta = (v.unsqueeze(1)? - remembered)?.broadcast_mul(&per_head(&beta)?)?;
            recurrent = (decayed + k.unsqueeze(2)?.matmul(&delta)?)?;
            outputs.push(q.unsqueeze(1)?.matmul(&recurrent)?.reshape((1, ()))?);
            for &(_, slot) in step.snapshots.iter().filter(|(consumed, _)| *consumed as usize == t + 1) {
                save(t + 1, slot, &recurrent)?;
            }
        }
        save(range.len(), step.target, &recurrent)?;
    }
    Tensor::cat(&outputs, 0)
}

fn zeros(cache: &StateCache) -> Result<Tensor> {
    let StateLayout { num_v_heads, k_head_dim, v_head_dim, .. } = cache.layout;
    Tensor::zeros((num_v_heads, k_head_dim, v_head_dim), DType::F32, cache.recurrent.device())
}

/// q, k `[v_heads, k_head_dim]` and v `[v_heads, v_head_dim]` of token `t`.
fn convolved_token(
    history: &Tensor,
    t: usize,
    spec: &GatedDeltaSpec,
    layout: &StateLayout,
) -> Result<(Tensor, Tensor, Tensor)> {
    let StateLayout { conv_taps, num_v_heads, k_head_dim, v_head_dim, .. } = *layout;
    let mixed =
        (history.narrow(0, t, conv_taps)? * spec.conv_weight.t()?.to_dtype(history.dtype())?)?.sum(0)?.silu()?;
    let k_width = spec.num_k_heads * k_head_dim;
    let unit = |start: usize| -> Result<Tensor> {
        let x = mixed.narrow(0, start, k_width)?.reshape((spec.num_k_heads, 1, k_head_dim))?;
        let norm = (x.sqr()?.sum_keepdim(D::Minus1)? + f64::from(spec.l2_eps))?.sqrt()?;
        let repeats = num_v_heads / spec.num_k_heads;
        let x = x.broadcast_div(&norm)?.expand((spec.num_k_heads, repeats, k_head_dim))?;
        x.contiguous()?.reshape((num_v_heads, k_head_dim))
    };
    let q = (unit(0)? / (k_head_dim as f64).sqrt())?;
    let v = mixed.narrow(0, 2 * k_width, num_v_heads * v_head_dim)?.reshape((num_v_heads, v_head_dim))?;
    Ok((q, unit(k_width)?, v))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::{GatedDeltaSpec, gated_delta};
    use crate::{ForwardBatch, Plan, StateCache, StateLayout, StateStep};

    const LAYOUT: StateLayout =
        StateLayout { conv_channels: 4, conv_taps: 2, num_v_heads: 1, k_head_dim: 1, v_head_dim: 2 };

    fn plan(lens: &[usize], states: Vec<StateStep>) -> Plan {
        let mut query_start = vec![0];
        query_start.extend(lens.iter().scan(0, |sum, len| {
            *sum += *len as u32;
            Some(*sum)
        }));
        let token_ids = vec![0; lens.iter().sum()];
        let context_lens = lens.iter().map(|&len| len as u32).collect();
        let batch = ForwardBatch { token_ids, query_start, context_lens, states, ..ForwardBatch::default() };
        Plan::new(batch, vec![])
    }

    fn step(source: Option<u32>, target: u32, snapshots: &[(u32, u32)]) -> StateStep {
        StateStep { source, target, snapshots: snapshots.to_vec() }
    }

    fn spec() -> GatedDeltaSpec {
        // The current row counts whole, the one before it half.
        let conv_weight = Tensor::new(&[[0.5f32, 1.]; 4], &Device::Cpu).unwrap();
        GatedDeltaSpec { num_k_heads: 1, conv_weight, l2_eps: 0. }
    }

    fn run(rows: &[[f32; 4]], cache: &StateCache, plan: &Plan) -> Vec<Vec<f32>> {
        let qkv = Tensor::from_vec(rows.concat(), (rows.len(), 4), &Device::Cpu).unwrap();
        let beta = Tensor::from_vec(vec![0.5f32; rows.len()], (rows.len(), 1), &Device::Cpu).unwrap();
        let decay = Tensor::from_vec(vec![0.5f32.ln(); rows.len()], (rows.len(), 1), &Device::Cpu).unwrap();
        gated_delta(&[&qkv, &beta, &decay], &spec(), cache, plan).unwrap().to_vec2::<f32>().unwrap()
    }

    const ROWS: [[f32; 4]; 3] = [[1., 2., 3., -4.], [2., 1., 0.5, 1.], [1., -3., 1., 2.]];

    #[test]
    fn two_tokens_by_hand() {
        let cache = StateCache::new(LAYOUT, 4, &Device::Cpu).unwrap();
        let out = run(&ROWS[..2], &cache, &plan(&[2], vec![step(None, 1, &[(1, 2)])]));
        let silu = |x: f32| x / (1. + (-x).exp());
        // Heads of one element normalise to 1, so the state is v-like: S <- S/2 + (v - S/2)/2 = S/4 + v/2.
        let first = [silu(3.) / 2., silu(-4.) / 2.];
        let second = [first[0] / 4. + silu(2.) / 2., first[1] / 4. + silu(-1.) / 2.];
        for (row, expected) in out.iter().zip([first, second]) {
            assert!(row.iter().zip(expected).all(|(a, e)| (a - e).abs() < 1e-6), "{row:?} is not {expected:?}");
        }
        let recurrent = cache.recurrent.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!((recurrent[2] - second[0]).abs() < 1e-6 && (recurrent[4] - first[0]).abs() < 1e-6);
        let conv = cache.conv.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(conv, [[0.; 4], ROWS[1], ROWS[0], [0.; 4]].concat());
    }

    #[test]
    fn steps_continue_where_the_source_stopped() {
        let whole = StateCache::new(LAYOUT, 1, &Device::Cpu).unwrap();
        let expected = run(&ROWS, &whole, &plan(&[3], vec![step(None, 0, &[])]));
        let cache = StateCache::new(LAYOUT, 3, &Device::Cpu).unwrap();
        run(&ROWS[..1], &cache, &plan(&[1], vec![step(None, 0, &[])]));
        // The second sequence starts from the slot the first one overwrites.
        let rows = [ROWS[1], ROWS[1], ROWS[2]];
        let out = run(&rows, &cache, &plan(&[1, 2], vec![step(Some(0), 0, &[]), step(Some(0), 1, &[])]));
        assert_eq!(out, [expected[1].clone(), expected[1].clone(), expected[2].clone()]);
        let out = run(&ROWS[2..], &cache, &plan(&[1], vec![step(Some(0), 2, &[])]));
        assert_eq!(out[0], expected[2]);
    }
}
