//! Stored tensors by name, and their way into a decoder's slots: found, reordered, checked against the shape the spec
//! implies, counted as used. Knows neither file formats nor model names.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use fastchat_kernels::{Bytes, Weight, WeightKind};

use crate::ModelError;
use crate::coded::Coded;
use crate::names::{Names, Slot, Source, Step};
use crate::quantize::Quantize;
use crate::rearrange::apply;

/// One tensor as a file holds it.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Row-major shape, at least one dimension.
    pub shape: Vec<usize>,
    /// Element kind.
    pub kind: StoredKind,
    /// Its bytes.
    pub bytes: Bytes,
    /// The file, for messages.
    pub file: Arc<Path>,
}

/// Element kind of a stored tensor.
#[derive(Clone, Debug)]
pub enum StoredKind {
    /// A kind that layers can be packed from.
    Weight(WeightKind),
    /// A code whose pieces were found together; `Stored::bytes` are the codes.
    Coded(Arc<dyn Coded>),
    /// Any other, by the format's own name; an error only for tensors that are asked for.
    Other(String),
}

impl StoredKind {
    /// Name for messages and `inspect`.
    pub fn name(&self) -> String {
        match self {
            Self::Weight(kind) => format!("{kind:?}"),
            Self::Coded(coded) => coded.name().to_owned(),
            Self::Other(name) => name.clone(),
        }
    }
}

/// All tensors of a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct TensorMap {
    /// File or folder, for messages about tensors that are not there.
    pub origin: PathBuf,
    /// By name.
    pub tensors: BTreeMap<String, Stored>,
}

impl TensorMap {
    /// Whether any tensor is stored in blocks of few bits.
    pub fn is_quantized(&self) -> bool {
        self.tensors.values().any(|stored| match &stored.kind {
            StoredKind::Weight(kind) => !kind.is_dense(),
            StoredKind::Coded(_) => true,
            StoredKind::Other(_) => false,
        })
    }
}

/// Elements of the largest blocks of codes there are.
pub(crate) const LARGEST_BLOCK: usize = 256;
/// 16-bit floats of 16 bytes.
const READ_AT_ONCE: usize = 8;

impl TensorMap {
    /// Elements of the largest block that a tensor is stored in, or may be once it is decoded; of floats as many as
    /// kernels read at once.
    pub(crate) fn largest_block(&self) -> usize {
        let block = |stored: &Stored| match &stored.kind {
            StoredKind::Weight(kind) => kind.block().0,
            StoredKind::Coded(_) => LARGEST_BLOCK,
            StoredKind::Other(_) => READ_AT_ONCE,
        };
        self.tensors.values().map(block).fold(READ_AT_ONCE, usize::max)
    }
}

/// Serves slots from a [`TensorMap`] and remembers what was used.
#[derive(Debug)]
pub(crate) struct Weights<'a> {
    map: &'a TensorMap,
    names: &'a Names,
    root: (&'static str, &'static str),
    used: RefCell<BTreeSet<String>>,
    /// The last matrix that was decoded, by name and part of its stack: several slots or heads in a row are cut from one.
    decoded: RefCell<Option<(String, usize, Weight)>>,
    quantize: Option<Quantize>,
    /// Whether any matrix was rounded.
    rounded: Cell<bool>,
}

/// Which instance of a slot is meant.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct At {
    pub layer: usize,
    /// Expert or head.
    pub part: usize,
}

impl<'a> Weights<'a> {
    pub fn new(map: &'a TensorMap, names: &'a Names, quantize: Option<Quantize>) -> Self {
        let embed = names.sources.get(&Slot::Embed).map_or("", |source| source.weight.as_str());
        let found = names.roots.iter().find(|(body, _)| map.tensors.contains_key(&format!("{body}{embed}")));
        let root = found.or(names.roots.first()).copied().unwrap_or_default();
        Self {
            map,
            names,
            root,
            used: RefCell::default(),
            decoded: RefCell::default(),
            quantize,
            rounded: Cell::new(false),
        }
    }

