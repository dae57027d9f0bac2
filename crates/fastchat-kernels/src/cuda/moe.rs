//! Routed experts without a look at the host: routing, sorting, two grouped products and a sum per token.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::null;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Result, Tensor, bail};

use super::CudaKernels;
use super::launchers::RoutingArgs;
use super::linear::{Experts, Input, Product, pairs, shared_chunk_size};
use super::weights::{DeviceWeight, Stored};
use crate::linear::Packed;
use crate::ops::moe::{check, moe as plain};
use crate::{Kernels, Linear, MoeSpec, MoeWeights, RouterScore};

/// What the kernels of moe.cu have room for.
const MOST_EXPERTS: usize = 1024;
const MOST_CHOICES: usize = 32;
const MOST_GROUPS: usize = 32;

/// The addresses of the experts' weights and biases, in the device's memory.
#[derive(Debug)]
pub(super) struct Table {
    weights: Tensor,
    biases: Option<Tensor>,
    /// Kept alive, so that addresses stay theirs.
    experts: Vec<(Arc<DeviceWeight>, Option<Tensor>)>,
}

/// Tables by the address of their first weight.
pub(super) type Tables = Mutex<HashMap<usize, Arc<Table>>>;

impl Table {
    /// `None` where experts differ in more than their numbers.
    fn new(kernels: &CudaKernels, layers: &[Linear]) -> Result<Option<Self>> {
        let mut experts = Vec::with_capacity(layers.len());
        for layer in layers {
            let [part] = &layer.parts[..] else { return Ok(None) };
            part.on_device()?;
            let Packed::Device(weight) = &part.packed else { return Ok(None) };
            experts.push((weight.clone(), layer.bias.as_ref().map(Tensor::contiguous).transpose()?));
        }
        let Some((first, first_bias)) = experts.first() else { return Ok(None) };
        let alike = |stored: Stored| match (stored, first.stored) {
            (Stored::Tiles(a), Stored::Tiles(b)) => {
                (a.plane, a.scales, a.offset, a.table) == (b.plane, b.scales, b.offset, b.table)
                    && a.unit.to_bits() == b.unit.to_bits()
            }
            (Stored::Dense(a), Stored::Dense(b)) => a == b,
            _ => false,
        };
        let same = |(weight, bias): &(Arc<DeviceWeight>, Option<Tensor>)| {
            (weight.rows, weight.cols) == (first.rows, first.cols)
                && alike(weight.stored)
                && bias.is_some() == first_bias.is_some()
        };
        if !experts.iter().all(same) {
            return Ok(None);
        }
        let mut weights = Vec::with_capacity(experts.len());
        let mut biases = Vec::new();
        for (weight, bias) in &experts {
            weights.push(kernels.elements::<c_void>(&weight.bytes, DType::U8)?.addr() as i64);
            if let Some(bias) = bias {
                biases.push(kernels.floats(bias)?.addr() as i64);
            }
        }
        let device = kernels.runtime.device();
        let biases = if biases.is_empty() { None } else { Some(Tensor::new(biases, device)?) };
        Ok(Some(Self { weights: Tensor::new(weights, device)?, biases, experts }))
    }

    /// The table of `layers`, made once.
    fn of(kernels: &CudaKernels, layers: &[Linear]) -> Result<Option<Arc<Self>>> {
        let key = layers.first().and_then(|layer| layer.parts.first()).map(|part| &part.packed);
        let Some(Packed::Device(first)) = key else { return Ok(None) };
        let mut tables = kernels.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let key = Arc::as_ptr(first).addr();
        if let Some(table) = tables.get(&key) {
            return Ok(Some(table.clone()));
        }
        let table = Self::new(kernels, layers)?.map(Arc::new);
        if let Some(table) = &table {
            tables.insert(key, table.clone());
        }
        Ok(table)
    }

    /// Any of the experts.
    fn first(&self) -> &DeviceWeight {
        &self.experts[0].0
    }

    /// Lets the next launch follow the addresses.
    fn reach(&self, kernels: &CudaKernels) -> Result<()> {
        for (weight, bias) in &self.experts {
            kernels.runtime.reach(&weight.bytes)?;
            bias.as_ref().map_or(Ok(()), |bias| kernels.runtime.reach(bias))?;
        }
        Ok(())
    }
}

/// Entries (token, choice) sorted by expert.
struct Sorted {
    /// Token of each place, and place of each entry: u32 `[entries]`.
    tokens_of: Tensor,
    place_of: Tensor,
    factors: Tensor,
    /// u32 `[count, 3]`.
    chunks: Tensor,
    count: usize,
    size: usize,
}

