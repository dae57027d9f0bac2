//! Host memory that the device reads and writes by itself, so that the host waits for neither. Knows words, not what they mean.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result::{memcpy_dtoh_async, memcpy_htod_async};
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice};

use crate::PendingTokens;

/// Uploads that may be under way at once: that of the running step and of the next.
const UPLOADS: usize = 2;
/// Plain page-locked memory: the host reads it too.
const READABLE: u32 = 0;

/// Page-locked words, and when their last copy was made.
#[derive(Debug)]
struct Pinned {
    words: PinnedHostSlice<u32>,
    copied: CudaEvent,
}

impl Pinned {
    fn new(stream: &CudaStream, words: usize) -> Result<Self> {
        let context = stream.context();
        // SAFETY: unset memory, of which only what was written or copied is read.
        let words = unsafe { context.alloc_pinned_with_flags(words.next_power_of_two(), READABLE) }.w()?;
        Ok(Self { words, copied: context.new_event(None).w()? })
    }

    /// The words once the copy that was queued has been made.
    fn settled(&mut self) -> Result<&mut [u32]> {
        self.copied.synchronize().w()?;
        self.words.as_mut_slice().w()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The copy is under way; a device that has failed copies nothing any more.
        let _ = self.copied.synchronize();
    }
}

/// Page-locked memory, kept between steps: to take some waits for the device.
#[derive(Debug)]
pub(super) struct Staging {
    stream: Arc<CudaStream>,
    /// The next to be written over is the first.
    uploads: Mutex<Vec<Pinned>>,
    downloads: Arc<Mutex<Vec<Pinned>>>,
}

impl Staging {
    pub fn new(stream: Arc<CudaStream>) -> Self {
        Self { stream, uploads: Mutex::default(), downloads: Arc::default() }
    }

    /// Queues the copy of words to `to`.
    ///
    /// # Safety
    /// `to` is the address of at least as many words of the device, which live until the copy is made.
    pub unsafe fn write(&self, to: u64, words: &[u32]) -> Result<()> {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut from = if uploads.len() < UPLOADS { None } else { Some(uploads.remove(0)) };
        let from = match from.take_if(|from| from.words.len() >= words.len()) {
            Some(from) => from,
            None => Pinned::new(&self.stream, words.len())?,
        };
        uploads.push(from);
        let Some(from) = uploads.last_mut() else { return Ok(()) };
        let source = &mut from.settled()?[..words.len()];
        source.copy_from_slice(words);
        // SAFETY: the caller's of `to`; the source is kept, and left alone until `copied` says that it was read.
        unsafe { memcpy_htod_async(to, source, self.stream.cu_stream()) }.w()?;
        from.copied.record(&self.stream).w()
    }

    /// Queues the copy of `words` words from `from`.
    ///
    /// # Safety
    /// `from` is the address of as many words of the device, which live until the copy is made.
    pub unsafe fn read_later(&self, from: u64, words: usize) -> Result<Box<dyn PendingTokens>> {
        let kept = self.downloads.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut to = match kept.filter(|to| to.words.len() >= words) {
            Some(to) => to,
            None => Pinned::new(&self.stream, words)?,
        };
        let target = &mut to.settled()?[..words];
        // SAFETY: the caller's of `from`; the target is kept, and not read before `copied` says that it was written.
        unsafe { memcpy_dtoh_async(target, from, self.stream.cu_stream()) }.w()?;
        to.copied.record(&self.stream).w()?;
        Ok(Box::new(Download { to: Some(to), words, kept: self.downloads.clone() }))
    }
}

/// A copy to the host that is under way.
#[derive(Debug)]
struct Download {
    /// There until this is dropped.
    to: Option<Pinned>,
    words: usize,
    kept: Arc<Mutex<Vec<Pinned>>>,
}

impl PendingTokens for Download {
    fn wait(mut self: Box<Self>) -> Result<Vec<u32>> {
        let Some(to) = &mut self.to else { return Ok(Vec::new()) };
        Ok(to.settled()?[..self.words].to_vec())
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).extend(self.to.take());
    }
}
