//! Checkpoints whose `quantization_config` says that matrices lie in pieces: finds the pieces of each by name, checks their
//! shapes against one another, and puts one coded tensor in their place. Knows the names of the methods, no families.

use std::sync::Arc;

use fastchat_kernels::{Bytes, WeightKind};

use super::config::Config;
use crate::ModelError;
use crate::coded::{Coded, Fp8, Integers, Mxfp4, Order};
use crate::weights::{Stored, StoredKind, TensorMap};

type Result<T> = std::result::Result<T, ModelError>;

/// How a checkpoint's matrices are coded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// 8-bit floats with `weight_scale` or, per tile of so many rows and columns, `weight_scale_inv`.
    Fp8 {
        tile: Option<(usize, usize)>,
    },
    /// 8-bit floats, bytes or packed words, told apart by their names.
    CompressedTensors,
    Gptq {
        bits: u32,
        /// Columns of a group; `None` is all.
        size: Option<usize>,
        /// What the format's version takes off the zero points.
        bias: u8,
    },
    Awq {
        size: Option<usize>,
    },
    Mxfp4,
}

/// The method of a config, if its matrices are coded at all.
pub fn method(c: &Config) -> Result<Option<Method>> {
    let Some(q) = c.table("quantization_config")? else { return Ok(None) };
    let name = q.text("quant_method")?.unwrap_or("nothing");
    // -1 is how these formats write "all columns".
    let size = match q.get("group_size") {
        Some(value) if value == &serde_json::Value::from(-1) => None,
        _ => Some(q.size_or("group_size", 128)?),
    };
    Ok(Some(match name {
        "fp8" | "fbgemm_fp8" => {
            let tile = q.counts("weight_block_size")?;
            match tile[..] {
                [] => Method::Fp8 { tile: None },
                [down, across] if down > 0 && across > 0 => Method::Fp8 { tile: Some((down, across)) },
                _ => return Err(q.bad("weight_block_size", format!("{tile:?}"), "rows and columns")),
            }
        }
        "compressed-tensors" => Method::CompressedTensors,
        "gptq" => {
            let bias = match q.text("checkpoint_format")?.unwrap_or("gptq") {
                "gptq" => 1,
                "gptq_v2" => 0,
                other => return Err(q.unsupported("checkpoint_format", other, "gptq and gptq_v2 are")),
            };
            Method::Gptq { bits: bits(&q, &[4, 8])?, size, bias }
        }
        "awq" => {
            bits(&q, &[4])?;
            match q.text("version")?.unwrap_or("gemm").to_ascii_lowercase().as_str() {
                "gemm" => Method::Awq { size },
                other => return Err(q.unsupported("version", other, "gemm is")),
            }
        }
        "mxfp4" => Method::Mxfp4,
        other => {
            let known = "fp8, fbgemm_fp8, compressed-tensors, gptq, awq and mxfp4 are";
            return Err(q.unsupported("quant_method", other, known));
        }
    }))
}

fn bits(q: &Config, known: &[usize]) -> Result<u32> {
    let field = if q.get("w_bit").is_some() { "w_bit" } else { "bits" };
    match q.size_or(field, 4)? {
        bits if known.contains(&bits) => Ok(bits as u32),
        bits => Err(q.unsupported(field, bits, format!("{known:?} are"))),
    }
}

/// Puts coded tensors in the place of their pieces.
pub fn join(map: &mut TensorMap, method: &Method) -> Result<()> {
    let suffix = match method {
        Method::Fp8 { .. } => ".weight",
        Method::CompressedTensors => ".weight_scale",
        Method::Gptq { .. } | Method::Awq { .. } => ".qweight",
        Method::Mxfp4 => "_blocks",
    };
    let stems: Vec<String> =
        map.tensors.keys().filter_map(|name| name.strip_suffix(suffix)).map(str::to_owned).collect();
    for stem in stems {
        let mut pieces = Pieces { map: &mut *map, stem: &stem };
        match method {
            Method::Fp8 { tile } => pieces.fp8(*tile)?,
            Method::CompressedTensors => pieces.compressed()?,
            Method::Gptq { bits, size, bias } => pieces.words(Order::Gptq { bias: *bias }, *bits, *size)?,
            Method::Awq { size } => pieces.words(Order::Awq, 4, *size)?,
            Method::Mxfp4 => pieces.mxfp4()?,
        }
    }
    Ok(())
}

