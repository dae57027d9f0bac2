//! From a tower's rows to a decoder's: norms, patches of a group joined to one row, one or two matrices.

use candle_core::Tensor;
use fastchat_kernels::Linear;

use super::spec::{Join, Projection, ProjectorSpec};
use crate::ModelError;
use crate::layers::{Builder, NormWeights};
use crate::names::Slot;
use crate::step::Step;
use crate::weights::At;

type Result<T> = std::result::Result<T, ModelError>;

/// A projector ready to run.
#[derive(Debug)]
pub(crate) struct Projector {
    spec: ProjectorSpec,
    group: usize,
    norm: Option<NormWeights>,
    joined_norm: Option<NormWeights>,
    first: Linear,
    second: Option<Linear>,
}

/// Slots of a projector's tensors.
pub(crate) struct ProjectorSlots {
    pub norm: Slot,
    pub first: Slot,
    pub second: Slot,
}

impl Projector {
    /// Reads the tensors of a projector whose input has rows of `width`, of which it joins `group`.
    pub fn new(
        b: &Builder,
        spec: &ProjectorSpec,
        slots: &ProjectorSlots,
        (width, group): (usize, usize),
        at: At,
    ) -> Result<Self> {
        let joined = if spec.join == Join::Concat { width * group } else { width };
        let (first, second) = match spec.layers {
            Projection::Linear(bias) => (b.pack(&[(slots.first, spec.out)], at, joined, bias)?, None),
            Projection::Mlp(dense) => (
                b.pack(&[(slots.first, dense.inter)], at, joined, dense.bias)?,
                Some(b.pack(&[(slots.second, spec.out)], at, dense.inter, dense.bias)?),
            ),
        };
        Ok(Self {
            group,
            norm: spec.norm.map(|norm| b.norm(norm, slots.norm, at, width)).transpose()?,
            joined_norm: spec.joined_norm.map(|norm| b.norm(norm, slots.norm, at, joined)).transpose()?,
            first,
            second,
            spec: spec.clone(),
        })
    }

    /// `[rows, width] -> [rows / group, out]`.
    pub fn run(&self, step: &Step, x: &Tensor) -> Result<Tensor> {
        let mut x = match &self.norm {
            Some(norm) => step.norm(x, norm)?,
            None => x.clone(),
        };
        let (rows, width) = x.dims2()?;
        if self.group > 1 {
            x = match self.spec.join {
                Join::Concat => x.reshape((rows / self.group, self.group * width))?,
                Join::Mean => x.reshape((rows / self.group, self.group, width))?.mean(1)?,
            };
        }
        if let Some(norm) = &self.joined_norm {
            x = step.norm(&x, norm)?;
        }
        x = step.linear(&x, &self.first)?;
        match (&self.second, self.spec.layers) {
            (Some(second), Projection::Mlp(dense)) => step.linear(&step.kernels.act(&x, dense.act)?, second),
            _ => Ok(x),
        }
    }
}