    /// File or folder.
    pub fn origin(&self) -> &'a Path {
        &self.map.origin
    }

    fn source(&self, slot: Slot) -> Result<&Source, ModelError> {
        self.names.sources.get(&slot).ok_or_else(|| {
            ModelError::tensor(&self.map.origin, &format!("{slot:?}"), "this checkpoint layout has no name for it")
        })
    }

    fn name(&self, slot: Slot, pattern: &str, at: At) -> String {
        let root = if slot.beside_the_body() { self.root.1 } else { self.root.0 };
        let stack = self.names.stacks.get(at.part).copied().unwrap_or_default();
        let name = pattern.replace("{l}", &at.layer.to_string()).replace("{e}", &at.part.to_string());
        let name = name.replace("{s}", stack);
        format!("{root}{name}")
    }

    /// The slot's matrix, of exactly `rows x cols`, rounded where that was asked for.
    pub fn matrix(&self, slot: Slot, at: At, rows: usize, cols: usize) -> Result<Weight, ModelError> {
        let source = self.source(slot)?;
        let name = self.name(slot, &source.weight, at);
        let weight = self.fetch(&name, &source.steps, at.part, (rows, cols, false))?;
        let Some(quantize) = self.quantize else { return Ok(weight) };
        let stored = weight.kind();
        let weight = quantize.apply(slot, weight).map_err(|p| ModelError::tensor(&self.map.origin, &name, p))?;
        self.rounded.set(self.rounded.get() || weight.kind() != stored);
        Ok(weight)
    }

    /// The slot's vector of `len` elements.
    pub fn vector(&self, slot: Slot, at: At, len: usize) -> Result<Vec<f32>, ModelError> {
        let source = self.source(slot)?;
        let weight = self.fetch(&self.name(slot, &source.weight, at), &source.steps, at.part, (len, 1, true))?;
        Ok(weight.to_f32()?)
    }

    /// The slot's bias of `len` elements.
    pub fn bias(&self, slot: Slot, at: At, len: usize) -> Result<Vec<f32>, ModelError> {
        let source = self.source(slot)?;
        let weight = self.fetch(&self.name(slot, &source.bias, at), &source.steps, at.part, (len, 1, true))?;
        Ok(weight.to_f32()?)
    }

    /// The slot's vector as an f32 tensor.
    pub fn tensor(&self, slot: Slot, at: At, len: usize, device: &Device) -> Result<Tensor, ModelError> {
        Ok(Tensor::from_vec(self.vector(slot, at, len)?, len, device)?)
    }

    fn fetch(
        &self,
        name: &str,
        steps: &[Step],
        part: usize,
        (rows, cols, vector): (usize, usize, bool),
    ) -> Result<Weight, ModelError> {
        let Some(stored) = self.map.tensors.get(name) else {
            return Err(ModelError::tensor(&self.map.origin, name, "is missing"));
        };
        let fail = |problem: String| ModelError::tensor(&stored.file, name, problem);
        self.used.borrow_mut().insert(name.to_owned());
        let mut weight = match &stored.kind {
            StoredKind::Coded(coded) => self.decode(name, stored, coded.as_ref(), steps, part).map_err(&fail)?,
            _ => stored.matrix(vector, steps, part, rows).map_err(&fail)?,
        };
        for step in steps.iter().filter(|step| **step != Step::Pick) {
            weight = apply(step, weight, part, vector).map_err(&fail)?;
        }
        if (weight.rows(), weight.cols()) != (rows, cols) {
            let got = format!("{} x {}", weight.rows(), weight.cols());
            return Err(fail(format!("has shape {:?}, which gives {got}; expected {rows} x {cols}", stored.shape)));
        }
        Ok(weight)
    }

    fn decode(
        &self,
        name: &str,
        stored: &Stored,
        coded: &dyn Coded,
        steps: &[Step],
        part: usize,
    ) -> Result<Weight, String> {
        let part = match (stored.shape.len(), steps.first() == Some(&Step::Pick)) {
            (2, false) => 0,
            (3, true) if part < stored.shape[0] => part,
            _ => return Err(format!("has shape {:?}, which is not what is asked of it", stored.shape)),
        };
        let mut last = self.decoded.borrow_mut();
        if let Some((_, _, weight)) = last.as_ref().filter(|(of, at, _)| of == name && *at == part) {
            return Ok(weight.clone());
        }
        let weight = coded.matrix(part)?;
        *last = Some((name.to_owned(), part, weight.clone()));
        Ok(weight)
    }

    /// Every stored tensor must have been used or be known to be harmless, and a kind asked for have had a use.
    pub fn finish(&self) -> Result<(), ModelError> {
        self.check_rounded()?;
        self.finish_among(|_| true)
    }

    /// As `finish`, for the tensors under this layout's prefixes: others belong to another part of the model.
    pub fn finish_within_roots(&self) -> Result<(), ModelError> {
        self.check_rounded()?;
        self.finish_among(|name| [self.root.0, self.root.1].iter().any(|root| name.starts_with(root)))
    }

    fn check_rounded(&self) -> Result<(), ModelError> {
        match self.quantize.filter(|_| !self.rounded.get()) {
            None => Ok(()),
            Some(quantize) => {
                let limit = "no matrix of this model is stored as floats in rows of whole blocks";
                Err(ModelError::request("quantize", quantize.name(), limit))
            }
        }
    }

    fn finish_among(&self, ours: impl Fn(&str) -> bool) -> Result<(), ModelError> {
        let used = self.used.borrow();
        let ignored = |name: &str| self.names.ignored.iter().any(|part| name.contains(part.as_str()));
        let left = || self.map.tensors.iter().filter(|(name, _)| ours(name) && !used.contains(*name) && !ignored(name));
        match left().next() {
            None => Ok(()),
            Some((name, stored)) => {
                let others = left().count() - 1;
                let problem = format!("is left over: nothing in the configuration uses it ({others} more like it)");
                Err(ModelError::tensor(&stored.file, name, problem))
            }
        }
    }
}

