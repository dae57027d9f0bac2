//! Zeroed memory in 64-byte lines for packed weights; large ones ask for huge pages, as decoding streams through them.

use candle_core::Result;

use crate::cpu::Pool;

/// From this size a buffer is a mapping of its own.
const LARGE: usize = 2 << 20;

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([u8; 64]);

/// Memory aligned to 64 bytes.
pub(super) enum Buffer {
    Small(Vec<Line>, usize),
    Large(memmap2::MmapMut),
}

impl Buffer {
    /// `len` zero bytes.
    pub(super) fn zeroed(len: usize) -> Result<Self> {
        if len < LARGE {
            return Ok(Self::Small(vec![Line([0; 64]); len.div_ceil(64)], len));
        }
        let map = memmap2::MmapMut::map_anon(len)?;
        // A kernel without huge pages serves small ones.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self::Large(map))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            // SAFETY: the lines are initialised bytes, at least `len` of them.
            Self::Small(lines, len) => unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), *len) },
            Self::Large(map) => map,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            // SAFETY: as in `bytes`, and borrowed mutably.
            Self::Small(lines, len) => unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), *len) },
            Self::Large(map) => map,
        }
    }

    /// Calls `fill(i, chunk i)` for every chunk of `size` bytes, on all threads of the pool.
    pub(super) fn fill_chunks(&mut self, pool: &Pool, size: usize, fill: &(dyn Fn(usize, &mut [u8]) + Sync)) {
        /// Chunks that one claim takes: packing a tile is short.
        const BATCH: usize = 8;
        let chunks: Vec<_> = self.bytes_mut().chunks_mut(size.max(1)).enumerate().collect();
        let batches = chunks.len().div_ceil(BATCH);
        let mut chunks = chunks.into_iter();
        let batches: Vec<std::sync::Mutex<Vec<_>>> =
            (0..batches).map(|_| std::sync::Mutex::new(chunks.by_ref().take(BATCH).collect())).collect();
        pool.run(batches.len(), &|batch| {
            let mut batch = batches[batch].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for (index, chunk) in batch.iter_mut() {
                fill(*index, chunk);
            }
        });
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("len", &self.bytes().len()).finish()
    }
}
