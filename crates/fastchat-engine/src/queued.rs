//! Steps that the device computes while the host is still at the one before: queued with tokens that nobody has read, so
//! that between two steps the device waits for nobody. Decode steps whose tokens their logits alone say; the others are
//! computed one after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use fastchat_kernels::{PendingTokens, SampleRow};

use crate::device::StepError;
use crate::error::EngineError;
use crate::sampler::NothingToSample;
use crate::scheduler::{ScheduledBatch, ScheduledSequence};
use crate::worker::{Book, Sampled, Worker, failed_step};

/// A step under way.
#[derive(Debug)]
pub(crate) struct Queued {
    pub batch: ScheduledBatch,
    pub tokens: Box<dyn PendingTokens>,
    /// When it was queued, or the step before it was over.
    pub began: Instant,
}

impl Worker {
    /// Queues a scheduled step with the choice of its tokens, unless something about it takes the host.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn queue(&mut self, batch: &ScheduledBatch) -> Result<Option<Box<dyn PendingTokens>>, StepError> {
        self.queue_following(batch, Vec::new())
    }

    /// As `queue`, for a step whose sequences have the tokens of those rows of the step before.
    fn queue_following(
        &mut self,
        batch: &ScheduledBatch,
        follows: Vec<u32>,
    ) -> Result<Option<Box<dyn PendingTokens>>, StepError> {
        if !self.runner.queues() || !self.pictures.is_empty() {
            return Ok(None);
        }
        let Some(asked) = self.book.plain_rows(batch) else { return Ok(None) };
        let Self { runner, scheduler, .. } = self;
        catch_unwind(AssertUnwindSafe(|| runner.queue(batch, scheduler, follows, asked)))
            .unwrap_or_else(|panic| Err(failed_step(panic.as_ref())))
    }

    /// Queues the step after one that is under way, if there can be one.
    ///
    /// # Errors
    /// The device's.
    fn queue_next(&mut self, batch: &ScheduledBatch) -> Result<Option<Queued>, StepError> {
        let Some(ahead) = self.scheduler.ahead(batch) else { return Ok(None) };
        let tokens = self.queue_following(&ahead.batch, ahead.places)?;
        Ok(tokens.map(|tokens| Queued { batch: ahead.batch, tokens, began: Instant::now() }))
    }

    /// Queues the next step, waits for this one and hands out its tokens.
    ///
    /// # Errors
    /// When the device is lost.
    pub(crate) fn finish_queued(&mut self, queued: Queued) -> Result<bool, EngineError> {
        let Queued { mut batch, tokens, began } = queued;
        // What keeps it from being queued, memory for one, is said when its turn to be scheduled comes.
        let next = self.queue_next(&batch).unwrap_or_default();
        let mut tokens = match self.runner.await_tokens(tokens) {
            Ok(tokens) => tokens,
            Err(error) => return self.end_failed(&batch, error),
        };
        let over = Instant::now();
        self.scheduler.drop_ended(&mut batch, &mut tokens);
        if batch.sequences.is_empty() {
            return Ok(true);
        }
        let ids: Vec<_> = batch.sequences.iter().map(|scheduled| scheduled.id).collect();
        let sampled = ids.into_iter().zip(tokens).map(|(id, token)| {
            let none = || EngineError::Internal(NothingToSample.to_string());
            let token = if token == u32::MAX { Err(none()) } else { Ok(token) };
            Sampled { id, token, logprobs: None, drafted: false }
        });
        self.end_step(&batch, sampled, began);
        let wanted = |next: &Queued| next.batch.sequences.iter().any(|one| self.scheduler.sequence(one.id).is_some());
        if let Some(next) = next.filter(wanted) {
            self.book.counters.overlapped_steps += 1;
            self.queued = Some(Queued { began: over, ..next });
        }
        Ok(true)
    }
}

impl Book {
    /// What the rows of a decode step are asked for, if their logits are all that their tokens depend on.
    fn plain_rows(&self, batch: &ScheduledBatch) -> Option<Vec<SampleRow>> {
        let row = |scheduled: &ScheduledSequence| {
            let choice = self.choices.get(&scheduled.id)?;
            let free = choice.constraint.is_none() && choice.thinking.is_none();
            let plain = free && scheduled.samples && scheduled.draft.is_empty() && !scheduled.prompt_logits;
            // The token that is chosen comes after those that are computed.
            let row = plain.then(|| choice.sampler.asks(scheduled.end as u64, None))?;
            row.is_plain().then_some(row)
        };
        batch.sequences.iter().map(row).collect()
    }
}
