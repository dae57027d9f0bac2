//! Tokens chosen by the host, from rows of logits that are near; and what prompt log-probabilities need of rows wherever
//! they are. How a token is chosen is the sampler's.

use crate::error::EngineError;
use crate::runner::Rows;
use crate::sampler::logprobs;
use crate::scheduler::{ScheduledBatch, Scheduler};
use crate::worker::{Book, Sampled};

impl Book {
    /// Gathers prompt log-probabilities from the rows of a step.
    pub(crate) fn gather(&mut self, batch: &ScheduledBatch, rows: &Rows<'_>) {
        for (place, scheduled) in batch.sequences.iter().enumerate().filter(|(_, scheduled)| scheduled.prompt_logits) {
            if let Some(choice) = self.choices.get(&scheduled.id)
                && let Some(active) = self.requests.get_mut(&choice.request)
                && let Some(builder) = &mut active.prompt_logprobs
            {
                for (position, row) in (scheduled.start..).zip(rows.of(place)) {
                    builder.add(position, &active.slot.0.prompt, row);
                }
            }
        }
    }

    /// Chooses tokens and gathers prompt log-probabilities from the rows of a step.
    pub(crate) fn sample(&mut self, batch: &ScheduledBatch, scheduler: &Scheduler, rows: &Rows<'_>) -> Vec<Sampled> {
        self.gather(batch, rows);
        let mut sampled = Vec::with_capacity(batch.sequences.len());
        for (place, scheduled) in batch.sequences.iter().enumerate() {
            let choice = self.choices.get_mut(&scheduled.id).expect("scheduled choices are open; this is a bug");
            if !scheduled.samples {
                continue;
            }
            let all = rows.of(place);
            let first = all.len() - 1 - scheduled.draft.len();
            let position = scheduler.sequence(scheduled.id).map_or(0, |sequence| sequence.tokens.len());
            for (ahead, row) in all.skip(first).enumerate() {
                let closing = choice.closing();
                let token = match choice.allowed(closing.as_deref()) {
                    (Ok(allowed), own) => {
                        let chosen = self.sampler.sample(row, own, (position + ahead) as u64, allowed);
                        chosen.map_err(|error| EngineError::Internal(error.to_string()))
                    }
                    (Err(error), _) => Err(error.into()),
                };
                let asked = choice.params().logprobs;
                let logprobs = asked.zip(token.as_ref().ok()).map(|(k, &token)| logprobs(row, token, k as usize));
                let drafted = token.as_ref().ok().is_some_and(|token| scheduled.draft.get(ahead) == Some(token));
                sampled.push(Sampled { id: scheduled.id, token, logprobs, drafted });
                if !drafted {
                    break;
                }
            }
        }
        sampled
    }
}
