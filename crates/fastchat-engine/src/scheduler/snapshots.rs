//! Where recurrent state is copied on its way through a sequence, so that a later request can start from there.

use fastchat_kernels::{BLOCK_SIZE, StateStep};

use super::Scheduler;
use crate::schedule::ScheduledSequence;
use crate::sequence::Sequence;
use crate::state_pool::StatePool;

/// Tokens between snapshots of recurrent state within a prompt, beside the one at its last block border.
const SNAPSHOT_INTERVAL: usize = 256;

impl Scheduler {
    /// Gives back the slots of copies that were not made.
    pub(super) fn forget_snapshots(&mut self, scheduled: &ScheduledSequence) {
        if let (Some(states), Some(step)) = (&mut self.states, &scheduled.state) {
            step.snapshots.iter().for_each(|&(_, slot)| states.release(slot));
        }
    }
}

/// Where the recurrent state of tokens up to `end` comes from and goes to, with snapshots at the borders worth keeping.
pub(super) fn state_step(sequence: &mut Sequence, end: usize, states: &mut StatePool) -> StateStep {
    let state = sequence.state.expect("running sequences of recurrent models own a slot; this is a bug");
    let start = sequence.num_computed;
    let source = match state.resume_from {
        Some((_, slot)) => Some(slot),
        None => (start > 0).then_some(state.slot),
    };
    let mut snapshots = Vec::new();
    let last_border = (sequence.tokens.len() - 1) / BLOCK_SIZE * BLOCK_SIZE;
    if sequence.salt.is_some() && !sequence.is_decoding() {
        for border in (start / BLOCK_SIZE + 1..=end / BLOCK_SIZE).map(|block| block * BLOCK_SIZE) {
            let hash = sequence.hash_blocks(border / BLOCK_SIZE)[border / BLOCK_SIZE - 1];
            let worth = border == last_border || border.is_multiple_of(SNAPSHOT_INTERVAL);
            if worth && !states.contains(hash) {
                snapshots.extend(states.allocate().map(|slot| ((border - start) as u32, slot)));
            }
        }
    }
    StateStep { source, target: state.slot, snapshots }
}
