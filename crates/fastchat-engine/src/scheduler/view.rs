//! What others may see of the scheduler, and the check of all its books.

use super::Scheduler;
use crate::block_manager::BlockManager;
use crate::schedule::SchedulerStats;
use crate::sequence::{Sequence, SequenceId, SequenceStatus};

impl Scheduler {
    /// A live sequence.
    pub fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Sequences that own blocks.
    pub fn num_running(&self) -> usize {
        self.lines.num_running()
    }

    /// Sequences that do not.
    pub fn num_waiting(&self) -> usize {
        self.sequences.len() - self.lines.num_running()
    }

    /// The pool of blocks.
    pub fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// Counters since the start.
    pub fn stats(&self) -> SchedulerStats {
        self.stats
    }

    /// Checks all books between two steps. For tests.
    ///
    /// # Errors
    /// What does not add up.
    pub fn check(&self) -> Result<(), String> {
        self.blocks.check(self.sequences.values().map(|sequence| sequence.block_table.as_slice()))?;
        if let Some(states) = &self.states {
            states.check(self.sequences.values().filter_map(|sequence| sequence.state).map(|state| state.slot))?;
        }
        for sequence in self.sequences.values() {
            let running = self.lines.is_running(sequence.line, sequence.rank);
            if running != (sequence.status == SequenceStatus::Running) || running == sequence.block_table.is_empty() {
                return Err(format!("{} is {:?} but in the wrong set", sequence.id(), sequence.status));
            }
        }
        Ok(())
    }
}
