//! The one vision tower: runs any spec over the pixels of a picture, piece by piece, so that the caller can do other work
//! in between. Knows no model, no file and no request.

use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use fastchat_kernels::{ForwardBatch, Kernels, Linear, Plan, Rope};

use super::features::ImageFeatures;
use super::geometry::{Geometry, patches, stretched};
use super::pieces::{Budget, LayerRun, PIECE};
use super::processor::Pixels;
use super::spec::{PatchPositions, TileSpec, View, VisionDescription, VisionSpec};
use super::weights::{TileWeights, TowerWeights, build};
use crate::ModelError;
use crate::layers::Builder;
use crate::shard::Shard;
use crate::spec::Bias;
use crate::step::{Step, tables};
use crate::weights::{TensorMap, Weights};

type Result<T> = std::result::Result<T, ModelError>;

/// A vision tower ready to run.
#[derive(Debug)]
pub struct VisionTower {
    spec: VisionSpec,
    kernels: Arc<dyn Kernels>,
    ropes: Vec<Rope>,
    weights: TowerWeights,
    piece: usize,
}

/// A picture on its way through a tower.
#[derive(Debug)]
pub struct Encoding {
    x: Tensor,
    geometry: Geometry,
    count: usize,
    whole: Plan,
    windows: Option<Plan>,
    tiling: Option<Tiling>,
    layer: usize,
    run: LayerRun,
    taps: Vec<Tensor>,
    deep: Vec<Tensor>,
}

/// Rows of the tiles of one sequence: those of the picture first, then what only fills it up.
#[derive(Debug)]
struct Tiling {
    /// Row of the arrangement's learnt rows.
    id: u32,
    /// Tile of each row.
    tiles: Vec<u32>,
    /// Where each place of each tile stands.
    order: Vec<u32>,
    /// Places of the picture.
    visible: usize,
}

impl VisionTower {
    pub(crate) fn new(description: VisionDescription, tensors: &TensorMap, kernels: Arc<dyn Kernels>) -> Result<Self> {
        let VisionDescription { spec, names } = description;
        let ropes = tables(&spec.ropes);
        let weights = Weights::new(tensors, &names, None);
        let builder = Builder {
            weights,
            kernels: kernels.as_ref(),
            hidden: spec.hidden_size,
            ropes: &ropes,
            shard: Shard::ALONE,
        };
        let weights = build(&builder, &spec)?;
        Ok(Self { spec, kernels, ropes, weights, piece: PIECE })
    }

    /// What is computed.
    pub fn spec(&self) -> &VisionSpec {
        &self.spec
    }

    /// Limits what `advance` does to about so many multiplications; results do not depend on it.
    pub fn set_piece(&mut self, multiplications: usize) {
        self.piece = multiplications;
    }

    /// The rows of a picture at once.
    ///
    /// # Errors
    /// As `start`.
    pub fn encode(&self, pixels: &Pixels) -> Result<ImageFeatures> {
        let mut encoding = self.start(pixels)?;
        loop {
            if let Some(features) = self.advance(&mut encoding, None)? {
                return Ok(features);
            }
        }
    }

    /// Patches and their places: the input of the first layer.
    ///
    /// # Errors
    /// Pixels of a shape that the tower does not read, or the device's error.
    pub fn start(&self, pixels: &Pixels) -> Result<Encoding> {
        let (lines, columns) = self.lines(pixels)?;
        let geometry = Geometry::new((lines, columns), self.spec.patch.group, self.spec.patch.window);
        let mut x = self.embed(pixels, &geometry)?;
        let tiling = if let (Some(spec), Some(weights)) = (&self.spec.tiles, &self.weights.tiles) {
            let tiling = Tiling::new(spec, pixels.tiles, self.places(&geometry))?;
            x = self.place_tiles(&x, spec, weights, tiling.id)?;
            Some(tiling)
        } else {
            x = self.place(&x, &geometry, (lines, columns), pixels.count)?;
            None
        };
        if let Some(norm) = &self.weights.pre_norm {
            x = Step { kernels: self.kernels.as_ref(), plan: &Plan::new(ForwardBatch::default(), vec![]) }
                .norm(&x, norm)?;
        }
        let whole = if let Some(tiling) = &tiling {
            // One row of zeros past the end is what fills up.
            let filled = x.pad_with_zeros(0, 0, 1)?;
            let rows = tiling.rows(x.dim(0)?);
            x = filled.index_select(&Tensor::from_vec(rows, tiling.tiles.len(), x.device())?, 0)?;
            let (all, own) = (tiling.tiles.len() as u32, tiling.visible as u32);
            let mut batch = sequences(&[tiling.tiles.len()], &[]);
            batch.reach = (0..all).map(|row| if row < own { all - 1 } else { own - 1 }).collect();
            self.kernels.plan(&batch, &self.ropes)?
        } else {
            let lengths = vec![self.places(&geometry); pixels.count];
            self.kernels.plan(&sequences(&lengths, &self.turns(&geometry, pixels.count)), &self.ropes)?
        };
        let windows = if geometry.windows.is_empty() {
            None
        } else {
            let lengths = geometry.windows.repeat(pixels.count);
            Some(self.kernels.plan(&sequences(&lengths, &self.turns(&geometry, pixels.count)), &self.ropes)?)
        };
        let count = pixels.count;
        Ok(Encoding {
            x,
            geometry,
            count,
            whole,
            windows,
            tiling,
            layer: 0,
            run: LayerRun::default(),
            taps: vec![],
            deep: vec![],
        })
    }

