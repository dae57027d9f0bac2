//! Tokens chosen where the logits are: what each row of a step is asked for goes to the device, what was chosen comes
//! back. The rules are the sampler's; only rows that prompt log-probabilities need are read by the host. So too with greedy
//! steps, whose tokens are found without logits.

use std::ops::Range;

use fastchat_kernels::SampledToken;

use crate::choice::Choice;
use crate::device::StepError;
use crate::error::EngineError;
use crate::runner::{Logits, Runner};
use crate::sampler::{NothingToSample, TokenLogprobs};
use crate::schedule::{ScheduledBatch, ScheduledSequence};
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
            take(scheduled, chosen.by_ref().take(1 + scheduled.draft.len()), &mut sampled);
        }
        Ok(sampled)
    }

    /// Whether all tokens of a step are the most likely ones, so that nobody has to see its logits.
    pub(crate) fn is_greedy(&self, batch: &ScheduledBatch) -> bool {
        batch.sequences.iter().all(|scheduled| {
            let choice = self.choices.get(&scheduled.id);
            let greedy = |choice: &Choice| {
                choice.constraint.is_none() && choice.closing().is_none() && choice.sampler.is_greedy()
            };
            !scheduled.prompt_logits && (!scheduled.samples || choice.is_some_and(greedy))
        })
    }
}

/// Takes the most likely tokens of a step, of which each sequence has those of its rows.
pub(crate) fn take_most_likely(batch: &ScheduledBatch, tokens: &[Option<u32>], rows: &[Range<usize>]) -> Vec<Sampled> {
    let mut sampled = Vec::with_capacity(batch.sequences.len());
    for (scheduled, rows) in batch.sequences.iter().zip(rows).filter(|(scheduled, _)| scheduled.samples) {
        let tokens = &tokens[rows.end - 1 - scheduled.draft.len()..rows.end];
        take(scheduled, tokens.iter().map(|&token| SampledToken { token, logprobs: None }), &mut sampled);
    }
    sampled
}

/// Takes what was chosen for a sequence: its tokens up to the first that was not drafted, for the others had the wrong one
/// before them.
fn take(scheduled: &ScheduledSequence, chosen: impl Iterator<Item = SampledToken>, sampled: &mut Vec<Sampled>) {
    let mut open = true;
    for (ahead, chosen) in chosen.enumerate() {
        if !open {
            continue;
        }
        let token = chosen.token.ok_or_else(|| EngineError::Internal(NothingToSample.to_string()));
        let report = token.as_ref().ok().zip(chosen.logprobs);
        let logprobs = report.map(|(&token_id, (logprob, rank, top))| TokenLogprobs { token_id, logprob, rank, top });
        let drafted = token.as_ref().is_ok_and(|token| scheduled.draft.get(ahead) == Some(token));
        open = drafted;
        sampled.push(Sampled { id: scheduled.id, token, logprobs, drafted });
    }
}
