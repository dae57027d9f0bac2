//! Paged causal attention and the write of keys and values, in plain candle.

use std::ops::Range;

use candle_core::{D, DType, Result, Tensor, bail};

use crate::{BLOCK_SIZE, KvCache, Plan};

/// What one attention layer computes; sizes of keys and values come from the cache's layout.
#[derive(Clone, Debug)]
pub struct AttentionSpec {
    /// Query heads; a multiple of the cache's heads. Query head `h` reads cache head `h / (heads / kv_heads)`.
    pub num_heads: usize,
    /// Elements of a value head (also when values are the head of the keys).
    pub v_head_dim: usize,
    /// Factor on `q . k`.
    pub scale: f32,
    /// A token sees itself and the `window - 1` before it (and what `ForwardBatch::reach` adds after it).
    pub window: Option<usize>,
    /// `cap * tanh(score / cap)` of the scaled score (arXiv 2408.00118).
    pub softcap: Option<f32>,
    /// f32 `[num_heads]`: one extra logit per head in the softmax denominator (gpt-oss), neither scaled nor capped.
    pub sinks: Option<Tensor>,
}

pub(super) fn write_kv(k: &Tensor, v: Option<&Tensor>, cache: &KvCache, plan: &Plan) -> Result<()> {
    let layout = &cache.layout;
    let (heads, dim, v_dim) = (layout.num_kv_heads, layout.head_dim, layout.v_head_dim);
    // K is transposed within its block: element (head, d) of a token lies BLOCK_SIZE apart from its neighbour.
    scatter_tokens(k, &cache.k, heads * dim, plan, |block, offset, i| (block * heads * dim + i) * BLOCK_SIZE + offset)?;
    match (v, &cache.v) {
        (Some(v), Some(cache_v)) => scatter_tokens(v, cache_v, heads * v_dim, plan, |block, offset, i| {
            ((block * heads + i / v_dim) * BLOCK_SIZE + offset) * v_dim + i % v_dim
        }),
        (None, None) => Ok(()),
        (v, _) => bail!("values given: {}, values cached: {}", v.is_some(), cache.v.is_some()),
    }
}

/// Writes rows of `x [tokens, width]` into `cache`; `index(block, offset in block, element of row)` says where.
fn scatter_tokens(
    x: &Tensor,
    cache: &Tensor,
    width: usize,
    plan: &Plan,
    index: impl Fn(usize, usize, usize) -> usize,
) -> Result<()> {
    let slots = &plan.batch.slot_mapping;
    if x.dims() != [slots.len(), width] {
        bail!("rows to cache are {:?}, expected [{}, {width}]", x.dims(), slots.len());
    }
    let mut indices = Vec::with_capacity(slots.len() * width);
    for &slot in slots {
        let (block, offset) = (slot as usize / BLOCK_SIZE, slot as usize % BLOCK_SIZE);
        indices.extend((0..width).map(|i| index(block, offset, i) as i64));
    }
    let indices = Tensor::from_vec(indices, slots.len() * width, x.device())?;
    let values = x.flatten_all()?.to_dtype(cache.dtype())?.contiguous()?;
    // A flat view of a contiguous tensor shares its storage.
    cache.flatten_all()?.scatter_set(&indices, &values, 0)
}