/// The pieces of one matrix.
struct Pieces<'a> {
    map: &'a mut TensorMap,
    stem: &'a str,
}

const FP8: &str = "F8_E4M3";

impl Pieces<'_> {
    fn name(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.stem)
    }

    fn take(&mut self, suffix: &str) -> Option<Stored> {
        self.map.tensors.remove(&self.name(suffix))
    }

    /// The piece, of that element kind and number of dimensions.
    fn need(&mut self, suffix: &str, kind: &str, dimensions: usize) -> Result<Stored> {
        let name = self.name(suffix);
        let Some(stored) = self.take(suffix) else {
            return Err(ModelError::tensor(&self.map.origin, &name, "is missing"));
        };
        if stored.kind.name() != kind || stored.shape.len() != dimensions {
            let got =
                format!("is {} {:?}, expected {kind} of {dimensions} dimensions", stored.kind.name(), stored.shape);
            return Err(ModelError::tensor(&stored.file, &name, got));
        }
        Ok(stored)
    }

    /// A piece of floats with exactly `count` elements.
    fn floats(&mut self, suffix: &str, count: usize) -> Result<(Vec<f32>, Bytes)> {
        let name = self.name(suffix);
        let Some(stored) = self.take(suffix) else {
            return Err(ModelError::tensor(&self.map.origin, &name, "is missing"));
        };
        let bad = |problem: String| ModelError::tensor(&stored.file, &name, problem);
        let StoredKind::Weight(kind @ (WeightKind::F32 | WeightKind::F16 | WeightKind::BF16)) = stored.kind else {
            return Err(bad(format!("is {}, expected floats", stored.kind.name())));
        };
        let elements: usize = stored.shape.iter().product();
        if elements != count {
            return Err(bad(format!("has shape {:?}, expected {count} elements", stored.shape)));
        }
        let values = fastchat_kernels::quant::dequantize(kind, &stored.bytes, count)?;
        Ok((values, stored.bytes))
    }

    /// Puts the coded tensor under `stem` + `suffix`.
    fn put(&mut self, suffix: &str, like: &Stored, shape: Vec<usize>, coded: impl Coded + 'static) {
        let stored = Stored { shape, kind: StoredKind::Coded(Arc::new(coded)), ..like.clone() };
        self.map.tensors.insert(self.name(suffix), stored);
    }

    fn fp8(&mut self, tile: Option<(usize, usize)>) -> Result<()> {
        // Layers that the method left alone keep their kind.
        if self.map.tensors.get(&self.name(".weight")).is_none_or(|stored| stored.kind.name() != FP8) {
            return Ok(());
        }
        let suffix = if tile.is_some() { ".weight_scale_inv" } else { ".weight_scale" };
        // Static scales of activations: this engine computes with the weights only.
        self.take(".input_scale");
        self.take(".input_scale_ub");
        self.fp8_matrix(suffix, tile)
    }

    fn fp8_matrix(&mut self, suffix: &str, tile: Option<(usize, usize)>) -> Result<()> {
        let codes = self.need(".weight", FP8, 2)?;
        let (rows, cols) = (codes.shape[0], codes.shape[1]);
        let scales = self.map.tensors.get(&self.name(suffix)).map_or(0, |scale| scale.shape.iter().product());
        let tile = match tile {
            Some(tile) => tile,
            None if scales == 1 => (rows.max(1), cols.max(1)),
            None => (1, cols.max(1)),
        };
        let (scales, stored_scales) = self.floats(suffix, rows.div_ceil(tile.0) * cols.div_ceil(tile.1))?;
        let coded = Fp8 { rows, cols, tile, codes: codes.bytes.clone(), scales, stored_scales };
        self.put(".weight", &codes, vec![rows, cols], coded);
        Ok(())
    }

    fn compressed(&mut self) -> Result<()> {
        self.take(".input_scale");
        self.take(".input_zero_point");
        if self.map.tensors.contains_key(&self.name(".weight_packed")) {
            return self.packed_rows();
        }
        match self.map.tensors.get(&self.name(".weight")).map(|stored| stored.kind.name()) {
            Some(kind) if kind == FP8 => self.fp8_matrix(".weight_scale", None),
            _ => self.signed_bytes(),
        }
    }

    fn signed_bytes(&mut self) -> Result<()> {
        let codes = self.need(".weight", "I8", 2)?;
        let zeros = self.take(".weight_zero_point").map(|zeros| zeros.bytes);
        let (rows, cols) = (codes.shape[0], codes.shape[1]);
        let groups = self.groups(".weight_scale", rows);
        let (scales, stored_scales) = self.floats(".weight_scale", rows * groups)?;
        self.check_len(".weight_zero_point", zeros.as_ref(), rows * groups)?;
        let size = self.group_size(cols, groups)?;
        let (bits, order, codes_of) = (8, Order::Bytes, codes.bytes.clone());
        let coded =
            Integers { rows, cols, size, bits, order, codes: codes_of, zeros, scales, stored_scales, group_of: None };
        self.put(".weight", &codes, vec![rows, cols], coded);
        Ok(())
    }

    /// compressed-tensors' words: four or eight columns of a row in each.
    fn packed_rows(&mut self) -> Result<()> {
        let codes = self.need(".weight_packed", "I32", 2)?;
        let zeros = self.take(".weight_zero_point").map(|zeros| zeros.bytes);
        if self.map.tensors.contains_key(&self.name(".weight_g_idx")) {
            return Err(self.fail(".weight_g_idx", "groups of scattered columns are not supported here"));
        }
        let (rows, words) = (codes.shape[0], codes.shape[1]);
        let groups = self.groups(".weight_scale", rows);
        let (scales, stored_scales) = self.floats(".weight_scale", rows * groups)?;
        let cols = self.stored_cols()?;
        let Some(bits) = [4, 8].into_iter().find(|bits| cols.checked_mul(*bits) == words.checked_mul(32)) else {
            return Err(
                self.fail(".weight_packed", format!("{words} words a row do not hold {cols} columns of 4 or 8 bits"))
            );
        };
        let bits = bits as u32;
        self.check_len(".weight_zero_point", zeros.as_ref(), rows.div_ceil(32 / bits as usize) * groups * 4)?;
        let size = self.group_size(cols, groups)?;
        let (order, codes_of) = (Order::Rows, codes.bytes.clone());
        let coded =
            Integers { rows, cols, size, bits, order, codes: codes_of, zeros, scales, stored_scales, group_of: None };
        self.put(".weight", &codes, vec![rows, cols], coded);
        Ok(())
    }

    /// Columns by `weight_shape`, whole numbers of 4 or 8 bytes.
    fn stored_cols(&mut self) -> Result<usize> {
        let Some(stored) = self.take(".weight_shape") else { return Err(self.fail(".weight_shape", "is missing")) };
        let mut cols = [0; 8];
        let size = match stored.kind.name().as_str() {
            "I64" => 8,
            "I32" => 4,
            _ => 0,
        };
        if size == 0 || stored.bytes.len() != 2 * size {
            return Err(self.fail(".weight_shape", "must be two whole numbers"));
        }
        cols[..size].copy_from_slice(&stored.bytes[size..]);
        usize::try_from(u64::from_le_bytes(cols)).map_err(|_| self.fail(".weight_shape", "is too large"))
    }

    /// GPTQ's and AWQ's words.
    fn words(&mut self, order: Order, bits: u32, size: Option<usize>) -> Result<()> {
        let per_word = 32 / bits as usize;
        let codes = self.need(".qweight", "I32", 2)?;
        let zeros = self.need(".qzeros", "I32", 2)?;
        let (rows, cols) = match order {
            Order::Awq => (codes.shape[1].saturating_mul(per_word), codes.shape[0]),
            _ => (codes.shape[1], codes.shape[0].saturating_mul(per_word)),
        };
        if !rows.is_multiple_of(per_word) || cols == 0 {
            return Err(self.fail(".qweight", format!("{rows} rows are not a multiple of {per_word}")));
        }
        let size = size.unwrap_or(cols);
        let groups = cols.div_ceil(size);
        let (scales, stored_scales) = self.floats(".scales", groups * rows)?;
        self.check_len(".qzeros", Some(&zeros.bytes), groups * (rows / per_word) * 4)?;
        let group_of = self.group_of(cols, size, groups)?;
        let (codes_of, zeros) = (codes.bytes.clone(), Some(zeros.bytes));
        let coded = Integers { rows, cols, size, bits, order, codes: codes_of, zeros, scales, stored_scales, group_of };
        self.put(".weight", &codes, vec![rows, cols], coded);
        Ok(())
    }

    /// `g_idx`, unless it only says that groups are consecutive.
    fn group_of(&mut self, cols: usize, size: usize, groups: usize) -> Result<Option<Vec<usize>>> {
        let Some(stored) = self.take(".g_idx") else { return Ok(None) };
        let words = stored.bytes.chunks_exact(4);
        let index = |word: &[u8]| u32::from_le_bytes(word.try_into().expect("four bytes; this is a bug")) as usize;
        let group_of: Vec<usize> = words.map(index).collect();
        if stored.kind.name() != "I32" || group_of.len() != cols || group_of.iter().any(|&group| group >= groups) {
            return Err(self.fail(".g_idx", format!("must give one of {groups} groups to each of {cols} columns")));
        }
        let consecutive = group_of.iter().enumerate().all(|(col, &group)| group == col / size);
        Ok((!consecutive).then_some(group_of))
    }

    fn mxfp4(&mut self) -> Result<()> {
        let codes = self.need("_blocks", "U8", 4)?;
        let scales = self.need("_scales", "U8", 3)?;
        let [stack, rows, blocks, bytes] = codes.shape[..] else {
            return Err(self.fail("_blocks", "must have four dimensions"));
        };
        if bytes != 16 || scales.shape != [stack, rows, blocks] {
            let problem =
                format!("{:?} with scales {:?}: expected 16 bytes a block and a scale each", codes.shape, scales.shape);
            return Err(self.fail("_blocks", problem));
        }
        let Some(cols) = blocks.checked_mul(32) else { return Err(self.fail("_blocks", "is too large")) };
        let coded = Mxfp4 { rows, cols, codes: codes.bytes.clone(), scales: scales.bytes };
        self.put("", &codes, vec![stack, rows, cols], coded);
        Ok(())
    }

    fn fail(&self, suffix: &str, problem: impl ToString) -> ModelError {
        ModelError::tensor(&self.map.origin, &self.name(suffix), problem)
    }

    /// Groups per row by the number of scales.
    fn groups(&self, suffix: &str, rows: usize) -> usize {
        let scales: usize = self.map.tensors.get(&self.name(suffix)).map_or(0, |scale| scale.shape.iter().product());
        scales / rows.max(1)
    }

    fn group_size(&self, cols: usize, groups: usize) -> Result<usize> {
        if groups == 0 || cols == 0 || !cols.is_multiple_of(groups) {
            return Err(self.fail(".weight_scale", format!("{groups} groups do not divide {cols} columns")));
        }
        Ok(cols / groups)
    }

    fn check_len(&self, suffix: &str, bytes: Option<&Bytes>, expected: usize) -> Result<()> {
        match bytes {
            Some(bytes) if bytes.len() != expected => {
                Err(self.fail(suffix, format!("has {} bytes, expected {expected}", bytes.len())))
            }
            _ => Ok(()),
        }
    }
}