    /// One more piece of a layer (small layers are one), or the end. `until` makes pieces shorter: a part at least, and no
    /// further one that would end after it.
    ///
    /// # Errors
    /// The device's error.
    pub fn advance(&self, encoding: &mut Encoding, until: Option<Instant>) -> Result<Option<ImageFeatures>> {
        let index = encoding.layer;
        let (Some(spec), Some(weights)) = (self.spec.layers.get(index), self.weights.layers.get(index)) else {
            return self.finish(encoding).map(Some);
        };
        if let (Some(tiles), Some(tiling)) = (&self.spec.tiles, &encoding.tiling)
            && index == tiles.second_stack
            && encoding.run.is_new()
        {
            encoding.x = self.between_stacks(encoding, tiles, tiling)?;
        }
        let plan = match (spec.view, &encoding.windows) {
            (View::Window, Some(windows)) => windows,
            _ => &encoding.whole,
        };
        let step = Step { kernels: self.kernels.as_ref(), plan };
        let budget = Budget { multiplications: self.piece, until };
        let Some(x) = encoding.run.advance(&step, &encoding.x, (spec, weights), budget)? else { return Ok(None) };
        (encoding.x, encoding.run) = (x, LayerRun::default());
        if self.spec.taps.contains(&index) {
            encoding.taps.push(encoding.x.clone());
        }
        if let Some(deep) = self.spec.deepstack.iter().position(|&deep| deep == index) {
            let rows = self.weights.deepstack[deep].run(&step, &encoding.x)?;
            let rows = in_lines(rows, encoding)?;
            encoding.deep.push(rows);
        }
        encoding.layer += 1;
        Ok(None)
    }

    fn finish(&self, encoding: &Encoding) -> Result<ImageFeatures> {
        let step = Step { kernels: self.kernels.as_ref(), plan: &encoding.whole };
        let mut x = encoding.x.clone();
        if let (Some(norm), None) = (&self.weights.post_norm, &encoding.tiling) {
            x = step.norm(&x, norm)?;
        }
        if !encoding.taps.is_empty() {
            let (rows, width) = x.dims2()?;
            let taps = Tensor::stack(&encoding.taps, 2)?.reshape((rows, width * encoding.taps.len()))?;
            x = Tensor::cat(&[x, taps], 1)?;
        }
        let mut visible = 0;
        match &encoding.tiling {
            Some(tiling) => {
                let order = Tensor::from_slice(&tiling.order, tiling.order.len(), x.device())?;
                x = x.index_select(&order, 0)?;
                visible = tiling.visible;
            }
            None if self.spec.class_token == Bias::Present => {
                let (rows, width) = x.dims2()?;
                let tiles = x.reshape((encoding.count, rows / encoding.count, width))?;
                let patches = tiles.narrow(1, 1, rows / encoding.count - 1)?;
                x = patches.reshape((rows - encoding.count, width))?;
            }
            None => {}
        }
        let rows = in_lines(self.weights.projector.run(&step, &x.contiguous()?)?, encoding)?;
        Ok(ImageFeatures { rows, deep: encoding.deep.clone(), looked_at: vec![], visible })
    }