pub(super) fn attention(q: &Tensor, spec: &AttentionSpec, cache: &KvCache, plan: &Plan) -> Result<Tensor> {
    let layout = &cache.layout;
    let (heads, kv_heads, dim) = (spec.num_heads, layout.num_kv_heads, layout.head_dim);
    check(q, spec, cache, plan)?;
    let mut outputs = Vec::with_capacity(plan.batch.num_sequences());
    for s in 0..plan.batch.num_sequences() {
        let range = plan.batch.query_range(s);
        let (tokens, context) = (range.len(), plan.batch.context_lens[s] as usize);
        let (k, v) = gather(cache, &plan.batch.block_tables[s], context, (spec.v_head_dim, q.dtype()))?;
        // [kv_heads, group * tokens, dim]: the heads that share a key, one below the other.
        let q = q.narrow(0, range.start, tokens)?.reshape((tokens, kv_heads, heads / kv_heads, dim))?;
        let q = q.permute((1, 2, 0, 3))?.reshape((kv_heads, heads / kv_heads * tokens, dim))?;
        let mut scores = (q.matmul(&k)? * f64::from(spec.scale))?;
        if let Some(cap) = spec.softcap {
            scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        let mask = causal_mask(plan, range, context, spec.window);
        let scores = masked(&scores.reshape((heads, tokens, context))?, mask)?;
        let weights = softmax_with_sink(&scores, spec.sinks.as_ref())?;
        let out = weights.reshape((kv_heads, heads / kv_heads * tokens, context))?.matmul(&v)?;
        let out = out.reshape((heads, tokens, spec.v_head_dim))?.transpose(0, 1)?;
        outputs.push(out.reshape((tokens, heads * spec.v_head_dim))?);
    }
    Tensor::cat(&outputs, 0)
}

/// Refuses shapes that do not fit together.
pub(crate) fn check(q: &Tensor, spec: &AttentionSpec, cache: &KvCache, plan: &Plan) -> Result<()> {
    let layout = &cache.layout;
    if layout.num_kv_heads == 0 || !spec.num_heads.is_multiple_of(layout.num_kv_heads) {
        bail!("{} query heads are not a multiple of {} cached heads", spec.num_heads, layout.num_kv_heads);
    }
    let expected = [plan.batch.num_tokens(), spec.num_heads * layout.head_dim];
    if q.dims() != expected {
        bail!("queries are {:?}, expected {expected:?}", q.dims());
    }
    let fits =
        if cache.v.is_some() { spec.v_head_dim == layout.v_head_dim } else { spec.v_head_dim <= layout.head_dim };
    if !fits {
        bail!("v_head_dim {} does not fit the cache {layout:?}", spec.v_head_dim);
    }
    if spec.window == Some(0) {
        bail!("window 0: a token must see itself");
    }
    Ok(())
}

/// Keys `[kv_heads, dim, context]` and values `[kv_heads, context, v_dim]` of one sequence.
fn gather(cache: &KvCache, table: &[u32], context: usize, (v_dim, dtype): (usize, DType)) -> Result<(Tensor, Tensor)> {
    let (heads, dim) = (cache.layout.num_kv_heads, cache.layout.head_dim);
    let blocks = context.div_ceil(BLOCK_SIZE);
    let table = Tensor::from_vec(table[..blocks].to_vec(), blocks, cache.k.device())?;
    let k = cache.k.index_select(&table, 0)?.to_dtype(dtype)?.permute((1, 2, 0, 3))?;
    let k = k.reshape((heads, dim, blocks * BLOCK_SIZE))?.narrow(2, 0, context)?.contiguous()?;
    let v = match &cache.v {
        Some(v) => {
            let v = v.index_select(&table, 0)?.to_dtype(dtype)?.transpose(0, 1)?;
            v.reshape((heads, blocks * BLOCK_SIZE, v_dim))?.narrow(1, 0, context)?
        }
        None => k.narrow(1, 0, v_dim)?.transpose(1, 2)?,
    };
    Ok((k, v.contiguous()?))
}

/// `[tokens, context]`: 0 where the token sees the key, minus infinity elsewhere.
fn causal_mask(plan: &Plan, tokens: Range<usize>, context: usize, window: Option<usize>) -> Vec<f32> {
    let mut mask = Vec::with_capacity(tokens.len() * context);
    for token in tokens {
        let (position, last) = (plan.batch.positions[token] as usize, plan.batch.last_seen(token) as usize);
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
        mask.extend((0..context).map(|key| if (first..=last).contains(&key) { 0. } else { f32::NEG_INFINITY }));
    }
    mask
}

/// `scores [heads, tokens, context]` with `mask [tokens, context]` added.
pub(super) fn masked(scores: &Tensor, mask: Vec<f32>) -> Result<Tensor> {
    let (_, tokens, context) = scores.dims3()?;
    scores.broadcast_add(&Tensor::from_vec(mask, (1, tokens, context), scores.device())?.to_dtype(scores.dtype())?)
}

/// Softmax over the last dimension of `[heads, tokens, context]`; a sink takes part in the maximum and the sum only.
pub(super) fn softmax_with_sink(scores: &Tensor, sinks: Option<&Tensor>) -> Result<Tensor> {
    let (heads, tokens, context) = scores.dims3()?;
    let all = match sinks {
        Some(sinks) => {
            let sinks = sinks.to_dtype(scores.dtype())?.reshape((heads, 1, 1))?.expand((heads, tokens, 1))?;
            Tensor::cat(&[scores, &sinks], 2)?
        }
        None => scores.clone(),
    };
    let exp = all.broadcast_sub(&all.max_keepdim(D::Minus1)?)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?.narrow(2, 0, context)?.contiguous()
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::{AttentionSpec, attention, write_kv};
    use crate::{BLOCK_SIZE, ForwardBatch, KvCache, KvLayout, Plan};

    /// Two sequences: one of 18 tokens in blocks 2 and 0, one of a single token in block 1.
    fn plan() -> Plan {
        let slot = |t: u32| if t < 16 { 2 * BLOCK_SIZE as u32 + t } else { t - 16 };
        let batch = ForwardBatch {
            token_ids: vec![0; 19],
            positions: (0..18).chain([0]).collect(),
            slot_mapping: (0..18).map(slot).chain([BLOCK_SIZE as u32]).collect(),
            query_start: vec![0, 18, 19],
            context_lens: vec![18, 1],
            block_tables: vec![vec![2, 0], vec![1]],
            ..ForwardBatch::default()
        };
        batch.check(3).unwrap();
        Plan::new(batch, vec![])
    }

    fn cache(v_head_dim: usize, dtype: DType) -> KvCache {
        KvCache::new(KvLayout { num_kv_heads: 1, head_dim: 2, v_head_dim, dtype }, 3, &Device::Cpu).unwrap()
    }

    /// Row `t` of a `[19, 2]` tensor is `f(t)`.
    fn rows(f: impl Fn(usize) -> [f32; 2]) -> Tensor {
        Tensor::from_vec((0..19).flat_map(f).collect::<Vec<_>>(), (19, 2), &Device::Cpu).unwrap()
    }

    fn spec() -> AttentionSpec {
        AttentionSpec { num_heads: 1, v_head_dim: 2, scale: 1., window: None, softcap: None, sinks: None }
    }

    #[test]
    fn keys_are_transposed_within_their_block() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let (cache, plan) = (cache(2, dtype), plan());
            write_kv(&rows(|t| [t as f32, -(t as f32)]), Some(&rows(|t| [t as f32, 100.])), &cache, &plan).unwrap();
            let k = cache.k.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let v = cache.v.unwrap().to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            // Token 5 is in block 2 at offset 5, token 17 in block 0 at offset 1, token 18 in block 1 at offset 0.
            assert_eq!((k[64 + 5], k[64 + 16 + 5], k[1], k[16 + 1]), (5., -5., 17., -17.));
            assert_eq!((k[32], k[32 + 16], k[33]), (18., -18., 0.));
            assert_eq!((v[64 + 10], v[64 + 11], v[2], v[3], v[32], v[34]), (5., 100., 17., 100., 18., 0.));
        }
    }

    #[test]
    fn equal_keys_average_what_is_seen() {
        let (cache, plan) = (cache(2, DType::F32), plan());
        write_kv(&rows(|_| [1., 0.]), Some(&rows(|t| [t as f32, 1.])), &cache, &plan).unwrap();
        let q = rows(|_| [1., 1.]);
        let out = attention(&q, &spec(), &cache, &plan).unwrap().to_vec2::<f32>().unwrap();
        for (t, row) in out.iter().take(18).enumerate() {
            assert!((row[0] - t as f32 / 2.).abs() < 1e-5, "token {t}: {row:?}");
        }
        assert_eq!(out[18], [18., 1.]);
        let windowed = AttentionSpec { window: Some(3), ..spec() };
        let out = attention(&q, &windowed, &cache, &plan).unwrap().to_vec2::<f32>().unwrap();
        assert!((out[1][0] - 0.5).abs() < 1e-5 && (out[17][0] - 16.).abs() < 1e-5);
        // A sink as large as every score is one more key without a value.
        let sinks = Some(Tensor::new(&[1f32], &Device::Cpu).unwrap());
        let out = attention(&q, &AttentionSpec { sinks, ..spec() }, &cache, &plan).unwrap().to_vec2::<f32>().unwrap();
        assert!((out[0][1] - 0.5).abs() < 1e-6 && (out[9][1] - 10. / 11.).abs() < 1e-6);
    }

    #[test]
    fn a_reach_shows_later_tokens_of_the_same_sequence() {
        let (cache, mut plan) = (cache(2, DType::F32), plan());
        write_kv(&rows(|_| [1., 0.]), Some(&rows(|t| [t as f32, 1.])), &cache, &plan).unwrap();
        plan.batch.reach = (0..18).map(|t| if (4..8).contains(&t) { 7 } else { t }).chain([0]).collect();
        plan.batch.check(3).unwrap();
        let seen = |window| {
            let spec = AttentionSpec { window, ..spec() };
            attention(&rows(|_| [1., 1.]), &spec, &cache, &plan).unwrap().to_vec2::<f32>().unwrap()
        };
        let (all, near) = (seen(None), seen(Some(3)));
        for (t, expected) in [(3, 1.5), (4, 3.5), (7, 3.5), (8, 4.)] {
            assert!((all[t][0] - expected).abs() < 1e-5, "token {t}: {:?}", all[t]);
        }
        for (t, expected) in [(3, 2.), (4, 4.5), (7, 6.), (8, 7.)] {
            assert!((near[t][0] - expected).abs() < 1e-5, "token {t}: {:?}", near[t]);
        }
        plan.batch.reach[2] = 18;
        assert!(plan.batch.check(3).is_err());
    }

    #[test]
    fn scores_are_scaled_then_capped() {
        let (cache, plan) = (cache(0, DType::F32), plan());
        write_kv(&rows(|t| [t as f32, 7.]), None, &cache, &plan).unwrap();
        let spec = AttentionSpec { v_head_dim: 1, scale: 0.5, softcap: Some(2.), ..spec() };
        let out = attention(&rows(|_| [1., 0.]), &spec, &cache, &plan).unwrap().to_vec2::<f32>().unwrap();
        // Token 1 sees scores 0 and 2 tanh(0.25); its values are the first element of the keys, 0 and 1.
        let e = (2. * 0.25f32.tanh()).exp();
        assert!((out[1][0] - e / (1. + e)).abs() < 1e-6);
        assert!(write_kv(&rows(|_| [0.; 2]), Some(&rows(|_| [0.; 2])), &cache, &plan).is_err());
    }

    #[test]
    fn query_heads_share_the_keys_of_their_group() {
        let layout = KvLayout { num_kv_heads: 2, head_dim: 1, v_head_dim: 1, dtype: DType::F32 };
        let cache = KvCache::new(layout, 3, &Device::Cpu).unwrap();
        let plan = plan();
        let v = rows(|t| [t as f32, 100.]);
        write_kv(&rows(|_| [0., 0.]), Some(&v), &cache, &plan).unwrap();
        let q = Tensor::zeros((19, 4), DType::F32, &Device::Cpu).unwrap();
        let spec = AttentionSpec { num_heads: 4, v_head_dim: 1, ..spec() };
        let out = attention(&q, &spec, &cache, &plan).unwrap().to_vec2::<f32>().unwrap();
        for (value, expected) in out[2].iter().zip([1., 1., 100., 100.]) {
            assert!((value - expected).abs() < 1e-4, "{:?}", out[2]);
        }
    }
}
