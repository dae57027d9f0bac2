//! What callers send to the engine thread. Knows neither who sends nor how it is served.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::choice::ChoiceSeed;
use crate::constraint::Constraint;
use crate::media::RequestMedia;
use crate::prompt_logprobs::PromptLogprobsBuilder;
use crate::scheduler::Submission;
use crate::sequence::SequenceId;
use crate::slot::SlotOwner;

/// What callers ask of the engine thread.
#[derive(Debug)]
pub(crate) enum Command {
    Submit(Box<Job>),
    Abort(u64),
    /// A mask that was computed aside.
    Masked(SequenceId, Box<Constraint>),
    /// Blocks of a request's prefix that were on disk.
    Restored(u64, Vec<Vec<u8>>),
    Shutdown,
}

/// A checked request on its way to the scheduler.
#[derive(Debug)]
pub(crate) struct Job {
    pub slot: SlotOwner,
    pub submission: Submission,
    pub choices: ChoiceSeed,
    /// One per choice, or none.
    pub constraints: Vec<Constraint>,
    pub prompt_logprobs: Option<PromptLogprobsBuilder>,
    pub media: Option<RequestMedia>,
    pub queued: Queued,
}

/// A place in the queue, given back when the request starts or is gone.
#[derive(Debug)]
pub(crate) struct Queued(pub Arc<AtomicUsize>);

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