fn route(kernels: &CudaKernels, logits: &Tensor, spec: &MoeSpec, weights: &MoeWeights, size: usize) -> Result<Sorted> {
    let (tokens, experts) = logits.dims2()?;
    let entries = tokens * spec.top_k;
    let whole = |count: usize| kernels.runtime.empty(&[count], DType::U32);
    let (experts_of, factors) = (whole(entries)?, kernels.empty(&[entries])?);
    let bias = weights.score_bias.as_ref().map(Tensor::contiguous).transpose()?;
    if bias.as_ref().is_some_and(|bias| bias.dims() != [experts]) {
        bail!("a score bias {:?} for {experts} experts", weights.score_bias);
    }
    let args = RoutingArgs {
        logits: kernels.floats(logits)?,
        bias: bias.as_ref().map_or(Ok(null()), |bias| kernels.floats(bias).map(<*mut f32>::cast_const))?,
        experts_of: kernels.elements(&experts_of, DType::U32)?,
        factors: kernels.floats(&factors)?,
        tokens: i32::try_from(tokens)?,
        experts: i32::try_from(experts)?,
        top_k: i32::try_from(spec.top_k)?,
        score: match spec.score {
            RouterScore::Softmax => 0,
            RouterScore::SoftmaxTopK => 1,
            RouterScore::Sigmoid => 2,
        },
        renormalize: i32::from(spec.renormalize),
        scaling: spec.scaling,
        groups: spec.groups.map_or(0, |(groups, _)| groups as i32),
        kept: spec.groups.map_or(0, |(_, kept)| kept as i32),
    };
    kernels.launch("route", |launchers, stream| {
        // SAFETY: logits are [tokens, experts], the results [tokens, top_k].
        unsafe { (launchers.route)(&raw const args, stream) }
    })?;
    let count = entries / size + experts.min(entries);
    let (tokens_of, place_of, chunks) = (whole(entries)?, whole(entries)?, whole(3 * count)?);
    let from = kernels.elements(&experts_of, DType::U32)?;
    let (to_tokens, to_places) = (kernels.elements(&tokens_of, DType::U32)?, kernels.elements(&place_of, DType::U32)?);
    let to_chunks = kernels.elements(&chunks, DType::U32)?;
    let [entries, experts, most, room] = [entries, experts, size, count].map(|x| x as i32);
    kernels.launch("sort_entries", |launchers, stream| {
        // SAFETY: `entries` experts, tokens and places; an expert has at most one chunk that is not full.
        unsafe {
            (launchers.sort_entries)(
                from, entries, experts, args.top_k, most, to_tokens, to_places, to_chunks, room, stream,
            )
        }
    })?;
    Ok(Sorted { tokens_of, place_of, factors, chunks, count, size })
}

pub(super) fn moe(kernels: &CudaKernels, x: &Tensor, spec: &MoeSpec, weights: &MoeWeights) -> Result<Tensor> {
    check(spec, weights)?;
    let (tokens, hidden) = x.dims2()?;
    let fits = spec.num_experts <= MOST_EXPERTS
        && spec.top_k <= MOST_CHOICES
        && spec.groups.is_none_or(|(groups, _)| groups <= MOST_GROUPS);
    let tables = (Table::of(kernels, &weights.gate_up)?, Table::of(kernels, &weights.down)?);
    let (Some(gate_up), Some(down), true, true) = (tables.0, tables.1, fits, tokens > 0) else {
        return plain(kernels, x, spec, weights);
    };
    if gate_up.first().cols != hidden || down.first().rows != hidden {
        bail!("experts from {} to {}, expected {hidden}", gate_up.first().cols, down.first().rows);
    }
    let logits = kernels.linear(x, &weights.router)?;
    let entries = tokens * spec.top_k;
    // As many entries per expert as there would be if the choice were even.
    let even = entries.div_ceil(spec.num_experts);
    let size = shared_chunk_size(kernels, [gate_up.first(), down.first()], even);
    let sorted = route(kernels, &logits, spec, weights, size)?;
    let paired = pairs(gate_up.first());
    let inter = gate_up.first().rows / 2;
    let run = |input: &Input, table: &Table, gather: Option<&Tensor>, gated, out: &Tensor| {
        table.reach(kernels)?;
        let experts = Experts {
            weights: &table.weights,
            biases: table.biases.as_ref(),
            chunks: &sorted.chunks,
            count: sorted.count,
            gather,
        };
        let (weight, size) = (table.first(), sorted.size);
        let product =
            Product { input, weight, experts: Some(experts), entries, size, bias: None, gated, out, out_column: 0 };
        product.run(kernels)
    };
    let input = Input::new(kernels, x, gate_up.first(), size)?;
    let mut inner = kernels.empty(&[entries, if paired { inter } else { 2 * inter }])?;
    run(&input, &gate_up, Some(&sorted.tokens_of), paired.then_some(spec.act), &inner)?;
    if !paired {
        inner = kernels.gated_act(&inner, spec.act)?;
    }
    let y = kernels.empty(&[entries, hidden])?;
    run(&Input::new(kernels, &inner, down.first(), size)?, &down, None, None, &y)?;
    let out = kernels.empty(&[tokens, hidden])?;
    let (from, places) = (kernels.floats(&y)?, kernels.elements(&sorted.place_of, DType::U32)?);
    let (factors, to) = (kernels.floats(&sorted.factors)?, kernels.floats(&out)?);
    let [tokens, top_k, hidden] = [tokens, spec.top_k, hidden].map(|x| x as i32);
    kernels.launch("combine", |launchers, stream| {
        // SAFETY: every token has `top_k` places among the rows of y.
        unsafe { (launchers.combine)(from, places, factors, to, tokens, top_k, hidden, stream) }
    })?;
    Ok(out)
}
