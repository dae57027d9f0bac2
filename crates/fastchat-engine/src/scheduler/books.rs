//! Whether the books of a scheduler add up, for tests.

use super::Scheduler;
use crate::sequence::SequenceStatus;

impl Scheduler {
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
