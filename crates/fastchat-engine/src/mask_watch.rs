//! The deadline of masks: a thread that cancels what takes too long. Knows neither grammars nor requests.

use std::sync::{Arc, OnceLock, Weak};
use std::thread::{JoinHandle, Thread, park, park_timeout};
use std::time::{Duration, Instant};

use llguidance::CancellationHandle;
use parking_lot::Mutex;

/// Looks without work before the thread sleeps until there is some.
const QUIET_LOOKS: u32 = 8;
/// Looks per deadline.
const LOOKS: u32 = 8;

/// One engine's watch.
#[derive(Debug)]
pub(crate) struct MaskWatch {
    limit: Duration,
    open: Mutex<Open>,
    thread: OnceLock<Thread>,
}

#[derive(Debug, Default)]
struct Open {
    /// Number, deadline and what to cancel.
    works: Vec<(u64, Instant, CancellationHandle)>,
    next: u64,
    /// Whether something began since the last look.
    stirred: bool,
    asleep: bool,
}

impl MaskWatch {
    /// A watch with its thread. Without one nothing is cancelled on its way, only refused at its end.
    pub fn new(limit: Duration) -> Arc<Self> {
        let watch = Arc::new(Self { limit, open: Mutex::default(), thread: OnceLock::new() });
        let weak = Arc::downgrade(&watch);
        let look = (limit / LOOKS).clamp(Duration::from_millis(1), Duration::from_millis(100));
        let started: std::io::Result<JoinHandle<()>> =
            std::thread::Builder::new().name("fastchat-watch".to_owned()).spawn(move || keep(&weak, look));
        if let Ok(thread) = started {
            // Set once, here.
            let _ = watch.thread.set(thread.thread().clone());
        }
        watch
    }

    /// The deadline.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Does `work`, and asks `handle` to cancel it when it takes too long. How long it took.
    pub fn during<T>(&self, handle: Option<CancellationHandle>, work: impl FnOnce() -> T) -> (T, Duration) {
        let began = Instant::now();
        let number = handle.map(|handle| self.begin(began + self.limit, handle));
        let done = work();
        if let Some(number) = number {
            self.open.lock().works.retain(|work| work.0 != number);
        }
        (done, began.elapsed())
    }

    fn begin(&self, until: Instant, handle: CancellationHandle) -> u64 {
        let mut open = self.open.lock();
        open.next += 1;
        open.stirred = true;
        let number = open.next;
        open.works.push((number, until, handle));
        if std::mem::take(&mut open.asleep)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
        number
    }

    /// Cancels what is late. Returns whether there is a reason to look again; if not, the next work wakes the thread.
    fn look(&self, quiet: &mut u32) -> bool {
        let mut open = self.open.lock();
        let now = Instant::now();
        open.works.iter().filter(|work| work.1 <= now).for_each(|work| work.2.cancel());
        *quiet = if std::mem::take(&mut open.stirred) || !open.works.is_empty() { 0 } else { *quiet + 1 };
        open.asleep = *quiet > QUIET_LOOKS;
        !open.asleep
    }
}

impl Drop for MaskWatch {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

fn keep(watch: &Weak<MaskWatch>, look: Duration) {
    let mut quiet = 0;
    loop {
        let Some(again) = watch.upgrade().map(|watch| watch.look(&mut quiet)) else { return };
        if again { park_timeout(look) } else { park() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_end_is_cancelled() {
        let watch = MaskWatch::new(Duration::from_millis(5));
        for _ in 0..3 {
            let (handle, other) = (CancellationHandle::default(), CancellationHandle::default());
            let ((), _) = watch.during(Some(other.clone()), || ());
            let ((), took) = watch.during(Some(handle.clone()), || {
                while !handle.is_cancelled() {
                    std::thread::yield_now();
                }
            });
            assert!(took >= watch.limit() && !other.is_cancelled());
            // Long enough for the thread to fall asleep, or not: either way it is there for the next.
            std::thread::sleep(Duration::from_millis(25));
        }
        assert!(watch.open.lock().works.is_empty());
    }
}
