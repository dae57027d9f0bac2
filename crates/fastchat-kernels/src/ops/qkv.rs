//! From a fused qkv projection to rotated queries and keys (arXiv 2104.09864), in plain candle.

use candle_core::{D, Device, Result, Tensor, bail};

use super::NormScope;
use super::norm::rms_norm;
use crate::{ForwardBatch, Plan};

/// Which elements of a head form a rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// Element `i` with `i + rotary_dim / 2`.
    HalfSplit,
    /// Element `2 i` with `2 i + 1`.
    Interleaved,
}

/// A resolved rope table: all scaling kinds end as frequencies and a factor.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Index into `Plan::rope`.
    pub index: usize,
    /// Pairing.
    pub layout: RopeLayout,
    /// `[rotary_dim / 2]` angle per position.
    pub inv_freq: Vec<f32>,
    /// Axis of `ForwardBatch::rope_positions` by which each pair turns `[rotary_dim / 2]`; empty: the first.
    pub axes: Vec<u8>,
    /// Factor on cos and sin (yarn, longrope), 1 otherwise.
    pub attention_factor: f32,
}

impl Rope {
    /// Elements of a head that are rotated.
    pub fn rotary_dim(&self) -> usize {
        2 * self.inv_freq.len()
    }
}

/// What happens between the qkv projection and attention.
#[derive(Clone, Debug)]
pub struct QkvSpec {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// (q weight, k weight, eps, scope): root mean square norm of q and k before the rotation.
    pub qk_norm: Option<(Tensor, Tensor, f32, NormScope)>,
    /// Rotation of the first `rotary_dim` elements of each head; `None` for layers without positions.
    pub rope: Option<Rope>,
}

pub(crate) fn plan(batch: &ForwardBatch, ropes: &[Rope], device: &Device) -> Result<Plan> {
    let mut tables = Vec::with_capacity(ropes.len());
    for (i, rope) in ropes.iter().enumerate() {
        if rope.index != i {
            bail!("ropes[{i}] has index {}: the tables must be given in the order of their indices", rope.index);
        }
        if ![0, rope.inv_freq.len()].contains(&rope.axes.len()) || rope.axes.iter().any(|&axis| axis > 2) {
            bail!("ropes[{i}] has axes {:?}, expected one of 0 to 2 for each pair", rope.axes);
        }
        if ![0, batch.positions.len()].contains(&batch.rope_positions.len()) {
            bail!("{} rope positions for {} tokens", batch.rope_positions.len(), batch.positions.len());
        }
        let (cos, sin) = rope_table(batch, rope);
        let shape = (batch.positions.len(), rope.inv_freq.len());
        tables.push((Tensor::from_vec(cos, shape, device)?, Tensor::from_vec(sin, shape, device)?));
    }
    Ok(Plan::new(batch.clone(), tables))
}

/// cos and sin `[tokens, rotary_dim / 2]` of one rope. The angle is one f32 product, as in Hugging Face's models.
fn rope_table(batch: &ForwardBatch, rope: &Rope) -> (Vec<f32>, Vec<f32>) {
    let axis = |pair: usize| rope.axes.get(pair).copied().unwrap_or(0) as usize;
    let on_axes = |t: usize| batch.rope_positions.get(t).copied().unwrap_or([batch.positions[t]; 3]);
    let angles = (0..batch.positions.len()).flat_map(|t| {
        let position = on_axes(t);
        rope.inv_freq.iter().enumerate().map(move |(pair, f)| position[axis(pair)] as f32 * f)
    });
    angles.map(|angle| (angle.cos() * rope.attention_factor, angle.sin() * rope.attention_factor)).unzip()
}

