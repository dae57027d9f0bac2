//! Products with packed weights, and rows of an embedding table.

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use candle_core::{D, DType, Result, Tensor, bail};

use super::CudaKernels;
use super::launchers::ProductArgs;
use super::plan::Arrays;
use super::weights::{BF16, DeviceWeight, E4M3, F16, F32, Stored, TILE_ROWS};
use crate::ops::embed::check_ids;
use crate::{Activation, Linear, Plan};

/// Bytes of a rounded group of 32 columns.
const ROUNDED: usize = 48;
/// Shared memory in which a block rounds its inputs itself; `OWN_ROUNDING` of linear.cu.
const OWN_ROUNDING: usize = 40 << 10;

/// Tokens of a block that multiplies many of them: of any size, and of the larger one of bf16.cu.
const MIDDLE: usize = 64;
const LARGE: usize = 128;

/// Entries of a chunk for a product of `entries` rows with any weight.
pub(super) fn chunk_size(entries: usize) -> usize {
    match entries {
        0 | 1 => 1,
        2..=4 => 4,
        _ => 8,
    }
}

impl DeviceWeight {
    /// In how many bf16 numbers its products take an input; `None` where they do not go through tensor cores.
    pub(super) fn terms(&self, kernels: &CudaKernels) -> Option<i32> {
        // A row must start at a multiple of 16 bytes, as the device's allocations and those of its emulator do.
        let fits = match self.stored {
            Stored::Dense(BF16 | F16) => self.cols.is_multiple_of(8),
            Stored::Dense(E4M3) => true,
            _ => false,
        };
        fits.then_some(kernels.terms)
    }

    /// Whether there is a kernel for chunks of more than 8 entries.
    fn takes_many(&self, kernels: &CudaKernels) -> bool {
        matches!(self.stored, Stored::Tiles(_)) || self.terms(kernels).is_some()
    }

    /// Entries of a chunk for `entries` rows.
    fn chunk_size(&self, kernels: &CudaKernels, entries: usize) -> usize {
        if entries <= 8 || !self.takes_many(kernels) {
            return chunk_size(entries);
        }
        if self.terms(kernels).is_none() {
            return MIDDLE;
        }
        let blocks = self.rows.div_ceil(LARGE) * entries.div_ceil(LARGE);
        // Fewer large blocks than multiprocessors leave some without work.
        if blocks < kernels.runtime.processors() { MIDDLE } else { LARGE }
    }
}

/// The size for `entries` an expert, of weights that see the same chunks.
pub(super) fn shared_chunk_size(kernels: &CudaKernels, weights: [&DeviceWeight; 2], entries: usize) -> usize {
    if entries > 8 && weights.iter().all(|weight| weight.takes_many(kernels)) { MIDDLE } else { chunk_size(entries) }
}

/// What a product needs of its input beside the floats.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Floats,
    /// Rounded to 8 bits.
    Codes,
    /// This many bf16 numbers for each.
    Terms(i32),
}

impl Form {
    /// For `rows` rows and chunks of `size` entries.
    fn of(kernels: &CudaKernels, weight: &DeviceWeight, rows: usize, size: usize) -> Self {
        match (weight.stored, weight.terms(kernels)) {
            (_, Some(terms)) if size > 8 => Self::Terms(terms),
            (Stored::Dense(_), _) => Self::Floats,
            // Many chunks would each round what their tiles' neighbours have rounded.
            (Stored::Tiles(_), _)
                if size <= 8 && size * weight.cols.div_ceil(32) * ROUNDED <= OWN_ROUNDING && rows <= size =>
            {
                Self::Floats
            }
            (Stored::Tiles(_), _) => Self::Codes,
        }
    }
}

/// Input rows as a product reads them.
pub(super) struct Input {
    /// f32 `[rows, cols]`, contiguous.
    x: Tensor,
    cols: usize,
    form: Form,
    /// Of products whose blocks do not make it themselves.
    rounded: Option<Tensor>,
}

