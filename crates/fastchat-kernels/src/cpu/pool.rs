//! An owned pool of threads that spin between operations, so that handing out work costs a microsecond, and sleep when
//! there is none for a while. Knows only numbered chunks.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle worker spins before it sleeps: longer than the gaps within a step on a slow machine, where waking takes
/// a tenth of a millisecond too, and shorter than a step.
const SPIN: Duration = Duration::from_micros(400);
/// Looks at what there is to do between two looks at the clock.
const SPINS: usize = 32;

/// Threads that share the chunks of one operation at a time.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the thread whose operation runs; whoever finds it taken works alone.
    owner: Mutex<()>,
}

type Chunk<'a> = dyn Fn(usize) + Sync + 'a;

struct Shared {
    /// `operation number << 32 | chunks not yet claimed`. A chunk is claimed by counting down, which fails once the next
    /// operation has begun: a worker that wakes late cannot touch what it was not asked to.
    tickets: AtomicU64,
    /// Chunks not yet finished.
    unfinished: AtomicUsize,
    /// The running operation and its number of chunks. Written only by the owner while no chunk is unfinished, read only
    /// by holders of a claimed chunk.
    job: UnsafeCell<Option<(*const Chunk<'static>, usize)>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleeping: Vec<AtomicBool>,
    stop: AtomicBool,
}

// SAFETY: `job` is written only while nobody can hold a chunk and read only by holders of one; the chunk function is `Sync`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Pool {
    /// A pool in which `threads` threads work, the caller among them.
    pub fn new(threads: usize) -> Self {
        let extra = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            tickets: AtomicU64::new(0),
            unfinished: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            sleeping: (0..extra).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
        });
        let spawn = |index| {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("kernels-{index}")).spawn(move || shared.work(index)).ok()
        };
        // A system that refuses threads gets a smaller pool.
        let workers = (0..extra).map_while(spawn).collect();
        Self { shared, workers, owner: Mutex::new(()) }
    }

    /// Threads that work, the caller among them.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f(0) .. f(chunks - 1)`, each once, on some thread, and returns when all have returned. A call from inside
    /// a chunk, or while another thread's operation runs, is served by the calling thread alone.
    ///
    /// # Panics
    /// With the panic of a chunk.
    pub fn run(&self, chunks: usize, f: &Chunk<'_>) {
        let owner = match self.owner.try_lock() {
            Ok(owner) => Some(owner),
            Err(TryLockError::Poisoned(owner)) => Some(owner.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if owner.is_none() || chunks < 2 || self.workers.is_empty() || u32::try_from(chunks).is_err() {
            drop(owner);
            return (0..chunks).for_each(f);
        }
        let shared = &*self.shared;
        let erased: *const Chunk<'_> = f;
        #[allow(clippy::transmute_ptr_to_ptr)] // a cast may not lengthen a lifetime
        // SAFETY: only the lifetime changes. The pointer is used by holders of a chunk of this operation, and this
        // function does not return before `unfinished` says that there are none.
        let erased: *const Chunk<'static> = unsafe { std::mem::transmute(erased) };
        // SAFETY: `owner` is held and the operation before has no unfinished chunk, so nobody reads `job`.
        unsafe { *shared.job.get() = Some((erased, chunks)) };
        shared.unfinished.store(chunks, Relaxed);
        let number = (shared.tickets.load(Relaxed) >> 32) + 1;
        shared.tickets.store(number << 32 | chunks as u64, SeqCst);
        for (sleeping, worker) in shared.sleeping.iter().zip(&self.workers) {
            if sleeping.load(SeqCst) && sleeping.swap(false, SeqCst) {
                worker.thread().unpark();
            }
        }
        while shared.step() {}
        let mut spins = 0u32;
        while shared.unfinished.load(Acquire) != 0 {
            // A worker that lost its processor in the middle of a chunk may need ours.
            spins += 1;
            if spins.is_multiple_of(1 << 14) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        let panic = shared.panic.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        drop(owner);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Shared {
    /// Claims and does one chunk; false when there was none to claim.
    fn step(&self) -> bool {
        let mut tickets = self.tickets.load(Acquire);
        loop {
            if tickets as u32 == 0 {
                return false;
            }
            match self.tickets.compare_exchange_weak(tickets, tickets - 1, AcqRel, Acquire) {
                Ok(_) => break,
                Err(now) => tickets = now,
            }
        }
        // SAFETY: a chunk is claimed and unfinished, so `job` is set and not written, and what it points to is alive.
        let (job, chunks) = unsafe { (*self.job.get()).map(|(job, chunks)| (&*job, chunks)) }
            .expect("a claimed chunk belongs to a job; this is a bug");
        let index = chunks - tickets as u32 as usize;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(index))) {
            self.panic.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(panic);
        }
        self.unfinished.fetch_sub(1, Release);
        true
    }

    fn work(&self, index: usize) {
        let mut idle_since = None;
        loop {
            if self.step() {
                idle_since = None;
                continue;
            }
            if self.stop.load(Relaxed) {
                return;
            }
            for _ in 0..SPINS {
                std::hint::spin_loop();
                if self.tickets.load(Relaxed) as u32 != 0 {
                    break;
                }
            }
            if idle_since.get_or_insert_with(Instant::now).elapsed() < SPIN {
                continue;
            }
            self.sleeping[index].store(true, SeqCst);
            // Whoever publishes work after this look sees the flag.
            if self.tickets.load(SeqCst) as u32 == 0 && !self.stop.load(SeqCst) {
                std::thread::park();
            }
            self.sleeping[index].store(false, SeqCst);
            idle_since = None;
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its chunks; it has nothing to tell.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::time::Duration;

    use super::Pool;

    #[test]
    fn every_chunk_runs_once() {
        let pool = Pool::new(4);
        for chunks in (0..300).chain([1, 2, 5000]) {
            let counts: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(chunks, &|index| {
                counts[index].fetch_add(1, Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Relaxed) == 1));
        }
    }

    #[test]
    fn sleeping_workers_wake() {
        let pool = Pool::new(2);
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(5));
            // Needs both threads at once: each chunk waits for the other.
            let barrier = std::sync::Barrier::new(2);
            pool.run(2, &|_| {
                barrier.wait();
            });
        }
    }

    #[test]
    fn nested_and_concurrent_calls_are_served() {
        let pool = Pool::new(3);
        let count = AtomicUsize::new(0);
        let add = |_| {
            count.fetch_add(1, Relaxed);
        };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(7, &|_| pool.run(3, &add));
                    }
                });
            }
        });
        assert_eq!(count.load(Relaxed), 3 * 200 * 21);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let run = || pool.run(8, &|index| assert!(index != 3, "third"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
        let count = AtomicUsize::new(0);
        pool.run(8, &|_| {
            count.fetch_add(1, Relaxed);
        });
        assert_eq!(count.load(Relaxed), 8);
    }
}
