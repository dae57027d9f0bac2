//! What devices that compute one model together tell each other: the contract between a decoder and its other ranks, and
//! the plain way for ranks whose tensors lie in the host's memory. Knows no models.

use std::fmt::Debug;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use candle_core::{Result, Tensor, bail};

/// One rank's link to the others. Every rank makes the same calls in the same order, each from its own thread.
pub trait Collective: Send + Sync + Debug {
    /// Which rank this is.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// Every rank's tensor, by rank; all have the same shape and are f32 and contiguous.
    ///
    /// # Errors
    /// Once a rank has aborted, or the device's.
    fn all_gather(&self, own: &Tensor) -> Result<Vec<Tensor>>;

    /// Ends what any rank waits for, now and from now on: one does not come any more.
    fn abort(&self);
}

/// A rank whose tensors lie in the host's memory: tensors are handed over as they are.
#[derive(Debug)]
pub struct HostRank {
    rank: usize,
    meeting: Arc<Meeting>,
}

#[derive(Debug)]
struct Meeting {
    round: Mutex<Round>,
    changed: Condvar,
}

#[derive(Debug)]
struct Round {
    brought: Vec<Option<Tensor>>,
    /// Ranks that have taken what was brought.
    taken: usize,
    aborted: bool,
}

impl HostRank {
    /// The only rank of a model.
    pub fn alone() -> Self {
        Self::new(0, Arc::new(Meeting::of(1)))
    }

    fn new(rank: usize, meeting: Arc<Meeting>) -> Self {
        Self { rank, meeting }
    }

    /// All ranks of a model.
    pub fn all(size: usize) -> Vec<Self> {
        let meeting = Arc::new(Meeting::of(size));
        (0..size).map(|rank| Self::new(rank, meeting.clone())).collect()
    }
}

impl Meeting {
    fn of(size: usize) -> Self {
        let round = Round { brought: vec![None; size], taken: 0, aborted: false };
        Self { round: Mutex::new(round), changed: Condvar::new() }
    }

    fn round(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready`.
    fn until<'a>(&self, round: MutexGuard<'a, Round>, ready: impl Fn(&Round) -> bool) -> Result<MutexGuard<'a, Round>> {
        let waiting = |round: &mut Round| !round.aborted && !ready(round);
        let round = self.changed.wait_while(round, waiting).unwrap_or_else(PoisonError::into_inner);
        if round.aborted {
            bail!("another device of this model has failed");
        }
        Ok(round)
    }
}

impl Collective for HostRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.meeting.round().brought.len()
    }

    fn all_gather(&self, own: &Tensor) -> Result<Vec<Tensor>> {
        // Somebody may not have taken yet what was brought to the round before.
        let mut round = self.meeting.until(self.meeting.round(), |round| round.brought[self.rank].is_none())?;
        round.brought[self.rank] = Some(own.clone());
        self.meeting.changed.notify_all();
        let mut round = self.meeting.until(round, |round| round.brought.iter().all(Option::is_some))?;
        let all: Vec<_> = round.brought.iter().flatten().cloned().collect();
        round.taken += 1;
        if round.taken == all.len() {
            round.taken = 0;
            round.brought.fill(None);
            self.meeting.changed.notify_all();
        }
        drop(round);
        match all.iter().find(|other| other.dims() != own.dims()) {
            Some(other) => bail!("rank {} has {:?} where another has {:?}", self.rank, own.dims(), other.dims()),
            None => Ok(all),
        }
    }

    fn abort(&self) {
        self.meeting.round().aborted = true;
        self.meeting.changed.notify_all();
    }
}