    /// Lines and columns of patches of a tile.
    fn lines(&self, pixels: &Pixels) -> Result<(usize, usize)> {
        let patch = self.spec.patch;
        let side = patch.size * patch.group;
        let square = match &self.spec.positions {
            PatchPositions::Learned { lines } => Some(lines.len() * patch.size),
            _ => None,
        };
        let fits =
            |length: usize| length > 0 && length.is_multiple_of(side) && square.is_none_or(|square| square == length);
        let elements = pixels.count * 3 * pixels.height * pixels.width;
        if !fits(pixels.height) || !fits(pixels.width) || pixels.count == 0 || pixels.planes.len() != elements {
            let limit = format!("sides are multiples of {side}, or all {square:?} pixels");
            return Err(ModelError::request("pixels", format!("{pixels:?}"), limit));
        }
        Ok((pixels.height / patch.size, pixels.width / patch.size))
    }

    /// Rows of a tile.
    fn places(&self, geometry: &Geometry) -> usize {
        geometry.places.len() + usize::from(self.spec.class_token == Bias::Present)
    }

    fn turns(&self, geometry: &Geometry, count: usize) -> Vec<[u32; 3]> {
        if self.ropes.is_empty() {
            return Vec::new();
        }
        let places = geometry.places.iter().map(|&(line, column)| [0, line as u32, column as u32]);
        std::iter::repeat_n(places, count).flatten().collect()
    }

    /// `[count * patches, hidden]`.
    fn embed(&self, pixels: &Pixels, geometry: &Geometry) -> Result<Tensor> {
        let patch = self.spec.patch;
        let mut rows = Vec::new();
        for tile in pixels.planes.chunks_exact(3 * pixels.height * pixels.width) {
            rows.extend(patches(tile, pixels.width, geometry, patch.size, patch.frames));
        }
        let count = pixels.count * geometry.places.len();
        let width = rows.len() / count;
        let rows = Tensor::from_vec(rows, (count, width), self.kernels.device())?;
        Ok(self.kernels.linear(&rows, &self.weights.patch)?)
    }

    /// Class tokens and what is added for places.
    fn place(&self, x: &Tensor, geometry: &Geometry, lines: (usize, usize), count: usize) -> Result<Tensor> {
        let device = x.device();
        let (patches, hidden) = (geometry.places.len(), self.spec.hidden_size);
        let mut x = x.reshape((count, patches, hidden))?;
        if let Some(class) = &self.weights.class_token {
            let class = class.reshape((1, 1, hidden))?.broadcast_as((count, 1, hidden))?;
            x = Tensor::cat(&[class, x], 1)?;
        }
        let rows = self.places(geometry);
        if let Some(table) = &self.weights.positions {
            let added = match &self.spec.positions {
                PatchPositions::Stretched { side } => {
                    let taps = stretched(geometry, lines, *side);
                    let ids: Vec<u32> = taps.iter().flatten().map(|tap| tap.0).collect();
                    let weights: Vec<f32> = taps.iter().flatten().map(|tap| tap.1).collect();
                    let found = table.index_select(&Tensor::from_vec(ids, 4 * patches, device)?, 0)?;
                    let weights = Tensor::from_vec(weights, (4 * patches, 1), device)?;
                    found.broadcast_mul(&weights)?.reshape((patches, 4, hidden))?.sum(1)?
                }
                PatchPositions::Learned { lines } => {
                    let ids = self.square(geometry, lines);
                    table.index_select(&Tensor::from_vec(ids, rows, device)?, 0)?
                }
                PatchPositions::Rotary => return Ok(x.reshape((count * rows, hidden))?),
            };
            x = x.broadcast_add(&added.reshape((1, rows, hidden))?)?;
        }
        Ok(x.reshape((count * rows, hidden))?)
    }

    /// Rows of the table of places for a square tile, the class token's first.
    fn square(&self, geometry: &Geometry, lines: &[usize]) -> Vec<u32> {
        let class = u32::from(self.spec.class_token == Bias::Present);
        let patches = geometry.places.iter().map(|&(line, column)| {
            let (line, column) = (lines[line], lines[column]);
            class + (line * lines.len() + column) as u32
        });
        (0..class).chain(patches).collect()
    }