impl Input {
    /// Rows for chunks of `size` entries of `weight`.
    pub(super) fn new(kernels: &CudaKernels, x: &Tensor, weight: &DeviceWeight, size: usize) -> Result<Self> {
        let (x, (rows, cols)) = (x.contiguous()?, x.dims2()?);
        let form = Form::of(kernels, weight, rows, size);
        let bytes = match form {
            Form::Floats => return Ok(Self { x, cols, form, rounded: None }),
            Form::Codes => rows * cols.div_ceil(256) * 8 * ROUNDED,
            Form::Terms(terms) => rows * cols * 2 * terms as usize,
        };
        let rounded = kernels.runtime.empty(&[bytes], DType::U8)?;
        let (from, to) = (kernels.floats(&x)?, kernels.elements::<c_void>(&rounded, DType::U8)?);
        let cols_i32 = i32::try_from(cols)?;
        match form {
            Form::Terms(terms) => kernels.launch("split_rows", |launchers, stream| {
                // SAFETY: `rows` rows of `cols`, and `terms` times as many of bf16.
                unsafe { (launchers.split_rows)(from, to, terms, rows as i64, cols_i32, stream) }
            })?,
            _ => kernels.launch("round_rows", |launchers, stream| {
                // SAFETY: `rows` rows of `cols`, and as many of rounded groups padded to 256 columns.
                unsafe { (launchers.round_rows)(from, to, rows as i64, cols_i32, stream) }
            })?,
        }
        Ok(Self { x, cols, form, rounded: Some(rounded) })
    }
}

/// Whose rows are multiplied: consecutive ones, or those that chunks of experts name.
pub(super) struct Experts<'a> {
    /// i64 addresses of the experts' weights, and of their biases.
    pub(super) weights: &'a Tensor,
    pub(super) biases: Option<&'a Tensor>,
    /// i32-like `[chunks, 3]`.
    pub(super) chunks: &'a Tensor,
    pub(super) count: usize,
    /// u32 `[entries]`.
    pub(super) gather: Option<&'a Tensor>,
}

/// One launch of a product.
pub(super) struct Product<'a> {
    pub(super) input: &'a Input,
    /// The weight, or any of the experts'.
    pub(super) weight: &'a DeviceWeight,
    pub(super) experts: Option<Experts<'a>>,
    pub(super) entries: usize,
    pub(super) size: usize,
    /// f32, and the first element that belongs to this weight.
    pub(super) bias: Option<(&'a Tensor, usize)>,
    pub(super) gated: Option<Activation>,
    pub(super) out: &'a Tensor,
    pub(super) out_column: usize,
}

