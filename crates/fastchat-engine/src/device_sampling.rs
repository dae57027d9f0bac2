//! Tokens chosen where the logits are: what each row of a step is asked for goes to the device, what was chosen comes
//! back. The rules are the sampler's; only rows that prompt log-probabilities need are read by the host.

use crate::device::StepError;
use crate::error::EngineError;
use crate::runner::{Logits, Runner};
use crate::sampler::{NothingToSample, TokenLogprobs};
use crate::schedule::ScheduledBatch;
use crate::scheduler::Scheduler;
use crate::worker::{Book, Sampled};

impl Book {
    /// Chooses tokens on the device and gathers prompt log-probabilities.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn sample_on_device(
        &mut self,
        batch: &ScheduledBatch,
        scheduler: &Scheduler,
        runner: &Runner,
        logits: &Logits,
    ) -> Result<Vec<Sampled>, StepError> {
        if batch.sequences.iter().any(|scheduled| scheduled.prompt_logits) {
            runner.read(logits, |rows| self.gather(batch, rows))?;
        }
        let (mut of, mut asked, mut sampled) = (Vec::new(), Vec::new(), Vec::with_capacity(batch.sequences.len()));
        for (place, scheduled) in batch.sequences.iter().enumerate().filter(|(_, scheduled)| scheduled.samples) {
            let choice = self.choices.get_mut(&scheduled.id).expect("scheduled choices are open; this is a bug");
            let closing = choice.closing();
            let allowed = match choice.allowed(closing.as_deref()).0 {
                Ok(allowed) => allowed.map(<[u32]>::to_vec),
                Err(error) => {
                    sampled.push(Sampled {
                        id: scheduled.id,
                        token: Err(error.into()),
                        logprobs: None,
                        drafted: false,
                    });
                    continue;
                }
            };
            let rows = logits.rows_of(place);
            let position = scheduler.sequence(scheduled.id).map_or(0, |sequence| sequence.tokens.len());
            for (ahead, row) in (rows.end - 1 - scheduled.draft.len()..rows.end).enumerate() {
                of.push(row as u32);
                asked.push(choice.sampler.asks((position + ahead) as u64, allowed.clone()));
            }
        }
        let failed: Vec<_> = sampled.iter().map(|sampled: &Sampled| sampled.id).collect();
        let mut chosen = runner.choose(logits, &of, &asked)?.into_iter();
        for scheduled in batch.sequences.iter().filter(|one| one.samples && !failed.contains(&one.id)) {
            let mut open = true;
            for (ahead, chosen) in chosen.by_ref().take(1 + scheduled.draft.len()).enumerate() {
                // After the first token that was not drafted the others had the wrong one before them.
                if !open {
                    continue;
                }
                let token = chosen.token.ok_or_else(|| EngineError::Internal(NothingToSample.to_string()));
                let report = token.as_ref().ok().zip(chosen.logprobs);
                let logprobs =
                    report.map(|(&token_id, (logprob, rank, top))| TokenLogprobs { token_id, logprob, rank, top });
                let drafted = token.as_ref().is_ok_and(|token| scheduled.draft.get(ahead) == Some(token));
                open = drafted;
                sampled.push(Sampled { id: scheduled.id, token, logprobs, drafted });
            }
        }
        Ok(sampled)
    }
}
