//! The prefix cache on disk: full blocks outlive the process. Files are written and read by two threads of its own, so
//! that no step waits for a disk; the engine thread only copies blocks. The scheduler sees hashes and block numbers.

mod index;
mod store;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::block_hash::BlockHash;
use crate::command::{Command, Job};
use crate::error::EngineError;
pub use store::DiskStats;
use store::Store;

/// Bytes that may wait to be written; blocks that come while they do are not kept.
const MAX_PENDING: usize = 64 << 20;
/// Bytes read back at once, between two steps of others.
const PIECE: usize = 64 << 20;
/// How long nothing is written after a disk refused.
const PAUSE: Duration = Duration::from_secs(10);

/// Where blocks are kept, and how many bytes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixDiskConfig {
    /// Made if it is not there.
    pub dir: PathBuf,
    /// Bytes of all files, of all models and processes that share the directory.
    pub bytes: u64,
}

/// What the thread that writes is told.
enum Change {
    Save(BlockHash, Vec<u8>),
    Delete(BlockHash),
}

/// A request whose prefix is being read.
#[derive(Debug)]
pub(crate) struct Away {
    pub job: Box<Job>,
    /// Of all full blocks of its prompt.
    pub hashes: Vec<BlockHash>,
    /// Those before this one are in memory.
    pub at: usize,
}

/// The way to the directory, and the requests that wait for it.
#[derive(Debug)]
pub(crate) struct PrefixDisk {
    store: Arc<Store>,
    block_bytes: usize,
    away: HashMap<u64, Away>,
    pending: Arc<AtomicUsize>,
    changes: Option<Sender<Change>>,
    asks: Option<Sender<(u64, Vec<BlockHash>)>>,
    threads: Vec<JoinHandle<()>>,
}

/// Figures, for whoever holds no more than this.
#[derive(Clone, Debug)]
pub(crate) struct DiskFigures(Arc<Store>);

impl DiskFigures {
    pub fn stats(&self) -> DiskStats {
        self.0.stats()
    }
}

impl PrefixDisk {
    /// Opens the directory for blocks of `block_bytes` that `identity` decides; news come back as commands.
    pub fn open(
        config: &PrefixDiskConfig,
        identity: blake3::Hash,
        block_bytes: usize,
        news: Sender<Command>,
    ) -> Result<Self, EngineError> {
        let (dir, least) = (&config.dir, Store::file_bytes(block_bytes));
        if config.bytes < least {
            let message = format!("prefix_cache_size is {} bytes; one block of this model takes {least}", config.bytes);
            return Err(EngineError::invalid("prefix_cache_size", message));
        }
        let unusable = |error| {
            let message = format!("prefix_cache_dir is '{}', which cannot be used: {error}", dir.display());
            EngineError::invalid("prefix_cache_dir", message)
        };
        let store = Arc::new(Store::open(dir, config.bytes, identity, block_bytes).map_err(unusable)?);
        let pending = Arc::new(AtomicUsize::new(0));
        let (changes, changed) = channel();
        let (asks, asked) = channel();
        let (writer, reader) = ((store.clone(), pending.clone()), store.clone());
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let builder = std::thread::Builder::new().name(name.to_owned());
            builder.spawn(work).map_err(|error| EngineError::Internal(format!("{name} did not start: {error}")))
        };
        let threads = vec![
            spawn("fastchat-disk-w", Box::new(move || write_all(&writer.0, &writer.1, &changed)))?,
            spawn("fastchat-disk-r", Box::new(move || read_all(&reader, &asked, &news)))?,
        ];
        let away = HashMap::new();
        Ok(Self { store, block_bytes, away, pending, changes: Some(changes), asks: Some(asks), threads })
    }

    pub fn figures(&self) -> DiskFigures {
        DiskFigures(self.store.clone())
    }

    /// Requests that wait for the disk.
    pub fn len(&self) -> usize {
        self.away.len()
    }

    /// Whether a block is worth copying: it is not there, and there is room on the way.
    pub fn wants(&self, hash: BlockHash) -> bool {
        if self.store.knows(hash) {
            return false;
        }
        let room = self.pending.load(Ordering::Relaxed) < MAX_PENDING;
        if !room {
            self.store.dropped.fetch_add(1, Ordering::Relaxed);
        }
        room
    }

    /// Has a block written some time.
    pub fn save(&self, hash: BlockHash, bytes: Vec<u8>) {
        self.pending.fetch_add(bytes.len(), Ordering::Relaxed);
        self.tell(Change::Save(hash, bytes));
    }

    /// Has a block deleted, after what was told before.
    pub fn delete(&self, hash: BlockHash) {
        self.tell(Change::Delete(hash));
    }

    fn tell(&self, change: Change) {
        // A thread that is gone has printed why; its blocks are not kept.
        let _ = self.changes.as_ref().map(|changes| changes.send(change));
    }

    /// Has the next piece read; gives the request back when there is nobody to do it.
    pub fn ask(&mut self, away: Away) -> Result<(), Box<Away>> {
        let request = away.job.submission.request;
        let most = (PIECE / self.block_bytes.max(1)).max(1);
        let piece = away.hashes[away.at..].iter().copied().take(most).collect();
        let Some(Ok(())) = self.asks.as_ref().map(|asks| asks.send((request, piece))) else {
            return Err(Box::new(away));
        };
        self.away.insert(request, away);
        Ok(())
    }

    /// Takes back a request, wherever its reading stands.
    pub fn remove(&mut self, request: u64) -> Option<Away> {
        self.away.remove(&request)
    }

    /// All that wait, for an engine that dies.
    pub fn drain(&mut self) -> impl Iterator<Item = Box<Job>> {
        self.away.drain().map(|(_, away)| away.job)
    }
}

impl Drop for PrefixDisk {
    /// Waits until all that was told is written.
    fn drop(&mut self) {
        (self.changes, self.asks) = (None, None);
        for thread in self.threads.drain(..) {
            // Its panic was reported where it happened.
            let _ = thread.join();
        }
    }
}

fn write_all(store: &Store, pending: &AtomicUsize, changes: &Receiver<Change>) {
    store.scan();
    let mut refused: Option<Instant> = None;
    for change in changes {
        match change {
            Change::Delete(hash) => store.delete(hash),
            Change::Save(hash, bytes) => {
                pending.fetch_sub(bytes.len(), Ordering::Relaxed);
                let paused = refused.is_some_and(|since| since.elapsed() < PAUSE);
                if paused || store.save(hash, &bytes).is_err() {
                    store.dropped.fetch_add(1, Ordering::Relaxed);
                    refused = refused.filter(|_| paused).or_else(|| Some(Instant::now()));
                } else {
                    refused = None;
                }
            }
        }
    }
}

fn read_all(store: &Store, asks: &Receiver<(u64, Vec<BlockHash>)>, news: &Sender<Command>) {
    for (request, hashes) in asks {
        let blocks = hashes.iter().map_while(|&hash| store.load(hash)).collect();
        if news.send(Command::Restored(request, blocks)).is_err() {
            return;
        }
    }
}
