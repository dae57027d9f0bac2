//! The devices that compute the rest of a model: a thread for each, which holds its rank and does what the first rank does,
//! in the same order, so that ranks meet at every sum. Knows no requests.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use candle_core::Tensor;
use fastchat_kernels::{Collective, Fault, Kernels, PendingTokens};
use fastchat_models::{Decoder, ModelError};
use parking_lot::Mutex;

use crate::device::{StepError, TensorParallelDevice};
use crate::error::EngineError;
use crate::rank::Rank;
use crate::worker::failed_step;

/// What a follower's thread holds: a decoder while the model is loaded, then a rank.
#[derive(Debug)]
pub(crate) struct Seat {
    pub kernels: Arc<dyn Kernels>,
    pub collective: Arc<dyn Collective>,
    pub decoder: Option<Decoder>,
    pub rank: Option<Rank>,
}

/// What a follower's device was told to compute.
#[derive(Debug)]
pub(crate) enum Told {
    /// Logits, which the host of the first rank waits for before it tells anything else.
    Logits(Tensor),
    /// Tokens, after which more is told before they are there.
    Tokens(Box<dyn PendingTokens>),
}

type Job = Box<dyn FnOnce(&mut Seat) -> Result<Option<Told>, StepError> + Send>;

/// The first error of any rank: what the others say is that they were not met.
type FirstError = Arc<Mutex<Option<StepError>>>;

/// All ranks but the first.
#[derive(Debug)]
pub(crate) struct Followers {
    threads: Vec<Follower>,
    collective: Arc<dyn Collective>,
    first: FirstError,
    /// Why a rank captures no more graphs: then no rank replays one, for all must do the same.
    stopped: Option<Arc<str>>,
}

#[derive(Debug)]
struct Follower {
    /// `None` once it is to end.
    jobs: Option<Sender<Job>>,
    /// Why its rank captures no more, after each job.
    done: Receiver<Option<Arc<str>>>,
    thread: Option<JoinHandle<()>>,
}

impl Followers {
    /// Threads for `devices`, the second rank's first. `collective` is the first rank's.
    ///
    /// # Errors
    /// The system's, which starts no more threads.
    pub fn start(devices: Vec<TensorParallelDevice>, collective: Arc<dyn Collective>) -> Result<Self, EngineError> {
        let first = FirstError::default();
        let thread = |device: TensorParallelDevice| {
            let (jobs, work) = channel::<Job>();
            let (report, done) = channel();
            let first = first.clone();
            let TensorParallelDevice { kernels, collective } = device;
            let thread =
                std::thread::Builder::new().name(format!("fastchat-rank-{}", collective.rank())).spawn(move || {
                    follow(Seat { kernels, collective, decoder: None, rank: None }, &first, &work, &report);
                });
            let thread =
                thread.map_err(|error| EngineError::Internal(format!("a rank's thread did not start: {error}")))?;
            Ok(Follower { jobs: Some(jobs), done, thread: Some(thread) })
        };
        let threads = devices.into_iter().map(thread).collect::<Result<_, EngineError>>()?;
        Ok(Self { threads, collective, first, stopped: None })
    }

    /// Does `own` here and `theirs` at every follower, and waits for all of them.
    ///
    /// # Errors
    /// The first rank's that failed; the others do not wait for it. The ranks are of no more use together.
    pub fn together<T>(
        &mut self,
        theirs: impl Fn(&mut Seat) -> Result<Option<Told>, StepError> + Clone + Send + 'static,
        own: impl FnOnce() -> Result<T, StepError>,
    ) -> Result<T, StepError> {
        for follower in &self.threads {
            let sent = follower.jobs.as_ref().map(|jobs| jobs.send(Box::new(theirs.clone())));
            if !matches!(sent, Some(Ok(()))) {
                return Err(self.lost(gone()));
            }
        }
        let own = attempt(&self.first, self.collective.as_ref(), own);
        for follower in &self.threads {
            match follower.done.recv() {
                Ok(failure) => self.stopped = self.stopped.take().or(failure),
                Err(_) => return Err(self.lost(gone())),
            }
        }
        match own {
            Some(own) if self.first.lock().is_none() => Ok(own),
            _ => Err(self.lost(gone())),
        }
    }

