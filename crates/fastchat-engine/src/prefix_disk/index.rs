//! Which blocks the directory holds, how large they are together, and which was used longest ago. Pure: knows no file
//! and no clock.

use std::collections::{BTreeSet, HashMap};

#[derive(Clone, Copy, Debug)]
struct Entry {
    bytes: u64,
    used: u64,
}

/// The books of one directory.
#[derive(Clone, Debug)]
pub(super) struct Index {
    bound: u64,
    total: u64,
    entries: HashMap<String, Entry>,
    /// By last use, in whatever unit the caller counts.
    order: BTreeSet<(u64, String)>,
}

impl Index {
    /// Empty, for a directory of at most `bound` bytes.
    pub fn new(bound: u64) -> Self {
        Self { bound, total: 0, entries: HashMap::new(), order: BTreeSet::new() }
    }

    /// Bytes of all entries.
    pub fn total(&self) -> u64 {
        self.total
    }

    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Enters a file, or its new size and use.
    pub fn insert(&mut self, name: String, bytes: u64, used: u64) {
        self.remove(&name);
        self.total = self.total.saturating_add(bytes);
        self.order.insert((used, name.clone()));
        self.entries.insert(name, Entry { bytes, used });
    }

    /// Notes that a file was used, if it is known.
    pub fn touch(&mut self, name: &str, used: u64) {
        if let Some(bytes) = self.entries.get(name).map(|entry| entry.bytes) {
            self.insert(name.to_owned(), bytes, used);
        }
    }

    /// Forgets a file.
    pub fn remove(&mut self, name: &str) {
        if let Some((name, entry)) = self.entries.remove_entry(name) {
            self.total -= entry.bytes;
            self.order.remove(&(entry.used, name));
        }
    }

    /// Forgets the oldest used files until `room` more bytes fit; the caller deletes them.
    pub fn trim(&mut self, room: u64) -> Vec<String> {
        let mut victims = Vec::new();
        while self.total.saturating_add(room) > self.bound
            && let Some((_, name)) = self.order.first().cloned()
        {
            self.remove(&name);
            victims.push(name);
        }
        victims
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Index;

    #[derive(Clone, Debug)]
    enum Operation {
        Store(u8, u64),
        Touch(u8),
        Remove(u8),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            (0..12u8, 1..40u64).prop_map(|(name, bytes)| Operation::Store(name, bytes)),
            (0..12u8).prop_map(Operation::Touch),
            (0..12u8).prop_map(Operation::Remove),
        ]
    }

    proptest! {
        /// Against a list in order of use, the oldest first.
        #[test]
        fn keeps_its_bound_and_lets_the_oldest_go(bound in 40..120u64, operations in prop::collection::vec(operation(), 1..120)) {
            let mut index = Index::new(bound);
            let mut model: Vec<(String, u64)> = Vec::new();
            for (clock, operation) in (1..).zip(operations) {
                match operation {
                    Operation::Store(name, bytes) => {
                        let name = name.to_string();
                        index.remove(&name);
                        model.retain(|(known, _)| *known != name);
                        let mut expected = Vec::new();
                        while model.iter().map(|(_, bytes)| bytes).sum::<u64>() + bytes > bound {
                            expected.push(model.remove(0).0);
                        }
                        prop_assert_eq!(index.trim(bytes), expected);
                        index.insert(name.clone(), bytes, clock);
                        model.push((name, bytes));
                    }
                    Operation::Touch(name) => {
                        let name = name.to_string();
                        index.touch(&name, clock);
                        if let Some(at) = model.iter().position(|(known, _)| *known == name) {
                            let entry = model.remove(at);
                            model.push(entry);
                        }
                    }
                    Operation::Remove(name) => {
                        index.remove(&name.to_string());
                        model.retain(|(known, _)| *known != name.to_string());
                    }
                }
                prop_assert_eq!(index.total(), model.iter().map(|(_, bytes)| bytes).sum::<u64>());
                prop_assert!(index.total() <= bound);
                prop_assert_eq!(index.order.len(), index.entries.len());
                prop_assert!(model.iter().all(|(name, _)| index.contains(name)));
                prop_assert_eq!(index.entries.len(), model.len());
            }
        }
    }
}