impl Product<'_> {
    pub(super) fn run(&self, kernels: &CudaKernels) -> Result<()> {
        let Self { input, weight, entries, size, .. } = *self;
        if input.cols != weight.cols {
            bail!("input rows of {} for a weight of {} columns", input.cols, weight.cols);
        }
        let weight_bytes = kernels.elements::<c_void>(&weight.bytes, DType::U8)?;
        let x = kernels.floats(&input.x)?;
        let rounded = match &input.rounded {
            Some(rounded) => kernels.elements::<c_void>(rounded, DType::U8)?,
            None => null_mut(),
        };
        let bias = match self.bias {
            // Inside the tensor: parts are stacked in the order of their biases.
            Some((bias, first)) => kernels.floats(bias)?.wrapping_add(first),
            None => null_mut(),
        };
        let mut args = ProductArgs {
            weight: weight_bytes,
            experts: null(),
            chunks: null(),
            gather: null(),
            x,
            rounded,
            bias,
            expert_bias: null(),
            out: kernels.floats(self.out)?,
            rows: i32::try_from(weight.rows)?,
            cols: i32::try_from(weight.cols)?,
            entries: i32::try_from(entries)?,
            out_stride: i32::try_from(self.out.dim(D::Minus1)?)?,
            out_column: i32::try_from(self.out_column)?,
            gated: i32::from(self.gated.is_some()),
            act: self.gated.unwrap_or(Activation::Silu).into(),
        };
        let mut chunks = entries.div_ceil(size);
        if let Some(experts) = &self.experts {
            args.weight = null();
            args.experts = kernels.elements(experts.weights, DType::I64)?;
            args.chunks = kernels.elements(experts.chunks, DType::U32)?;
            args.gather = experts.gather.map_or(Ok(null_mut()), |gather| kernels.elements(gather, DType::U32))?;
            args.expert_bias = experts.biases.map_or(Ok(null_mut()), |biases| kernels.elements(biases, DType::I64))?;
            chunks = experts.count;
        }
        let (chunks, tokens) = (i32::try_from(chunks)?, size as i32);
        if let (Some(terms), Stored::Dense(element)) = (weight.terms(kernels), weight.stored) {
            if entries > 0 && [weight_bytes.addr(), x.addr()].iter().any(|address| !address.is_multiple_of(16)) {
                bail!("rows at no multiple of 16 bytes");
            }
            return kernels.launch("dense_bf16", |launchers, stream| {
                // SAFETY: the arguments describe tensors that are alive; shapes were checked where they were made.
                unsafe { (launchers.dense_bf16)(&raw const args, element, terms, chunks, tokens, stream) }
            });
        }
        match weight.stored {
            Stored::Tiles(format) => kernels.launch("multiply", |launchers, stream| {
                // SAFETY: as above.
                unsafe { (launchers.multiply)(&raw const args, &raw const format, chunks, tokens, stream) }
            }),
            Stored::Dense(element) => {
                let bytes = if element == F32 { 4 } else { 2 };
                let lies = |address: usize, row: usize| address.is_multiple_of(16) && row.is_multiple_of(16);
                let aligned = weight.cols.is_multiple_of(8)
                    && lies(weight_bytes.addr(), weight.cols * bytes)
                    && lies(x.addr(), weight.cols * 4);
                kernels.launch("dense", |launchers, stream| {
                    // SAFETY: as above.
                    unsafe { (launchers.dense)(&raw const args, element, chunks, tokens, i32::from(aligned), stream) }
                })
            }
        }
    }
}

fn rows_of(x: &Tensor, layer: &Linear) -> Result<usize> {
    let (rows, cols) = x.dims2()?;
    if cols != layer.in_features {
        bail!("input rows of {cols} for a layer of {} input features", layer.in_features);
    }
    Ok(rows)
}

pub(super) fn linear(kernels: &CudaKernels, x: &Tensor, layer: &Linear) -> Result<Tensor> {
    let entries = rows_of(x, layer)?;
    let out = kernels.empty(&[entries, layer.out_features])?;
    let bias = layer.bias.as_ref().map(Tensor::contiguous).transpose()?;
    let mut inputs: Vec<Input> = Vec::new();
    let mut column = 0;
    for part in &layer.parts {
        let weight = part.on_device()?;
        let size = weight.chunk_size(kernels, entries);
        let form = Form::of(kernels, weight, entries, size);
        // Parts share what they need alike.
        let place = inputs.iter().position(|input| input.form == form).unwrap_or(inputs.len());
        if place == inputs.len() {
            inputs.push(Input::new(kernels, x, weight, size)?);
        }
        let input = &inputs[place];
        let bias = bias.as_ref().map(|bias| (bias, column));
        let product =
            Product { input, weight, experts: None, entries, size, bias, gated: None, out: &out, out_column: column };
        product.run(kernels)?;
        column += weight.rows;
    }
    Ok(out)
}

/// Whether one launch can pair the rows of a weight's two halves.
pub(super) fn pairs(weight: &DeviceWeight) -> bool {
    let apart = if matches!(weight.stored, Stored::Tiles(_)) { 2 * TILE_ROWS } else { 2 };
    weight.rows.is_multiple_of(apart)
}

