//! Activations, in plain candle.

use candle_core::{D, Result, Tensor, bail};

/// Elementwise activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// Exact GELU.
    Gelu,
    /// GELU by tanh.
    GeluTanh,
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
    /// `max(x, 0)^2`.
    Relu2,
    /// gpt-oss, only as a gated activation: with gate capped at `limit` and up clamped to `-limit ..= limit`,
    /// `(up + 1) * gate * sigmoid(alpha * gate)`.
    SwigluOai {
        /// Slope inside the sigmoid.
        alpha: f32,
        /// Clamp.
        limit: f32,
    },
}

/// Slope by which `x sigmoid(slope x)` comes near GELU (arXiv 1606.08415).
pub(crate) const QUICK_GELU: f64 = 1.702;

pub(super) fn gated_act(gate_up: &Tensor, act: Activation) -> Result<Tensor> {
    let width = gate_up.dim(D::Minus1)?;
    if !width.is_multiple_of(2) {
        bail!("gate and up stacked have an odd width {width}");
    }
    let gate = gate_up.narrow(D::Minus1, 0, width / 2)?.contiguous()?;
    let up = gate_up.narrow(D::Minus1, width / 2, width / 2)?.contiguous()?;
    match act {
        Activation::SwigluOai { alpha, limit } => {
            let gate = gate.minimum(limit)?;
            let up = up.clamp(-limit, limit)?;
            let swish = (&gate * sigmoid(&(&gate * f64::from(alpha))?)?)?;
            (up + 1.)? * swish
        }
        _ => self::act(&gate, act)? * up,
    }
}

pub(super) fn act(x: &Tensor, act: Activation) -> Result<Tensor> {
    match act {
        Activation::Silu => x.silu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::QuickGelu => x * sigmoid(&(x * QUICK_GELU)?)?,
        Activation::Relu2 => x.relu()?.sqr(),
        Activation::SwigluOai { .. } => bail!("{act:?} needs a gate: it is not an elementwise activation"),
    }
}

pub(super) fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.)?.recip()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::{Activation, act, gated_act};

    fn apply(x: f32, activation: Activation) -> f32 {
        act(&Tensor::new(&[x], &Device::Cpu).unwrap(), activation).unwrap().to_vec1::<f32>().unwrap()[0]
    }

    #[test]
    fn known_values() {
        // Values of PyTorch's documentation formulas at 1 and -2.
        for (activation, one, minus_two) in [
            (Activation::Silu, 0.731_058_6, -0.238_405_84),
            (Activation::Gelu, 0.841_344_7, -0.045_500_26),
            (Activation::GeluTanh, 0.841_192, -0.045_402_3),
            (Activation::QuickGelu, 0.845_795_8, -0.064_341_38),
            (Activation::Relu2, 1., 0.),
        ] {
            assert!((apply(1., activation) - one).abs() < 2e-6, "{activation:?}");
            assert!((apply(-2., activation) - minus_two).abs() < 2e-6, "{activation:?}");
        }
    }

    #[test]
    fn gate_comes_first() {
        let x = Tensor::new(&[[1f32, -2., 10., 100.]], &Device::Cpu).unwrap();
        let out = gated_act(&x, Activation::Silu).unwrap().to_vec2::<f32>().unwrap();
        assert!((out[0][0] - 7.310_586).abs() < 1e-5 && (out[0][1] + 23.840_584).abs() < 1e-4);
    }

    #[test]
    fn oai_clamps_gate_above_and_up_on_both_sides() {
        let oai = Activation::SwigluOai { alpha: 2., limit: 7. };
        let x = Tensor::new(&[[9f32, -9., 0.5, 100., -100., 3.]], &Device::Cpu).unwrap();
        let out = gated_act(&x, oai).unwrap().to_vec2::<f32>().unwrap();
        let sigmoid = |x: f32| 1. / (1. + (-x).exp());
        let expected = [8. * 7. * sigmoid(14.), -6. * -9. * sigmoid(-18.), 4. * 0.5 * sigmoid(1.)];
        for (a, e) in out[0].iter().zip(expected) {
            assert!((a - e).abs() < 1e-4, "{out:?} is not {expected:?}");
        }
        assert!(act(&x, oai).is_err());
    }
}
