//! Who owns which recurrent state slot: one per running sequence, the rest snapshots taken at block borders, found by
//! the hash of the block that ends there and forgotten by least recent use. Numbers only.

use std::collections::BTreeMap;

use fastchat_kernels::{BLOCK_SIZE, StateStep};
use hashbrown::HashMap;

use crate::block_hash::BlockHash;
use crate::sequence::Sequence;

/// Tokens between snapshots of recurrent state within a prompt, beside the one at its last block border.
const SNAPSHOT_INTERVAL: usize = 256;

#[derive(Clone, Copy, Debug)]
struct Snapshot {
    slot: u32,
    last_use: u64,
    /// Steps in flight that read it.
    pins: u32,
}

/// The pool of state slots.
#[derive(Clone, Debug)]
pub struct StatePool {
    num_slots: usize,
    free: Vec<u32>,
    snapshots: HashMap<BlockHash, Snapshot>,
    /// Snapshots without pins, by last use.
    evictable: BTreeMap<u64, BlockHash>,
    clock: u64,
}

impl StatePool {
    /// A pool of `num_slots` free slots.
    pub fn new(num_slots: usize) -> Self {
        Self {
            num_slots,
            free: (0..num_slots as u32).rev().collect(),
            snapshots: HashMap::new(),
            evictable: BTreeMap::new(),
            clock: 0,
        }
    }

    /// All slots.
    pub fn num_slots(&self) -> usize {
        self.num_slots
    }

    /// Slots that `allocate` could hand out.
    pub fn num_free(&self) -> usize {
        self.free.len() + self.evictable.len()
    }

    /// A slot, at the price of the least recently used snapshot; `None` when all are owned or pinned.
    pub fn allocate(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        let (_, hash) = self.evictable.pop_first()?;
        self.snapshots.remove(&hash).map(|snapshot| snapshot.slot)
    }

    /// Gives a slot back.
    pub fn release(&mut self, slot: u32) {
        self.free.push(slot);
    }

    /// Where the recurrent state of a running sequence up to `end` comes from and goes to, with snapshots at the borders
    /// worth keeping.
    pub fn step(&mut self, sequence: &mut Sequence, end: usize) -> StateStep {
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
                if worth && !self.contains(hash) {
                    snapshots.extend(self.allocate().map(|slot| ((border - start) as u32, slot)));
                }
            }
        }
        StateStep { source, target: state.slot, snapshots }
    }

    /// Whether there is a snapshot at the end of the block with this hash.
    pub fn contains(&self, hash: BlockHash) -> bool {
        self.snapshots.contains_key(&hash)
    }

    /// Keeps a snapshot from being forgotten and returns its slot.
    pub fn pin(&mut self, hash: BlockHash) -> Option<u32> {
        let snapshot = self.snapshots.get_mut(&hash)?;
        if snapshot.pins == 0 {
            self.evictable.remove(&snapshot.last_use);
        }
        snapshot.pins += 1;
        Some(snapshot.slot)
    }

    /// Undoes one `pin` and counts as a use.
    pub fn unpin(&mut self, hash: BlockHash) {
        let snapshot = self.snapshots.get_mut(&hash).expect("only pinned snapshots are unpinned; this is a bug");
        snapshot.pins -= 1;
        if snapshot.pins == 0 {
            self.clock += 1;
            snapshot.last_use = self.clock;
            self.evictable.insert(self.clock, hash);
        }
    }

    /// Makes an owned slot a snapshot. If there is one for this hash already, the slot is free again.
    pub fn remember(&mut self, slot: u32, hash: BlockHash) {
        if self.snapshots.contains_key(&hash) {
            self.free.push(slot);
            return;
        }
        self.clock += 1;
        self.snapshots.insert(hash, Snapshot { slot, last_use: self.clock, pins: 0 });
        self.evictable.insert(self.clock, hash);
    }

    /// Checks the books against the slots that sequences own. For tests.
    ///
    /// # Errors
    /// What does not add up.
    pub fn check(&self, owned: impl Iterator<Item = u32>) -> Result<(), String> {
        let mut seen = vec![0; self.num_slots];
        let snapshots = self.snapshots.values().map(|snapshot| snapshot.slot);
        owned.chain(self.free.iter().copied()).chain(snapshots).for_each(|slot| seen[slot as usize] += 1);
        match seen.iter().position(|&count| count != 1) {
            Some(slot) => Err(format!("state slot {slot} has {} owners", seen[slot])),
            None => Ok(()),
        }
    }
}
