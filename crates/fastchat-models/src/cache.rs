//! The caches of all layers of a decoder: which layer needs which kind, and how many bytes a block and a slot cost.
//! Which sequence owns which block is decided elsewhere.

use candle_core::{DType, Device, Tensor};
use fastchat_kernels::{KvCache, KvLayout, StateCache, StateLayout};
use half::{bf16, f16};

use crate::ModelError;
use crate::spec::{DecoderSpec, Mixer};

/// The paged keys and values and the recurrent state slots of every layer.
#[derive(Debug)]
pub struct Cache {
    pub(crate) num_blocks: usize,
    pub(crate) num_state_slots: usize,
    pub(crate) layers: Vec<LayerCache>,
}

/// What one layer keeps between steps.
#[derive(Debug)]
pub(crate) enum LayerCache {
    Kv(KvCache),
    State(StateCache),
    /// Nothing: what it attends to belongs to pictures.
    Nothing,
}

/// Sizes of what one layer keeps.
pub(crate) enum Layout {
    Kv(KvLayout),
    State(StateLayout),
    Nothing,
}

/// What the layer of `mixer` keeps, with keys and values of type `dtype`.
pub(crate) fn layout(mixer: &Mixer, dtype: DType) -> Layout {
    match mixer {
        Mixer::Attention(a) => {
            Layout::Kv(KvLayout { num_kv_heads: a.kv_heads, head_dim: a.head_dim, v_head_dim: a.head_dim, dtype })
        }
        // Latent and rotated key side by side; the values are the latent itself.
        Mixer::Mla(m) => {
            Layout::Kv(KvLayout { num_kv_heads: 1, head_dim: m.kv_lora_rank + m.rope_dim, v_head_dim: 0, dtype })
        }
        Mixer::GatedDeltaNet(d) => Layout::State(StateLayout {
            conv_channels: d.conv_channels(),
            conv_taps: d.conv_taps,
            num_v_heads: d.v_heads,
            k_head_dim: d.k_dim,
            v_head_dim: d.v_dim,
        }),
        Mixer::Cross(_) => Layout::Nothing,
    }
}

/// Bytes of one block, over all layers.
pub(crate) fn bytes_per_block(spec: &DecoderSpec, dtype: DType) -> usize {
    let bytes = |mixer: &Mixer| match layout(mixer, dtype) {
        Layout::Kv(layout) => layout.bytes_per_block(),
        Layout::State(_) | Layout::Nothing => 0,
    };
    spec.layers.iter().map(|layer| bytes(&layer.mixer)).sum()
}

/// Bytes of one state slot, over all layers.
pub(crate) fn bytes_per_state_slot(spec: &DecoderSpec) -> usize {
    let bytes = |mixer: &Mixer| match layout(mixer, DType::F32) {
        Layout::Kv(_) | Layout::Nothing => 0,
        Layout::State(layout) => layout.bytes_per_slot(),
    };
    spec.layers.iter().map(|layer| bytes(&layer.mixer)).sum()
}

impl Cache {
    /// Zeroed caches for every layer of `spec`.
    pub(crate) fn new(
        spec: &DecoderSpec,
        (num_blocks, num_state_slots): (usize, usize),
        dtype: DType,
        device: &Device,
    ) -> Result<Self, ModelError> {
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(ModelError::request("kv_dtype", format!("{dtype:?}"), "f32, f16 and bf16 are supported"));
        }
        // Cache slots and blocks are u32 in a batch.
        let most = u32::MAX as usize / fastchat_kernels::BLOCK_SIZE;
        if num_blocks > most || bytes_per_block(spec, dtype).checked_mul(num_blocks).is_none() {
            return Err(ModelError::request("num_blocks", num_blocks, format!("at most {most}")));
        }
        if bytes_per_state_slot(spec).checked_mul(num_state_slots).is_none() {
            return Err(ModelError::request("num_state_slots", num_state_slots, "more than memory can address"));
        }
        let layer = |mixer: &Mixer| {
            Ok(match layout(mixer, dtype) {
                Layout::Kv(layout) => LayerCache::Kv(KvCache::new(layout, num_blocks, device)?),
                Layout::State(layout) => LayerCache::State(StateCache::new(layout, num_state_slots, device)?),
                Layout::Nothing => LayerCache::Nothing,
            })
        };
        let layers = spec.layers.iter().map(|l| layer(&l.mixer)).collect::<Result<_, ModelError>>()?;
        Ok(Self { num_blocks, num_state_slots, layers })
    }

    /// Blocks in every attention layer.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Keys and values of one block in all layers, in the cache's own layout and type.
    ///
    /// # Errors
    /// The device's error.
    pub fn read_block(&self, block: usize) -> Result<Vec<u8>, ModelError> {
        let mut bytes = Vec::new();
        for part in self.parts() {
            // A copy of its own: a device copies the whole storage to the host otherwise.
            let part = part.narrow(0, block, 1)?.force_contiguous()?.flatten_all()?;
            match part.dtype() {
                DType::F32 => part.to_vec1::<f32>()?.iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes())),
                DType::F16 => part.to_vec1::<f16>()?.iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes())),
                _ => part.to_vec1::<bf16>()?.iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes())),
            }
        }
        Ok(bytes)
    }

    /// Fills one block of all layers with what `read_block` gave.
    ///
    /// # Errors
    /// Bytes of another length, or the device's error.
    pub fn write_block(&self, block: usize, bytes: &[u8]) -> Result<(), ModelError> {
        let all: usize = self.parts().map(|part| part.elem_count() * part.dtype().size_in_bytes()).sum();
        let expected = all / self.num_blocks.max(1);
        if bytes.len() != expected {
            return Err(ModelError::request("block", bytes.len(), format!("a block has {expected} bytes")));
        }
        let mut rest = bytes;
        for part in self.parts() {
            let shape = part.narrow(0, block, 1)?.shape().clone();
            let (own, after) = rest.split_at(shape.elem_count() * part.dtype().size_in_bytes());
            part.slice_set(&Tensor::from_raw_buffer(own, part.dtype(), shape.dims(), part.device())?, 0, block)?;
            rest = after;
        }
        Ok(())
    }

    fn parts(&self) -> impl Iterator<Item = &Tensor> {
        self.layers
            .iter()
            .flat_map(|layer| match layer {
                LayerCache::Kv(kv) => [Some(&kv.k), kv.v.as_ref()],
                LayerCache::State(_) | LayerCache::Nothing => [None, None],
            })
            .flatten()
    }

    /// State slots in every recurrent layer.
    pub fn num_state_slots(&self) -> usize {
        self.num_state_slots
    }
}