pub(super) fn rope(x: &Tensor, head_dim: usize, rope: &Rope, tail: bool, plan: &Plan) -> Result<Tensor> {
    let (tokens, width) = x.dims2()?;
    let half = rope.inv_freq.len();
    let rest = match head_dim.checked_sub(2 * half) {
        Some(rest) if width.is_multiple_of(head_dim) => rest,
        _ => bail!("rope of {} elements does not fit rows of {width} with heads of {head_dim}", 2 * half),
    };
    let Some((cos, sin)) = plan.rope.get(rope.index) else {
        bail!("rope index {} but the plan has {} tables", rope.index, plan.rope.len());
    };
    // [tokens, 1, half] against [tokens, heads, half].
    let across_heads = |table: &Tensor| table.to_dtype(x.dtype())?.unsqueeze(1);
    let (cos, sin) = (across_heads(cos)?, across_heads(sin)?);
    let x = x.reshape((tokens, width / head_dim, head_dim))?;
    let start = if tail { rest } else { 0 };
    let rotated = x.narrow(2, start, 2 * half)?;
    let turn = |a: &Tensor, b: &Tensor| -> Result<(Tensor, Tensor)> {
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Ok((first, second))
    };
    let rotated = match rope.layout {
        RopeLayout::HalfSplit => {
            let (a, b) = turn(&rotated.narrow(2, 0, half)?, &rotated.narrow(2, half, half)?)?;
            Tensor::cat(&[a, b], 2)?
        }
        RopeLayout::Interleaved => {
            let pairs = rotated.reshape((tokens, width / head_dim, half, 2))?;
            let (a, b) = turn(&pairs.narrow(3, 0, 1)?.squeeze(3)?, &pairs.narrow(3, 1, 1)?.squeeze(3)?)?;
            Tensor::stack(&[a, b], 3)?.flatten(2, 3)?
        }
    };
    let whole = match (rest, tail) {
        (0, _) => rotated,
        (_, true) => Tensor::cat(&[x.narrow(2, 0, rest)?, rotated], 2)?,
        (_, false) => Tensor::cat(&[rotated, x.narrow(2, 2 * half, rest)?], 2)?,
    };
    whole.reshape((tokens, width))
}

/// q `[tokens, heads * head_dim]`, k and v `[tokens, kv_heads * head_dim]`, q and k normed and rotated.
pub(super) fn qk_norm_rope(qkv: &Tensor, spec: &QkvSpec, plan: &Plan) -> Result<(Tensor, Tensor, Tensor)> {
    let (q_width, kv_width) = (spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim);
    if qkv.dim(D::Minus1)? != q_width + 2 * kv_width {
        bail!("qkv rows of {}, expected {q_width} + 2 * {kv_width}", qkv.dim(D::Minus1)?);
    }
    let mut q = qkv.narrow(1, 0, q_width)?.contiguous()?;
    let mut k = qkv.narrow(1, q_width, kv_width)?.contiguous()?;
    let v = qkv.narrow(1, q_width + kv_width, kv_width)?.contiguous()?;
    if let Some((q_weight, k_weight, eps, scope)) = &spec.qk_norm {
        q = scoped_norm(&q, q_weight, *eps, *scope, spec.head_dim)?;
        k = scoped_norm(&k, k_weight, *eps, *scope, spec.head_dim)?;
    }
    if let Some(table) = &spec.rope {
        q = rope(&q, spec.head_dim, table, false, plan)?;
        k = rope(&k, spec.head_dim, table, false, plan)?;
    }
    Ok((q, k, v))
}

