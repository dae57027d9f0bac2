//! Attention in both directions over whole sequences, nothing cached, in plain candle.

use std::ops::Range;

use candle_core::{D, Result, Tensor, bail};

use super::attention::{AttentionSpec, masked, softmax_with_sink};
use super::qkv::{QkvSpec, qk_norm_rope};
use crate::Plan;

pub(crate) fn full_attention(
    qkv: &Tensor,
    parts: &QkvSpec,
    spec: &AttentionSpec,
    plan: &Plan,
    rows: &Range<usize>,
) -> Result<Tensor> {
    let (heads, kv_heads, dim) = (parts.num_heads, parts.num_kv_heads, parts.head_dim);
    if spec.num_heads != heads || spec.v_head_dim != dim || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        bail!("attention of {} heads of {} does not fit {parts:?}", spec.num_heads, spec.v_head_dim);
    }
    if spec.window == Some(0) {
        bail!("window 0: a token must see itself");
    }
    check_rows(plan, rows)?;
    let (q, k, v) = qk_norm_rope(qkv, parts, plan)?;
    let group = heads / kv_heads;
    let mut outputs = Vec::with_capacity(plan.batch.num_sequences());
    for s in 0..plan.batch.num_sequences() {
        let all = plan.batch.query_range(s);
        let asked = rows.start.max(all.start)..rows.end.min(all.end);
        if asked.is_empty() {
            continue;
        }
        let (tokens, own) = (all.len(), asked.len());
        // [tokens, heads * dim] to [heads, tokens, dim].
        let by_head = |x: &Tensor, range: &Range<usize>, heads: usize| {
            let tokens = range.len();
            x.narrow(0, range.start, tokens)?.reshape((tokens, heads, dim))?.transpose(0, 1)?.contiguous()
        };
        // [kv_heads, group * own, dim]: the heads that share a key, one below the other.
        let q = by_head(&q, &asked, heads)?.reshape((kv_heads, group * own, dim))?;
        let (k, v) = (by_head(&k, &all, kv_heads)?, by_head(&v, &all, kv_heads)?);
        let mut scores = (q.matmul(&k.transpose(1, 2)?)? * f64::from(spec.scale))?;
        if let Some(cap) = spec.softcap {
            scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        scores = scores.reshape((heads, own, tokens))?;
        if let Some(window) = spec.window.filter(|window| *window < tokens) {
            let mask = window_mask(asked.start - all.start..asked.end - all.start, tokens, window);
            scores = masked(&scores, mask)?;
        }
        if !plan.batch.reach.is_empty() {
            let mask = reach_mask(&plan.batch.reach[asked], tokens);
            scores = masked(&scores, mask)?;
        }
        let weights = softmax_with_sink(&scores, spec.sinks.as_ref())?;
        let out = weights.reshape((kv_heads, group * own, tokens))?.matmul(&v)?;
        outputs.push(out.reshape((heads, own, dim))?.transpose(0, 1)?.flatten_from(D::Minus2)?);
    }
    Tensor::cat(&outputs, 0)?.contiguous()
}

/// Refuses rows that the batch has not.
pub(crate) fn check_rows(plan: &Plan, rows: &Range<usize>) -> Result<()> {
    let tokens = plan.batch.num_tokens();
    if rows.is_empty() || rows.end > tokens {
        bail!("rows {rows:?} of {tokens} tokens");
    }
    Ok(())
}

/// 0 where a token of `asked` and one of all are less than `window` apart, else minus infinity.
fn window_mask(asked: Range<usize>, tokens: usize, window: usize) -> Vec<f32> {
    let seen = |i: usize, j: usize| if i.abs_diff(j) < window { 0. } else { f32::NEG_INFINITY };
    asked.flat_map(|i| (0..tokens).map(move |j| seen(i, j))).collect()
}

/// 0 up to the last token that a token sees, minus infinity after it.
fn reach_mask(reach: &[u32], tokens: usize) -> Vec<f32> {
    let keys = 0..tokens as u32;
    reach
        .iter()
        .flat_map(|last| keys.clone().map(move |key| if key <= *last { 0. } else { f32::NEG_INFINITY }))
        .collect()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::{AttentionSpec, QkvSpec, full_attention};
    use crate::{ForwardBatch, Plan};

    fn plan(lengths: &[u32]) -> Plan {
        let query_start = lengths.iter().scan(0, |sum, &length| {
            *sum += length;
            Some(*sum)
        });
        let batch = ForwardBatch {
            token_ids: vec![0; lengths.iter().sum::<u32>() as usize],
            query_start: std::iter::once(0).chain(query_start).collect(),
            context_lens: lengths.to_vec(),
            ..ForwardBatch::default()
        };
        Plan::new(batch, vec![])
    }

    /// One head of one element whose queries and keys are zero: every token gets the mean of the values it sees.
    fn means(lengths: &[u32], window: Option<usize>) -> Vec<f32> {
        let plan = plan(lengths);
        let tokens = plan.batch.num_tokens();
        let rows: Vec<f32> = (0..tokens).flat_map(|t| [0., 0., t as f32]).collect();
        let qkv = Tensor::from_vec(rows, (tokens, 3), &Device::Cpu).unwrap();
        let parts = QkvSpec { num_heads: 1, num_kv_heads: 1, head_dim: 1, qk_norm: None, rope: None };
        let spec = AttentionSpec { num_heads: 1, v_head_dim: 1, scale: 1., window, softcap: None, sinks: None };
        full_attention(&qkv, &parts, &spec, &plan, &(0..tokens)).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_token_sees_its_whole_sequence_and_no_other() {
        assert_eq!(means(&[3, 1, 2], None), [1., 1., 1., 3., 4.5, 4.5]);
    }

    #[test]
    fn a_window_reaches_to_both_sides() {
        assert_eq!(means(&[4], Some(2)), [0.5, 1., 2., 2.5]);
        assert_eq!(means(&[4], Some(1)), [0., 1., 2., 3.]);
        assert_eq!(means(&[4], Some(4)), means(&[4], None));
    }

    #[test]
    fn grouped_heads_read_their_own_keys() {
        let plan = plan(&[2]);
        // Two query heads on one key head: the first asks for the large key, the second for none.
        let qkv = Tensor::new(&[[100f32, 0., 1., 5.], [100., 0., 0., 7.]], &Device::Cpu).unwrap();
        let parts = QkvSpec { num_heads: 2, num_kv_heads: 1, head_dim: 1, qk_norm: None, rope: None };
        let spec = AttentionSpec { num_heads: 2, v_head_dim: 1, scale: 1., window: None, softcap: None, sinks: None };
        let out = full_attention(&qkv, &parts, &spec, &plan, &(0..2)).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(out, [[5., 6.], [5., 6.]]);
        let wrong = AttentionSpec { num_heads: 3, ..spec.clone() };
        assert!(full_attention(&qkv, &parts, &wrong, &plan, &(0..2)).is_err());
        for rows in [0..3, 1..1] {
            assert!(full_attention(&qkv, &parts, &spec, &plan, &rows).is_err(), "{rows:?}");
        }
    }
}