    /// As `place`, for all tiles of an arrangement: `[tiles * places, hidden]`.
    fn place_tiles(&self, x: &Tensor, spec: &TileSpec, weights: &TileWeights, id: u32) -> Result<Tensor> {
        let hidden = self.spec.hidden_size;
        let (count, have) = (spec.count, x.dim(0)?);
        let learnt = |(table, factor): &(Linear, f32), rows: usize| -> Result<Tensor> {
            let found = self.kernels.embed(table, &[id])?.reshape((count, rows, hidden))?;
            Ok((found * f64::from(*factor))?)
        };
        let (Some(class), Some(table)) = (&self.weights.class_token, &self.weights.positions) else {
            return Err(ModelError::request("tiles", "no class token", "arrangements of tiles have one"));
        };
        let places = table.dim(0)?;
        let patches = places - 1;
        // Tiles the picture does not fill have pixels of 0, which patches without a bias leave at 0.
        let x = x.pad_with_zeros(0, 0, count * patches - have)?.reshape((count, patches, hidden))?;
        let x = x.broadcast_add(&learnt(&weights.before, 1)?)?;
        let class = class.reshape((1, 1, hidden))?.broadcast_as((count, 1, hidden))?;
        let x = Tensor::cat(&[class, x], 1)?;
        let plain = (table * f64::from(1.0 - weights.positions.1))?.reshape((1, places, hidden))?;
        let x = x.broadcast_add(&plain)?.broadcast_add(&learnt(&weights.positions, places)?)?;
        Ok(x.reshape((count * places, hidden))?)
    }

    fn between_stacks(&self, encoding: &Encoding, tiles: &TileSpec, tiling: &Tiling) -> Result<Tensor> {
        let step = Step { kernels: self.kernels.as_ref(), plan: &encoding.whole };
        let mut x = encoding.x.clone();
        if let Some(norm) = &self.weights.post_norm {
            x = step.norm(&x, norm)?;
        }
        if let Some(weights) = &self.weights.tiles {
            let (table, factor) = &weights.after;
            let rows = self.kernels.embed(table, &[tiling.id])?.reshape((tiles.count, self.spec.hidden_size))?;
            let of = Tensor::from_slice(&tiling.tiles, tiling.tiles.len(), x.device())?;
            x = (x + (rows.index_select(&of, 0)? * f64::from(*factor))?)?;
        }
        Ok(x)
    }
}

impl Tiling {
    fn new(spec: &TileSpec, tiles: (usize, usize), places: usize) -> Result<Self> {
        let Some(known) = spec.arrangements.iter().position(|&arrangement| arrangement == tiles) else {
            let limit = format!("{:?} are known", spec.arrangements);
            return Err(ModelError::request("tiles", format!("{tiles:?}"), limit));
        };
        let own = tiles.0 * tiles.1;
        let fill = places.next_multiple_of(spec.multiple) - places;
        let mut rows: Vec<u32> = (0..own as u32).flat_map(|tile| std::iter::repeat_n(tile, places)).collect();
        rows.extend((0..own as u32).flat_map(|tile| std::iter::repeat_n(tile, fill)));
        let mut order: Vec<u32> = (0..(own * places) as u32).collect();
        for tile in own..spec.count {
            let first = rows.len() as u32;
            order.extend(first..first + places as u32);
            rows.extend(std::iter::repeat_n(tile as u32, places + fill));
        }
        Ok(Self { id: known as u32 + 1, tiles: rows, order, visible: own * places })
    }

    /// For each row, the place (tile by tile) that it starts from; `zeros` is a row of zeros.
    fn rows(&self, zeros: usize) -> Vec<u32> {
        let mut rows = vec![zeros as u32; self.tiles.len()];
        self.order.iter().enumerate().for_each(|(place, &row)| rows[row as usize] = place as u32);
        rows
    }
}

/// Rows of groups in the order of their lines.
fn in_lines(rows: Tensor, encoding: &Encoding) -> Result<Tensor> {
    let Some(order) = encoding.geometry.in_lines() else { return Ok(rows) };
    let groups = order.len() as u32;
    let all: Vec<u32> =
        (0..encoding.count as u32).flat_map(|tile| order.iter().map(move |at| tile * groups + at)).collect();
    let len = all.len();
    Ok(rows.index_select(&Tensor::from_vec(all, len, rows.device())?, 0)?)
}

/// A batch of whole sequences, one after the other.
fn sequences(lengths: &[usize], turns: &[[u32; 3]]) -> ForwardBatch {
    let mut batch = ForwardBatch { query_start: vec![0], rope_positions: turns.to_vec(), ..ForwardBatch::default() };
    for &length in lengths {
        batch.positions.extend(0..length as u32);
        batch.query_start.push(batch.positions.len() as u32);
        batch.context_lens.push(length as u32);
    }
    batch.token_ids = vec![0; batch.positions.len()];
    batch
}
