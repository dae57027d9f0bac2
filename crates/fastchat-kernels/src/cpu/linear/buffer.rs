//! Zeroed memory in 64-byte lines for packed weights. Decoding streams through all weights for every token, so they lie
//! side by side in regions that ask for huge pages: address translation then costs a tenth less of the bandwidth.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, bail};
use memmap2::{MmapMut, MmapRaw};

use crate::cpu::Pool;

/// Address space reserved at once; pages not written are not resident.
const REGION: usize = 64 << 20;
/// Alignment of every buffer.
const LINE: usize = 64;

/// Where a backend's weights lie.
#[derive(Debug, Default)]
pub(crate) struct Arena(Mutex<Option<Region>>);

/// A mapping of which the first `used` bytes belong to buffers. It is unmapped with the last of them.
#[derive(Debug)]
struct Region {
    map: Arc<MmapRaw>,
    used: usize,
}

/// A piece of a region, of which nobody else has a part.
#[derive(Debug)]
pub(super) struct Buffer {
    map: Arc<MmapRaw>,
    start: usize,
    len: usize,
}

impl Region {
    fn new(len: usize) -> Result<Self> {
        let map = MmapMut::map_anon(len.max(REGION))?;
        // A system without huge pages serves small ones.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map: Arc::new(MmapRaw::from(map)), used: 0 })
    }
}

impl Arena {
    /// `len` zero bytes.
    pub(super) fn zeroed(&self, len: usize) -> Result<Buffer> {
        let Some(size) = len.checked_next_multiple_of(LINE) else { bail!("a weight of {len} bytes") };
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut region = match current.take() {
            Some(region) if size <= region.map.len() - region.used => region,
            _ => Region::new(size)?,
        };
        let buffer = Buffer { map: region.map.clone(), start: region.used, len };
        region.used += size;
        *current = Some(region);
        Ok(buffer)
    }
}

impl Buffer {
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the range was reserved for this buffer alone, lies in the mapping it keeps alive, and was zeroed by the
        // system; it is written only through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.start), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(self.start), self.len) }
    }

    /// Calls `fill(i, chunk i)` for every chunk of `size` bytes, on all threads of the pool.
    pub(super) fn fill_chunks(&mut self, pool: &Pool, size: usize, fill: &(dyn Fn(usize, &mut [u8]) + Sync)) {
        share(pool, self.bytes_mut().chunks_mut(size.max(1)), &|i, chunk| fill(i, chunk));
    }
}

/// Calls `fill(i, chunk i of the first, chunk i of the second)` for chunks of two buffers, each with its size in bytes, on
/// all threads of the pool.
pub(super) fn fill_pairs(
    pool: &Pool,
    first: (&mut Buffer, usize),
    second: (&mut Buffer, usize),
    fill: &(dyn Fn(usize, [&mut [u8]; 2]) + Sync),
) {
    let [first, second] = [first, second].map(|(buffer, size)| buffer.bytes_mut().chunks_mut(size.max(1)));
    share(pool, first.zip(second), &|i, (first, second)| fill(i, [first, second]));
}

/// Calls `f(i, item i)` on all threads of the pool.
fn share<T: Send>(pool: &Pool, items: impl Iterator<Item = T>, f: &(dyn Fn(usize, &mut T) + Sync)) {
    /// Items that one claim takes: packing a tile is short.
    const BATCH: usize = 8;
    let mut items = items.enumerate().peekable();
    let mut batches = Vec::new();
    while items.peek().is_some() {
        batches.push(Mutex::new(items.by_ref().take(BATCH).collect::<Vec<_>>()));
    }
    pool.run(batches.len(), &|batch| {
        let mut batch = batches[batch].lock().unwrap_or_else(PoisonError::into_inner);
        for (index, item) in batch.iter_mut() {
            f(*index, item);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::{Arena, REGION};
    use crate::cpu::Pool;

    #[test]
    fn buffers_are_zeroed_aligned_and_apart() {
        let (arena, pool) = (Arena::default(), Pool::new(2));
        let lens = [1, 64, 0, 1000, REGION + 1, 65];
        let mut buffers: Vec<_> = lens.iter().map(|&len| arena.zeroed(len).unwrap()).collect();
        for (i, buffer) in buffers.iter_mut().enumerate() {
            assert_eq!(buffer.bytes().len(), lens[i]);
            assert!(buffer.bytes().as_ptr().addr().is_multiple_of(64));
            assert!(buffer.bytes().iter().all(|&byte| byte == 0));
            buffer.fill_chunks(&pool, 100, &|_, chunk| chunk.fill(i as u8 + 1));
        }
        drop(arena);
        for (i, buffer) in buffers.iter().enumerate() {
            assert!(buffer.bytes().iter().all(|&byte| byte == i as u8 + 1));
        }
    }
}
