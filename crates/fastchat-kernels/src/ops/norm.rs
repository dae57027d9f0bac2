//! Norms over the last dimension, in plain candle.

use candle_core::{D, Result, Tensor};

/// Over what q and k are normed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormScope {
    /// Each head by itself; weight `[head_dim]`.
    PerHead,
    /// All heads together; weight `[heads * head_dim]`.
    FullWidth,
}

pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    let root = (mean_square + f64::from(eps))?.sqrt()?;
    x.broadcast_div(&root)?.broadcast_mul(&weight.to_dtype(x.dtype())?)
}

pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + f64::from(eps))?.sqrt()?)?;
    let normed = normed.broadcast_mul(&weight.to_dtype(x.dtype())?)?;
    match bias {
        Some(bias) => normed.broadcast_add(&bias.to_dtype(x.dtype())?),
        None => Ok(normed),
    }
}

pub(super) fn add_rms_norm(x: &Tensor, residual: &Tensor, weight: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let sum = (x + residual)?;
    let normed = rms_norm(&sum, weight, eps)?;
    Ok((sum, normed))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::{add_rms_norm, layer_norm, rms_norm};

    fn close(actual: &Tensor, expected: &[f32]) {
        let actual = actual.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() < 1e-6, "{actual:?} is not {expected:?}");
        }
    }

    #[test]
    fn norms_of_three_and_four() {
        let x = Tensor::new(&[[3f32, 4.], [0., 2.]], &Device::Cpu).unwrap();
        let weight = Tensor::new(&[1f32, 10.], &Device::Cpu).unwrap();
        // Root mean squares: sqrt(12.5), sqrt(2).
        let (a, b) = (12.5f32.sqrt(), 2f32.sqrt());
        close(&rms_norm(&x, &weight, 0.).unwrap(), &[3. / a, 40. / a, 0., 20. / b]);
        let (sum, normed) = add_rms_norm(&x, &x, &weight, 0.).unwrap();
        close(&sum, &[6., 8., 0., 4.]);
        close(&normed, &[3. / a, 40. / a, 0., 20. / b]);
        let bias = Tensor::new(&[0.5f32, 0.], &Device::Cpu).unwrap();
        close(&layer_norm(&x, &weight, Some(&bias), 0.).unwrap(), &[-0.5, 10., -0.5, 10.]);
        // With eps 0.75 the variance 0.25 becomes 1.
        close(&layer_norm(&x, &weight, None, 0.75).unwrap(), &[-0.5, 5., -1. / 1.75f32.sqrt(), 10. / 1.75f32.sqrt()]);
    }
}
