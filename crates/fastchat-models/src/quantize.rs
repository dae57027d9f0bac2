//! Rounding of matrices stored as floats to blocks of few bits, at load and when a file is written: which kind a slot
//! gets, and the work on all cores. Knows no files and no model names.

use std::num::NonZero;
use std::str::FromStr;

use fastchat_kernels::{Weight, WeightKind, quantize};

use crate::names::Slot;

/// What matrices stored as floats are rounded to. Those already in blocks stay as they are: rounding twice loses more
/// than either kind does alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantize(WeightKind);

/// Names on the command line.
const KINDS: [(&str, WeightKind); 8] = [
    ("q8_0", WeightKind::Q8_0),
    ("q4_0", WeightKind::Q4_0),
    ("q4_1", WeightKind::Q4_1),
    ("q5_0", WeightKind::Q5_0),
    ("q5_1", WeightKind::Q5_1),
    ("q4_k", WeightKind::Q4_K),
    ("q5_k", WeightKind::Q5_K),
    ("q6_k", WeightKind::Q6_K),
];

impl FromStr for Quantize {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let kind = KINDS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, kind)| Self(*kind));
        let known = || KINDS.map(|(known, _)| known).join(", ");
        kind.ok_or_else(|| format!("'{name}' is none of {}", known()))
    }
}

impl Quantize {
    /// Name, as it is parsed.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self.0).map_or("", |(name, _)| name)
    }

    /// The kind asked for.
    pub(crate) fn kind(self) -> WeightKind {
        self.0
    }

    /// The kind of a slot's matrix with rows of `cols`; `None` where it stays as stored.
    pub(crate) fn kind_for(self, slot: Slot, cols: usize) -> Option<WeightKind> {
        use WeightKind::{Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
        if !is_large(slot) {
            return None;
        }
        // Errors of the table of words reach every token, those of the output matrix every probability: six bits at least.
        let wanted = match (slot, self.0) {
            (Slot::Embed | Slot::Head, Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q4_K | Q5_K) => Q6_K,
            (_, kind) => kind,
        };
        let narrow = match wanted {
            Q4_K => Q5_0,
            Q5_K => Q5_1,
            Q6_K => Q8_0,
            kind => kind,
        };
        [wanted, narrow].into_iter().find(|kind| cols.is_multiple_of(kind.block().0))
    }

    /// `weight` rounded, or as it is where its kind or place says so.
    pub(crate) fn apply(self, slot: Slot, weight: Weight) -> Result<Weight, String> {
        match self.kind_for(slot, weight.cols()) {
            Some(kind) if weight.kind().is_float() => encode(kind, &weight),
            _ => Ok(weight),
        }
    }
}

/// Whether a slot holds a matrix that is worth rounding: a choice of experts or a rate of decay turns small errors into
/// other results, and has few elements.
pub(crate) fn is_large(slot: Slot) -> bool {
    !matches!(
        slot,
        Slot::Router
            | Slot::SharedSwitch
            | Slot::DeltaConv
            | Slot::DeltaA
            | Slot::DeltaB
            | Slot::Positions
            | Slot::TokenType
            | Slot::SecondType
            | Slot::ScoreDense
            | Slot::ScoreOut
    )
}

/// Rounds rows on all cores: the search for the scales of super-blocks takes some hundred operations an element.
pub(crate) fn encode(kind: WeightKind, weight: &Weight) -> Result<Weight, String> {
    let (rows, cols) = (weight.rows(), weight.cols());
    let part = rows.div_ceil(std::thread::available_parallelism().map_or(1, NonZero::get)).max(1);
    let rounded = |start: usize| -> Result<Weight, String> {
        let text = |error: candle_core::Error| error.to_string();
        let len = part.min(rows - start);
        let values = weight.narrow(start, len).and_then(|part| part.to_f32()).map_err(text)?;
        quantize(kind, len, cols, &values).map_err(text)
    };
    let parts = std::thread::scope(|scope| {
        let started: Vec<_> = (0..rows).step_by(part).map(|start| scope.spawn(move || rounded(start))).collect();
        let joined = started.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined.map(|part| part.unwrap_or_else(|_| Err("rounding panicked".to_owned()))).collect::<Result<Vec<_>, _>>()
    })?;
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.bytes().iter().copied()).collect();
    Weight::new(kind, rows, cols, bytes.into()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use fastchat_kernels::WeightKind;

    use super::Quantize;
    use crate::names::Slot;

    #[test]
    fn kinds_by_slot_and_width() {
        let kind = |name: &str, slot, cols| name.parse::<Quantize>().unwrap().kind_for(slot, cols);
        assert_eq!(kind("q4_k", Slot::Q, 512), Some(WeightKind::Q4_K));
        assert_eq!(kind("q4_k", Slot::Q, 96), Some(WeightKind::Q5_0));
        assert_eq!(kind("Q4_0", Slot::Q, 90), None);
        assert_eq!(kind("q4_0", Slot::Head, 512), Some(WeightKind::Q6_K));
        assert_eq!(kind("q4_0", Slot::Embed, 96), Some(WeightKind::Q8_0));
        assert_eq!(kind("q8_0", Slot::Embed, 96), Some(WeightKind::Q8_0));
        assert_eq!(kind("q8_0", Slot::Router, 512), None);
        let error = "q2_k".parse::<Quantize>().unwrap_err();
        assert_eq!(error, "'q2_k' is none of q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k");
    }
}