fn scoped_norm(x: &Tensor, weight: &Tensor, eps: f32, scope: NormScope, head_dim: usize) -> Result<Tensor> {
    match scope {
        NormScope::FullWidth => rms_norm(x, weight, eps),
        NormScope::PerHead => {
            let (tokens, width) = x.dims2()?;
            let heads = x.reshape((tokens, width / head_dim, head_dim))?;
            rms_norm(&heads, weight, eps)?.reshape((tokens, width))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::f32::consts::FRAC_PI_2;

    use candle_core::{Device, Tensor};

    use super::{NormScope, QkvSpec, Rope, RopeLayout, plan, qk_norm_rope, rope};
    use crate::ForwardBatch;

    fn batch(positions: &[u32]) -> ForwardBatch {
        ForwardBatch { positions: positions.to_vec(), ..ForwardBatch::default() }
    }

    fn table(layout: RopeLayout, inv_freq: &[f32]) -> Rope {
        Rope { index: 0, layout, inv_freq: inv_freq.to_vec(), axes: Vec::new(), attention_factor: 1. }
    }

    fn close(actual: &Tensor, expected: &[f32]) {
        let actual = actual.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() < 1e-5, "{actual:?} is not {expected:?}");
        }
    }

    #[test]
    fn tables_hold_scaled_cos_and_sin() {
        let mut rope = table(RopeLayout::HalfSplit, &[1., FRAC_PI_2]);
        rope.attention_factor = 2.;
        let plan = plan(&batch(&[0, 1, 2]), std::slice::from_ref(&rope), &Device::Cpu).unwrap();
        let (cos, sin) = &plan.rope[0];
        close(cos, &[2., 2., 2. * 1f32.cos(), 0., 2. * 2f32.cos(), -2.]);
        close(sin, &[0., 0., 2. * 1f32.sin(), 2., 2. * 2f32.sin(), 0.]);
    }

    #[test]
    fn pairs_turn_by_the_positions_of_their_axes() {
        let mut rope = table(RopeLayout::HalfSplit, &[1., 1., 0.5]);
        rope.axes = vec![0, 2, 1];
        let mut batch = batch(&[7, 8]);
        let plain = plan(&batch, std::slice::from_ref(&rope), &Device::Cpu).unwrap();
        close(&plain.rope[0].0, &[7f32.cos(), 7f32.cos(), 3.5f32.cos(), 8f32.cos(), 8f32.cos(), 4f32.cos()]);
        batch.rope_positions = vec![[3, 4, 5], [6, 8, 9]];
        let turned = plan(&batch, std::slice::from_ref(&rope), &Device::Cpu).unwrap();
        close(&turned.rope[0].1, &[3f32.sin(), 5f32.sin(), 2f32.sin(), 6f32.sin(), 9f32.sin(), 4f32.sin()]);
        batch.rope_positions.pop();
        assert!(plan(&batch, std::slice::from_ref(&rope), &Device::Cpu).is_err());
        rope.axes = vec![0, 3, 1];
        assert!(plan(&super::tests::batch(&[1]), &[rope], &Device::Cpu).is_err());
    }

    #[test]
    fn quarter_turns() {
        // Frequencies pi/2 and 0: at position 1 the first pair turns by 90 degrees, the second stays.
        let x = Tensor::new(&[[1f32, 2., 3., 4., 5.]], &Device::Cpu).unwrap();
        let half = table(RopeLayout::HalfSplit, &[FRAC_PI_2, 0.]);
        let inter = table(RopeLayout::Interleaved, &[FRAC_PI_2, 0.]);
        let plan = plan(&batch(&[1]), std::slice::from_ref(&half), &Device::Cpu).unwrap();
        close(&rope(&x, 5, &half, false, &plan).unwrap(), &[-3., 2., 1., 4., 5.]);
        close(&rope(&x, 5, &half, true, &plan).unwrap(), &[1., -4., 3., 2., 5.]);
        close(&rope(&x, 5, &inter, false, &plan).unwrap(), &[-2., 1., 3., 4., 5.]);
        close(&rope(&x, 5, &inter, true, &plan).unwrap(), &[1., -3., 2., 4., 5.]);
        assert!(rope(&x, 3, &half, false, &plan).is_err());
    }

    #[test]
    fn q_and_k_are_normed_before_the_turn_and_v_is_left() {
        let device = Device::Cpu;
        let rope = table(RopeLayout::HalfSplit, &[FRAC_PI_2]);
        let plan = plan(&batch(&[1]), std::slice::from_ref(&rope), &device).unwrap();
        let qkv = Tensor::new(&[[3f32, 4., 6., 8., 5., 12., 7., 9.]], &device).unwrap();
        let mut spec = QkvSpec { num_heads: 2, num_kv_heads: 1, head_dim: 2, qk_norm: None, rope: Some(rope) };
        let (q, k, v) = qk_norm_rope(&qkv, &spec, &plan).unwrap();
        close(&q, &[-4., 3., -8., 6.]);
        close(&k, &[-12., 5.]);
        close(&v, &[7., 9.]);

        let ones = Tensor::new(&[1f32, 1.], &device).unwrap();
        let twos = Tensor::new(&[2f32, 2.], &device).unwrap();
        spec.qk_norm = Some((ones.clone(), twos.clone(), 0., NormScope::PerHead));
        let (q, k, _) = qk_norm_rope(&qkv, &spec, &plan).unwrap();
        let (a, b) = (12.5f32.sqrt(), 84.5f32.sqrt());
        close(&q, &[-4. / a, 3. / a, -4. / a, 3. / a]);
        close(&k, &[-24. / b, 10. / b]);

        let wide = Tensor::new(&[1f32, 1., 1., 10.], &device).unwrap();
        spec.qk_norm = Some((wide, twos, 0., NormScope::FullWidth));
        let (q, _, _) = qk_norm_rope(&qkv, &spec, &plan).unwrap();
        let c = 31.25f32.sqrt();
        close(&q, &[-4. / c, 3. / c, -80. / c, 6. / c]);
    }
}
