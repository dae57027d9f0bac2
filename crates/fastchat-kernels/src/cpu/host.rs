//! Host memory of tensors, and how threads share the rows of a result.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, Error, InplaceOp1, Layout, Result, Storage, Tensor, WithDType, bail};

use super::Pool;
use super::simd::Element;

/// Buffers between two uses: what a step needed, the next one needs too, and its pages are there.
#[derive(Debug, Default)]
pub(super) struct Spare<T>(Mutex<Vec<T>>);

impl<T: Default> Spare<T> {
    /// Calls `f` with a buffer of before, whose contents are left over, or a new one.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = lock().pop().unwrap_or_default();
        let result = f(&mut buffer);
        lock().push(buffer);
        result
    }
}

/// `len` elements as `fill` leaves them: nobody zeroes first what is written anyway.
///
/// # Safety
/// A `fill` that succeeds has written every element; it reads none before that.
pub(super) unsafe fn filled<T: Copy>(len: usize, fill: impl FnOnce(&Disjoint<T>) -> Result<()>) -> Result<Vec<T>> {
    let mut elements = Vec::with_capacity(len);
    fill(&Disjoint { start: elements.as_mut_ptr(), len, owner: PhantomData })?;
    // SAFETY: the capacity is there, and the caller has filled it.
    unsafe { elements.set_len(len) };
    Ok(elements)
}

/// Rows of `width` as `f(rows, their elements)` leaves them, shared among threads as `for_rows` does.
///
/// # Safety
/// `f` writes every element it is given, and reads none before it is written.
pub(super) unsafe fn filled_rows(
    pool: &Pool,
    (rows, width): (usize, usize),
    f: impl Fn(Range<usize>, &mut [f32]) + Sync,
) -> Result<Vec<f32>> {
    let fill = |out: &Disjoint<f32>| {
        for_rows(pool, rows, width, |range| {
            // SAFETY: the ranges of `for_rows` are disjoint.
            let out = unsafe { out.piece(range.start * width..range.end * width) };
            f(range, out);
        });
        Ok(())
    };
    // SAFETY: the ranges cover all rows; the rest is the caller's promise.
    unsafe { filled(rows * width, fill) }
}

/// Elements below which an operation stays on the calling thread: waking another costs as much.
pub(super) const SERIAL: usize = 16 * 1024;

/// Elements of a contiguous tensor, given what `storage_and_layout` returns.
pub(super) fn slice<'a, T: WithDType>(storage: &'a Storage, layout: &Layout) -> Result<&'a [T]> {
    let Storage::Cpu(storage) = storage else { bail!("the CPU kernels were given a tensor of another device") };
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("the CPU kernels need contiguous tensors") };
    Ok(&storage.as_slice::<T>()?[start..end])
}

/// Calls `f` with the elements of a contiguous tensor, to be changed in place.
pub(super) fn in_place<T: Element>(tensor: &Tensor, f: impl FnOnce(&mut [T]) -> Result<()>) -> Result<()> {
    /// The closure runs once; candle asks for a shared reference.
    struct InPlace<T, F>(Mutex<Option<F>>, PhantomData<fn(T)>);

    impl<T: Element, F: FnOnce(&mut [T]) -> Result<()>> InplaceOp1 for InPlace<T, F> {
        fn name(&self) -> &'static str {
            "in-place"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let Some((start, end)) = layout.contiguous_offsets() else { bail!("caches are contiguous") };
            let f = self.0.lock().map_err(|_| Error::Msg("a cache write panicked".to_owned()))?.take();
            let Some(f) = f else { return Ok(()) };
            match T::stored(storage) {
                Some(slice) => f(&mut slice[start..end]),
                None => bail!("the cache does not hold {:?}", T::DTYPE),
            }
        }
    }
    tensor.inplace_op1(&InPlace(Mutex::new(Some(f)), PhantomData))
}

/// Memory that threads change in disjoint pieces.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `piece`, whose callers promise disjoint ranges.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), owner: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No two pieces that overlap may be alive at the same time.
    #[allow(clippy::mut_from_ref)] // that is its purpose
    #[inline(always)]
    pub(crate) unsafe fn piece(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a piece leaves its memory; this is a bug");
        // SAFETY: inside the slice this was made from; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// Calls `f(rows)` for ranges that cover `0 .. rows`, on several threads when `rows * width` elements are worth it.
pub(crate) fn for_rows(pool: &Pool, rows: usize, width: usize, f: impl Fn(Range<usize>) + Sync) {
    let threads = pool.threads();
    if threads == 1 || rows < 2 || rows * width < SERIAL {
        return f(0..rows);
    }
    // A few pieces per thread even out what the threads lose to others.
    let step = rows.div_ceil(4 * threads).max((SERIAL / 4).div_ceil(width.max(1)));
    pool.run(rows.div_ceil(step), &|i| f(i * step..((i + 1) * step).min(rows)));
}

/// Asks the memory for bytes that will be read soon, into the second-level cache. Does nothing on other processors.
#[inline]
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
pub(super) fn ask_for(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint; every x86-64 processor has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
}
