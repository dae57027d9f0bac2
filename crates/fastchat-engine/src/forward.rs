//! From a scheduled batch to the flat arrays that a model is given, and their padding to the size of a captured step. Plain
//! integers: knows no tensors.

use std::ops::Range;

use fastchat_kernels::{BLOCK_SIZE, ForwardBatch, StateStep};

use crate::schedule::ScheduledBatch;
use crate::scheduler::Scheduler;

/// Batches above four sequences are padded to a multiple of this.
const STRIDE: usize = 8;

/// The arrays of a scheduled batch, and the rows of logits of each of its sequences; the last of them samples.
///
/// # Panics
/// When the scheduler does not know a sequence of the batch.
pub fn forward_batch(batch: &ScheduledBatch, scheduler: &Scheduler) -> (ForwardBatch, Vec<Range<usize>>) {
    let mut forward = ForwardBatch { query_start: vec![0], ..ForwardBatch::default() };
    let mut rows = Vec::with_capacity(batch.sequences.len());
    for scheduled in &batch.sequences {
        let sequence = scheduler.sequence(scheduled.id).expect("scheduled sequences are live; this is a bug");
        let (start, end) = (scheduled.start, scheduled.end + scheduled.draft.len());
        let first_token = forward.token_ids.len() as u32;
        let known = scheduled.end.min(sequence.tokens.len());
        forward.token_ids.extend_from_slice(&sequence.tokens[start.min(known)..known]);
        // Of a step that follows another, the token is not known yet.
        forward.token_ids.resize(first_token as usize + scheduled.end - start, 0);
        forward.token_ids.extend_from_slice(&scheduled.draft);
        forward.positions.extend(start as u32..end as u32);
        forward.slot_mapping.extend((start..end).map(|position| {
            sequence.block_table[position / BLOCK_SIZE] * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32
        }));
        let last_token = forward.token_ids.len() as u32;
        forward.query_start.push(last_token);
        forward.context_lens.push(end as u32);
        forward.block_tables.push(sequence.block_table.clone());
        forward.states.extend(scheduled.state.clone());
        let first_row = forward.logits_rows.len();
        if scheduled.prompt_logits {
            forward.logits_rows.extend(first_token..last_token);
        } else if scheduled.samples {
            forward.logits_rows.extend(last_token - 1 - scheduled.draft.len() as u32..last_token);
        }
        rows.push(first_row..forward.logits_rows.len());
    }
    (forward, rows)
}

/// Whether every sequence has one token, whose logits are wanted, and nothing is left for the host to look at.
pub fn is_decode(batch: &ForwardBatch) -> bool {
    let sequences = batch.num_sequences();
    sequences > 0
        && batch.num_tokens() == sequences
        && batch.logits_rows.len() == sequences
        && batch.states.iter().all(StateStep::stays)
        && batch.reach.is_empty()
        && batch.rope_positions.is_empty()
}

/// Sequences of the captured step that serves `sequences` of them: 1, 2, 4, 8, 16, 24, ...
pub fn padded_size(sequences: usize) -> usize {
    match sequences {
        0..=2 => sequences,
        3..=4 => 4,
        _ => sequences.next_multiple_of(STRIDE),
    }
}

/// What of a cache belongs to nobody.
#[derive(Clone, Copy, Debug)]
pub struct Spare {
    /// A block.
    pub block: u32,
    /// A slot of recurrent state, in models that have some.
    pub slot: u32,
}

/// Fills a decode step up to `size` sequences: each of the new ones begins with token 0 and has a place of its own in the
/// spare block. What they leave in the spare slot nobody reads.
pub fn pad(batch: &mut ForwardBatch, size: usize, spare: Spare) {
    let Spare { block: spare, slot } = spare;
    let recurrent = !batch.states.is_empty();
    for (place, row) in (batch.num_sequences()..size).enumerate() {
        batch.token_ids.push(0);
        batch.positions.push(0);
        batch.slot_mapping.push(spare * BLOCK_SIZE as u32 + (place % BLOCK_SIZE) as u32);
        batch.query_start.push(row as u32 + 1);
        batch.context_lens.push(1);
        batch.block_tables.push(vec![spare]);
        batch.logits_rows.push(row as u32);
        if recurrent {
            batch.states.push(StateStep { target: slot, ..StateStep::default() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(sequences: u32) -> ForwardBatch {
        ForwardBatch {
            token_ids: (10..10 + sequences).collect(),
            positions: (0..sequences).map(|s| 3 * s).collect(),
            slot_mapping: (0..sequences).map(|s| 16 * s + 3 * s % 16).collect(),
            query_start: (0..=sequences).collect(),
            context_lens: (0..sequences).map(|s| 3 * s + 1).collect(),
            block_tables: (0..sequences).map(|s| vec![s; 3 * s as usize / 16 + 1]).collect(),
            logits_rows: (0..sequences).collect(),
            ..ForwardBatch::default()
        }
    }

    #[test]
    fn sizes_are_those_of_the_documentation() {
        let mut sizes: Vec<_> = (1..=40).map(padded_size).collect();
        assert!(sizes.iter().zip(1..).all(|(&size, sequences)| (sequences..sequences + STRIDE).contains(&size)));
        sizes.dedup();
        assert_eq!(sizes, [1, 2, 4, 8, 16, 24, 32, 40]);
    }

    #[test]
    fn rows_that_fill_up_touch_the_spare_block_alone() {
        let spare = 99;
        for sequences in 1..=30 {
            let (batch, size) = (decode(sequences), padded_size(sequences as usize));
            let mut all = batch.clone();
            pad(&mut all, size, Spare { block: spare, slot: 0 });
            all.check(spare as usize + 1).unwrap();
            assert!(is_decode(&all));
            let own = sequences as usize;
            assert_eq!(all.token_ids[..own], batch.token_ids);
            assert_eq!(all.slot_mapping[..own], batch.slot_mapping);
            assert_eq!(all.block_tables[..own], batch.block_tables);
            assert_eq!(all.context_lens[..own], batch.context_lens);
            assert!(all.block_tables[own..].iter().all(|table| table[..] == [spare]));
            let mut slots = all.slot_mapping[own..].to_vec();
            assert!(slots.iter().all(|&slot| slot / BLOCK_SIZE as u32 == spare));
            slots.dedup();
            assert_eq!(slots.len(), size - own, "each has a place of its own");
        }
    }

    #[test]
    fn what_is_no_decode_step_is_none() {
        let others: [fn(&mut ForwardBatch); 5] = [
            |batch| batch.logits_rows.truncate(1),
            |batch| batch.states = vec![StateStep::default(); 2],
            |batch| batch.reach = vec![0, 3],
            |batch| batch.rope_positions = vec![[0; 3]; 2],
            |batch| *batch = ForwardBatch { query_start: vec![0], ..ForwardBatch::default() },
        ];
        for other in others {
            let mut batch = decode(2);
            assert!(is_decode(&batch));
            other(&mut batch);
            assert!(!is_decode(&batch), "{batch:?}");
        }
        let mut two_tokens = decode(2);
        two_tokens.token_ids.push(1);
        assert!(!is_decode(&two_tokens));
    }
}