pub(super) fn gated_linear(
    kernels: &CudaKernels,
    x: &Tensor,
    layer: &Linear,
    act: Activation,
) -> Result<Option<Tensor>> {
    let [part] = &layer.parts[..] else { return Ok(None) };
    let weight = part.on_device()?;
    if !pairs(weight) {
        return Ok(None);
    }
    let entries = rows_of(x, layer)?;
    let out = kernels.empty(&[entries, weight.rows / 2])?;
    let size = weight.chunk_size(kernels, entries);
    let input = &Input::new(kernels, x, weight, size)?;
    let bias = layer.bias.as_ref().map(Tensor::contiguous).transpose()?;
    let bias = bias.as_ref().map(|bias| (bias, 0));
    let gated = Some(act);
    let product = Product { input, weight, experts: None, entries, size, bias, gated, out: &out, out_column: 0 };
    product.run(kernels)?;
    Ok(Some(out))
}

pub(super) fn embed(kernels: &CudaKernels, table: &Linear, ids: &[u32]) -> Result<Tensor> {
    check_ids(table, ids)?;
    let mut pieces = Vec::with_capacity(table.parts.len());
    let mut order = vec![0u32; ids.len()];
    let (mut first, mut placed) = (0, 0);
    for part in &table.parts {
        let weight = part.on_device()?;
        let range = first..first + weight.rows;
        let mut own = Vec::new();
        for (place, &id) in order.iter_mut().zip(ids) {
            if range.contains(&(id as usize)) {
                *place = placed;
                placed += 1;
                own.push(id - first as u32);
            }
        }
        pieces.push(rows(kernels, weight, &own)?);
        first = range.end;
    }
    match &pieces[..] {
        [whole] => Ok(whole.clone()),
        _ => Tensor::cat(&pieces, 0)?.index_select(&Tensor::new(order, kernels.runtime.device())?, 0),
    }
}

/// Rows for the tokens of a step, whose ids were uploaded with its other arrays.
pub(super) fn embed_tokens(kernels: &CudaKernels, table: &Linear, plan: &Plan) -> Result<Tensor> {
    let ids = &plan.batch.token_ids;
    match (&table.parts[..], plan.room) {
        ([part], None) => {
            check_ids(table, ids)?;
            rows_at(kernels, part.on_device()?, Arrays::of(kernels, plan)?.token_ids, ids.len())
        }
        ([part], Some(room)) if room.vocab <= table.out_features => {
            rows_at(kernels, part.on_device()?, Arrays::of(kernels, plan)?.token_ids, ids.len())
        }
        (_, None) => embed(kernels, table, ids),
        (parts, Some(room)) => {
            bail!("ids below {} in a table of {} parts, {} rows", room.vocab, parts.len(), table.out_features)
        }
    }
}

fn rows(kernels: &CudaKernels, weight: &DeviceWeight, ids: &[u32]) -> Result<Tensor> {
    let ids_there = Tensor::new(ids, kernels.runtime.device())?;
    rows_at(kernels, weight, kernels.elements(&ids_there, DType::U32)?, ids.len())
}

/// Rows of a weight by `count` ids, all of which it has, at an address of the device.
fn rows_at(kernels: &CudaKernels, weight: &DeviceWeight, from: *const u32, count: usize) -> Result<Tensor> {
    let out = kernels.empty(&[count, weight.cols])?;
    if count == 0 {
        return Ok(out);
    }
    let (table, to) = (kernels.elements::<c_void>(&weight.bytes, DType::U8)?, kernels.floats(&out)?);
    let (count, rows, cols) = (i32::try_from(count)?, i32::try_from(weight.rows)?, i32::try_from(weight.cols)?);
    match weight.stored {
        Stored::Tiles(format) => kernels.launch("decode", |launchers, stream| {
            // SAFETY: the ids are rows of the table; `out` has a row for each.
            unsafe { (launchers.decode)(table, from, to, count, cols, &raw const format, stream) }
        })?,
        Stored::Dense(E4M3) => kernels.launch("gather_codes", |launchers, stream| {
            // SAFETY: as above.
            unsafe { (launchers.gather_codes)(table, from, to, count, rows, cols, stream) }
        })?,
        Stored::Dense(element) => kernels.launch("gather", |launchers, stream| {
            // SAFETY: as above.
            unsafe { (launchers.gather)(table, element, from, to, count, cols, stream) }
        })?,
    }
    Ok(out)
}