impl Stored {
    /// The tensor as a matrix before its steps: a stack is cut when the first step picks, `[n]` is a column for a
    /// vector and otherwise a single row, and dimensions of one in the middle (depthwise kernels) are dropped.
    fn matrix(&self, vector: bool, steps: &[Step], part: usize, rows: usize) -> Result<Weight, String> {
        let kind = match &self.kind {
            StoredKind::Weight(kind) => *kind,
            other => return Err(format!("element type {} is not supported", other.name())),
        };
        let mut shape = self.shape.clone();
        let mut stack = 1;
        if steps.first() == Some(&Step::Pick) {
            stack = shape.remove(0);
            if shape.is_empty() || part >= stack {
                return Err(format!("has shape {:?}, expected a stack of more than {part} matrices", self.shape));
            }
        }
        if steps.contains(&Step::Flatten) && shape.len() > 2 {
            let cols = shape[1..].iter().try_fold(1usize, |all, &size| all.checked_mul(size)).ok_or("is too large")?;
            shape = vec![shape[0], cols];
        }
        if shape.len() > 2 {
            let last = shape.len() - 1;
            let mut at = 0;
            shape.retain(|&size| {
                at += 1;
                size != 1 || at == 1 || at == last + 1
            });
        }
        let (stored_rows, cols) = match shape[..] {
            [n] if vector || rows != 1 => (n, 1),
            [n] => (1, n),
            [r, 1] | [1, r] if vector => (r, 1),
            [r, c] => (r, c),
            _ => return Err(format!("has shape {:?}, expected a matrix", self.shape)),
        };
        let all = stack.checked_mul(stored_rows).ok_or("is too large")?;
        let whole = Weight::new(kind, all, cols, self.bytes.clone()).map_err(|error| error.to_string())?;
        if stack == 1 && steps.first() != Some(&Step::Pick) {
            return Ok(whole);
        }
        whole.narrow(part * stored_rows, stored_rows).map_err(|error| error.to_string())
    }
}

impl Stored {
    /// All bytes that the tensor is made of.
    pub fn pieces(&self) -> Vec<&Bytes> {
        match &self.kind {
            StoredKind::Coded(coded) => coded.pieces(),
            _ => vec![&self.bytes],
        }
    }
}