    /// What is to be said of `error` here: what went wrong first, wherever that was. Nobody waits for anybody any more.
    pub fn lost(&self, error: StepError) -> StepError {
        let first = self.first.lock().get_or_insert(error).error.clone();
        self.collective.abort();
        StepError { error: first, fault: Fault::Sticky }
    }

    /// What a device reported after it had been told its part.
    ///
    /// # Errors
    /// As `together`.
    pub fn check(&self) -> Result<(), StepError> {
        match &*self.first.lock() {
            None => Ok(()),
            Some(first) => Err(StepError { error: first.error.clone(), fault: Fault::Sticky }),
        }
    }

    /// As `together`, of ranks that are loaded: `theirs` at theirs, `own` at the first.
    ///
    /// # Errors
    /// As `together`.
    pub fn step<T>(
        &mut self,
        rank: &mut Rank,
        theirs: impl Fn(&mut Rank) -> Result<Option<Told>, StepError> + Clone + Send + 'static,
        own: impl FnOnce(&mut Rank) -> Result<T, StepError>,
    ) -> Result<T, StepError> {
        self.stopped = self.stopped.take().or(rank.graph_failure());
        let stopped = self.stopped.clone();
        let theirs = move |seat: &mut Seat| {
            let none = || EngineError::Internal("a rank has nothing loaded; this is a bug".to_owned());
            let rank = seat.rank.as_mut().ok_or_else(none)?;
            rank.stop_graphs(stopped.as_ref());
            theirs(rank)
        };
        rank.stop_graphs(self.stopped.as_ref());
        self.together(theirs, || own(rank))
    }
}

/// A follower's thread. A device works on its own, and may fail at what it was told long before: so somebody waits for each
/// step, and says what went wrong while others still wait for this rank.
fn follow(mut seat: Seat, first: &FirstError, work: &Receiver<Job>, report: &Sender<Option<Arc<str>>>) {
    let collective = seat.collective.clone();
    let (watched, told) = channel::<Box<dyn PendingTokens>>();
    std::thread::scope(|scope| {
        let watch = collective.clone();
        scope.spawn(move || {
            for tokens in told {
                attempt(first, watch.as_ref(), || waited(tokens.wait()));
            }
        });
        for job in work {
            let told = attempt(first, collective.as_ref(), || job(&mut seat)).flatten();
            if report.send(seat.rank.as_ref().and_then(Rank::graph_failure)).is_err() {
                break;
            }
            match told {
                None => {}
                Some(Told::Logits(logits)) => {
                    let one = || logits.flatten_all()?.narrow(0, 0, logits.elem_count().min(1))?.to_vec1::<f32>();
                    attempt(first, collective.as_ref(), || waited(one()));
                }
                // The other thread ends after this one.
                Some(Told::Tokens(tokens)) => drop(watched.send(tokens)),
            }
        }
        drop(watched);
    });
}

fn waited<T>(outcome: candle_core::Result<T>) -> Result<(), StepError> {
    outcome.map(drop).map_err(|error| EngineError::from(ModelError::Kernel(error)).into())
}

fn gone() -> StepError {
    StepError { error: EngineError::Internal("a rank's thread is gone".to_owned()), fault: Fault::Sticky }
}

/// What came of `work`. If nothing did, nobody waits for this rank any more.
fn attempt<T>(
    first: &FirstError,
    collective: &dyn Collective,
    work: impl FnOnce() -> Result<T, StepError>,
) -> Option<T> {
    let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(failed_step(panic.as_ref())));
    outcome
        .map_err(|error| {
            first.lock().get_or_insert(error);
            collective.abort();
        })
        .ok()
}

impl Drop for Followers {
    fn drop(&mut self) {
        for follower in &mut self.threads {
            follower.jobs = None;
            if let Some(thread) = follower.thread.take() {
                // Its jobs do not panic through it.
                let _ = thread.join();
            }
        }
    }
}
