//! Linear layers over dense f32 weights, in plain candle.

use candle_core::{D, DType, Device, Result, Tensor, bail};

use crate::linear::{Packed, Part};
use crate::{Linear, Weight};

/// Input and output features of weights that are to be stacked; checks that they and the bias fit together.
pub(crate) fn stacked_shape(weights: &[Weight], bias: Option<&Tensor>) -> Result<(usize, usize)> {
    let Some(first) = weights.first() else { bail!("a linear layer needs at least one weight") };
    let in_features = first.cols();
    if in_features == 0 {
        bail!("a linear layer needs input features");
    }
    if let Some(other) = weights.iter().find(|weight| weight.cols() != in_features) {
        bail!("stacked weights differ in input features: {in_features} and {}", other.cols());
    }
    let out_features = weights.iter().map(Weight::rows).sum();
    if let Some(bias) = bias
        && (bias.dims() != [out_features] || bias.dtype() != DType::F32)
    {
        bail!("bias must be f32 [{out_features}], is {:?} {:?}", bias.dtype(), bias.dims());
    }
    Ok((in_features, out_features))
}

/// `dtype` is that of the products.
pub(super) fn pack(weights: &[Weight], bias: Option<Tensor>, device: &Device, dtype: DType) -> Result<Linear> {
    let (in_features, out_features) = stacked_shape(weights, bias.as_ref())?;
    let parts = weights
        .iter()
        .map(|weight| {
            let dense = Tensor::from_vec(weight.to_f32()?, (weight.rows(), in_features), device)?.to_dtype(dtype)?;
            Ok(Part { packed: Packed::Dense(dense) })
        })
        .collect::<Result<_>>()?;
    let bias = bias.map(|bias| bias.to_dtype(dtype)).transpose()?;
    Ok(Linear { in_features, out_features, parts, bias })
}

pub(super) fn linear(x: &Tensor, layer: &Linear) -> Result<Tensor> {
    let outputs = layer.parts.iter().map(|part| x.matmul(&part.dense()?.t()?)).collect::<Result<Vec<_>>>()?;
    let y = Tensor::cat(&outputs, D::Minus1)?;
    match &layer.bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

pub(super) fn most_likely(y: &Tensor) -> Result<Vec<Option<u32>>> {
    let rows = y.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    Ok(rows.iter().map(|row| super::sample::best(row).map(|(column, _)| column)).collect())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::{linear, pack};
    use crate::{Weight, WeightKind};

    fn weight(rows: usize, cols: usize, values: &[f32]) -> Weight {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Weight::new(WeightKind::F32, rows, cols, bytes.into()).unwrap()
    }

    #[test]
    fn stacks_outputs_and_adds_the_bias() {
        let weights = [weight(1, 2, &[1., 2.]), weight(2, 2, &[3., 4., 5., 6.])];
        let bias = Tensor::new(&[0.5f32, 0., -1.], &Device::Cpu).unwrap();
        let layer = pack(&weights, Some(bias), &Device::Cpu, DType::F32).unwrap();
        let x = Tensor::new(&[[1f32, 10.], [2., 0.]], &Device::Cpu).unwrap();
        let y = linear(&x, &layer).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(y, [[21.5, 43., 64.], [2.5, 6., 9.]]);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let (a, b) = (weight(1, 2, &[1., 2.]), weight(1, 1, &[1.]));
        assert!(pack(&[a.clone(), b], None, &Device::Cpu, DType::F32).is_err());
        assert!(pack(&[], None, &Device::Cpu, DType::F32).is_err());
        let bias = Tensor::new(&[1f32, 2.], &Device::Cpu).unwrap();
        assert!(pack(&[a], Some(bias), &Device::Cpu, DType::F32).is_err());
    }
}
