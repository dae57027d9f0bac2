//! The directory under damage, bounds, company and a disk that takes nothing.
#![allow(clippy::unwrap_used)] // a test may fail loudly

use std::fs;
use std::path::PathBuf;

use super::*;

const BLOCK: usize = 64;

/// A directory of its own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fastchat-prefix-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn open(&self, files: u64, model: &str) -> Store {
        let bound = files * Store::file_bytes(BLOCK);
        let store = Store::open(&self.0, bound, blake3::hash(model.as_bytes()), BLOCK).unwrap();
        store.scan();
        store
    }

    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        let _ = fs::remove_file(&self.0);
    }
}

fn block(fill: u8) -> Vec<u8> {
    vec![fill; BLOCK]
}

#[test]
fn what_was_saved_is_read_by_the_same_model_and_no_other() {
    let scratch = Scratch::new("same");
    scratch.open(10, "a").save(1, &block(7)).unwrap();
    let again = scratch.open(10, "a");
    assert!(again.knows(1));
    assert_eq!(again.load(1), Some(block(7)));
    assert_eq!(again.load(2), None);
    let other = scratch.open(10, "b");
    assert_eq!(other.load(1), None);
    assert_eq!((again.stats().hits, other.stats().hits, other.stats().damaged), (1, 0, 0));
    assert_eq!(other.stats().bytes, Store::file_bytes(BLOCK), "the bound is shared");
}

#[test]
fn every_damaged_bit_and_every_length_is_a_miss_and_the_file_goes() {
    let scratch = Scratch::new("damage");
    let store = scratch.open(10, "a");
    store.save(1, &block(7)).unwrap();
    let path = scratch.files().remove(0);
    let whole = fs::read(&path).unwrap();
    let mut damaged: Vec<Vec<u8>> = (0..whole.len()).map(|length| whole[..length].to_vec()).collect();
    damaged.push([whole.clone(), vec![0]].concat());
    damaged.extend((0..8 * whole.len()).map(|bit| {
        let mut copy = whole.clone();
        copy[bit / 8] ^= 1 << (bit % 8);
        copy
    }));
    for (count, bytes) in (1..).zip(&damaged) {
        fs::write(&path, bytes).unwrap();
        assert_eq!(store.load(1), None);
        assert!(!path.exists() && !store.knows(1));
        assert_eq!(store.stats().damaged, count);
    }
    store.save(2, &block(8)).unwrap();
    fs::rename(scratch.files().remove(0), &path).unwrap();
    assert_eq!(store.load(1), None, "another block's file under this name");
}

#[test]
fn the_bound_is_kept_and_the_oldest_used_go_first() {
    let scratch = Scratch::new("bound");
    let store = scratch.open(3, "a");
    for (hash, fill) in [(1, 1), (2, 2), (3, 3)] {
        store.save(hash, &block(fill)).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(store.load(1).is_some());
    store.save(4, &block(4)).unwrap();
    assert_eq!(scratch.files().len(), 3);
    assert_eq!([1, 2, 3, 4].map(|hash| store.load(hash).is_some()), [true, false, true, true]);
    assert!(store.stats().bytes <= 3 * Store::file_bytes(BLOCK));
    fs::write(scratch.0.join("README"), "not ours").unwrap();
    assert_eq!(scratch.open(1, "a").stats().bytes, Store::file_bytes(BLOCK));
    assert_eq!(scratch.files().len(), 2, "a smaller bound holds from the start, and what is not ours stays");
}

#[test]
fn two_processes_share_a_directory() {
    let scratch = Scratch::new("shared");
    let (one, two) = (scratch.open(40, "a"), scratch.open(40, "a"));
    std::thread::scope(|scope| {
        for store in [&one, &two] {
            scope.spawn(move || {
                for hash in 0..200u128 {
                    store.save(hash, &block(hash as u8)).unwrap();
                    let back = store.load(hash / 2);
                    assert!(back.is_none_or(|bytes| bytes == block((hash / 2) as u8)));
                }
            });
        }
    });
    assert_eq!((one.stats().damaged, two.stats().damaged), (0, 0));
    one.scan();
    assert!(scratch.files().len() <= 40);
}

#[test]
fn a_disk_that_takes_nothing_leaves_nothing_half_written() {
    let scratch = Scratch::new("full");
    let store = scratch.open(10, "a");
    fs::remove_dir_all(&scratch.0).unwrap();
    fs::write(&scratch.0, "in the way").unwrap();
    assert!(store.save(1, &block(1)).is_err());
    assert_eq!(store.load(1), None);
    store.delete(1);
    store.scan();
    assert_eq!(store.stats(), DiskStats::default());
}
