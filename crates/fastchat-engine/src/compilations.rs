//! Compilations of constraints within a time limit, each on a thread of its own: a grammar can be written so that it takes
//! minutes, and the compiler cannot be interrupted. Knows neither grammars nor tokens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::EngineError;

/// Longest compilation somebody waits for; ordinary schemas take a millisecond.
const LIMIT: Duration = Duration::from_secs(2);
/// Compilations at a time; each keeps a core busy and holds its own memory, whether somebody waits for it or not.
const MAX_RUNNING: usize = 2;

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotCompiled {
    /// It takes longer than this.
    TooLong(Duration),
    /// As many others as may run are running, and none ended in time.
    Busy(usize),
    /// The system has no thread, or the compiler panicked.
    Failed,
}

impl NotCompiled {
    /// The same to the client, of the constraint called `name`.
    pub fn error(self, name: &str) -> EngineError {
        match self {
            Self::TooLong(limit) => {
                let message = format!("{name}: compiling it takes longer than the limit of {limit:?}");
                EngineError::invalid("structured", message)
            }
            Self::Busy(running) => {
                let message = format!("{running} constraints are being compiled, the limit is {MAX_RUNNING}");
                EngineError::Overloaded(message)
            }
            Self::Failed => EngineError::Internal(format!("{name}: compiling it failed")),
        }
    }
}

/// One engine's compilations.
#[derive(Debug)]
pub(crate) struct Compilations {
    limit: Duration,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    count: Mutex<Count>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Count {
    running: usize,
    /// Of those, how many nobody waits for any more.
    left: usize,
}

/// A running compilation, held by its thread; counted until it ends, also when it panics.
struct Place {
    shared: Arc<Shared>,
    left: Arc<AtomicBool>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut count = self.shared.count.lock();
        count.running -= 1;
        count.left -= usize::from(self.left.load(Ordering::Relaxed));
        self.shared.ended.notify_one();
    }
}

impl Default for Compilations {
    fn default() -> Self {
        Self { limit: LIMIT, shared: Arc::default() }
    }
}

impl Compilations {
    /// What `work` returns, if it does so in time; otherwise its thread goes on, and its result is dropped.
    ///
    /// # Errors
    /// See [`NotCompiled`]; at once where all that may run are running on with nobody waiting.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, NotCompiled> {
        let deadline = Instant::now() + self.limit;
        let place = self.enter(deadline)?;
        let left = place.left.clone();
        let (done, result) = sync_channel(1);
        let work = move || {
            let _place = place;
            // Nobody may be waiting any more.
            let _ = done.send(work());
        };
        let thread = std::thread::Builder::new().name("fastchat-grammar".to_owned()).spawn(work);
        thread.map_err(|_| NotCompiled::Failed)?;
        match result.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(value) => Ok(value),
            Err(RecvTimeoutError::Disconnected) => Err(NotCompiled::Failed),
            Err(RecvTimeoutError::Timeout) => {
                // The thread leaves under the same lock: either its result is here, or it will see that it was left.
                let mut count = self.shared.count.lock();
                if let Ok(value) = result.try_recv() {
                    return Ok(value);
                }
                left.store(true, Ordering::Relaxed);
                count.left += 1;
                Err(NotCompiled::TooLong(self.limit))
            }
        }
    }

    fn enter(&self, deadline: Instant) -> Result<Place, NotCompiled> {
        let mut count = self.shared.count.lock();
        while count.running >= MAX_RUNNING {
            let hopeless = count.left >= MAX_RUNNING;
            if hopeless || self.shared.ended.wait_until(&mut count, deadline).timed_out() {
                return Err(NotCompiled::Busy(count.running));
            }
        }
        count.running += 1;
        Ok(Place { shared: self.shared.clone(), left: Arc::default() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    fn short() -> Compilations {
        Compilations { limit: Duration::from_millis(50), shared: Arc::default() }
    }

    /// A compilation that takes until its sender is dropped.
    fn slow() -> (Sender<()>, impl FnOnce() -> usize + Send + 'static) {
        let (end, ends): (Sender<()>, Receiver<()>) = channel();
        (end, move || ends.iter().count())
    }

    fn until(what: impl Fn() -> bool) {
        let began = Instant::now();
        while !what() {
            assert!(began.elapsed() < Duration::from_mins(1));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn what_takes_too_long_is_left_and_counted_until_it_ends() {
        let compilations = short();
        let (first, work) = slow();
        assert_eq!(compilations.run(work), Err(NotCompiled::TooLong(Duration::from_millis(50))));
        assert_eq!(compilations.run(|| 7), Ok(7), "one more may run");
        let (second, work) = slow();
        assert!(matches!(compilations.run(work), Err(NotCompiled::TooLong(_))));
        let began = Instant::now();
        assert_eq!(compilations.run(|| 7), Err(NotCompiled::Busy(2)));
        assert!(began.elapsed() < Duration::from_millis(50), "nobody waits for what nobody waits for");
        drop(first);
        until(|| compilations.run(|| 7) == Ok(7));
        drop(second);
        until(|| compilations.shared.count.lock().running == 0);
        assert_eq!(compilations.shared.count.lock().left, 0);
    }

    #[test]
    fn a_client_is_told_the_limit_it_met() {
        let error = NotCompiled::TooLong(LIMIT).error("regex");
        let message = "regex: compiling it takes longer than the limit of 2s";
        assert_eq!(error, EngineError::invalid("structured", message));
        let busy = NotCompiled::Busy(2).error("regex");
        assert!(matches!(&busy, EngineError::Overloaded(message) if message.contains("limit is 2")), "{busy}");
    }

    #[test]
    fn many_at_once_are_never_more_than_may_run() {
        let compilations = Compilations { limit: Duration::from_mins(1), shared: Arc::default() };
        let most = Mutex::new(0);
        std::thread::scope(|scope| {
            for number in 0..16 {
                let (compilations, most) = (&compilations, &most);
                scope.spawn(move || {
                    let shared = compilations.shared.clone();
                    let running = compilations.run(move || {
                        std::thread::yield_now();
                        (number, shared.count.lock().running)
                    });
                    let (number_back, running) = running.unwrap();
                    assert_eq!(number_back, number);
                    let mut most = most.lock();
                    *most = running.max(*most);
                });
            }
        });
        assert!((1..=MAX_RUNNING).contains(&most.into_inner()));
        until(|| compilations.shared.count.lock().running == 0);
    }

    #[test]
    fn waiting_for_a_place_counts_towards_the_limit() {
        let patient = Compilations { limit: Duration::from_mins(1), shared: Arc::default() };
        let hurried = Compilations { limit: Duration::from_millis(20), shared: patient.shared.clone() };
        let ((first, one), (second, two)) = (slow(), slow());
        std::thread::scope(|scope| {
            let threads = [scope.spawn(|| patient.run(one)), scope.spawn(|| patient.run(two))];
            until(|| patient.shared.count.lock().running == MAX_RUNNING);
            assert_eq!(hurried.run(|| 7), Err(NotCompiled::Busy(2)));
            drop((first, second));
            assert!(threads.into_iter().all(|thread| thread.join().unwrap() == Ok(0)));
        });
    }

    #[test]
    fn a_panic_is_a_failure_that_frees_its_place() {
        let compilations = short();
        for _ in 0..4 {
            let failed: Result<(), _> = compilations.run(|| std::panic::resume_unwind(Box::new("broken")));
            assert_eq!(failed, Err(NotCompiled::Failed));
        }
        until(|| compilations.shared.count.lock().running == 0);
    }
}
