//! The directory of blocks: one checksummed file per block, written whole or not at all. Processes may share it: what
//! another one wrote or deleted is found out at the file itself. Knows no tensors; nothing here fails a request.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::index::Index;
use crate::block_hash::BlockHash;

/// First bytes of every file; the digit is the version of the format.
const MAGIC: &[u8; 8] = b"FCKVBLK1";
const HEADER: usize = MAGIC.len() + blake3::OUT_LEN;
/// A temporary file this old belongs to a process that is gone.
const ABANDONED: Duration = Duration::from_hours(1);
/// The directory is read again after this part of its bound was written: other processes write there too.
const RESCAN: u64 = 16;

/// What happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Blocks read back.
    pub hits: u64,
    /// Blocks written.
    pub written: u64,
    /// Files that were not what was written, and are deleted.
    pub damaged: u64,
    /// Blocks that could not be written, or not in time.
    pub dropped: u64,
    /// Bytes that the directory holds.
    pub bytes: u64,
}

/// One directory, as one model sees it.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    /// Hash of all that decides a block's bytes beside its own hash.
    identity: blake3::Hash,
    block_bytes: usize,
    bound: u64,
    /// In the names of its temporary files: others write the same blocks, of this process too.
    writer: u64,
    index: Mutex<Index>,
    hits: AtomicU64,
    written: AtomicU64,
    damaged: AtomicU64,
    pub dropped: AtomicU64,
    since_scan: AtomicU64,
}

impl Store {
    /// Makes the directory if there is none.
    pub fn open(dir: &Path, bound: u64, identity: blake3::Hash, block_bytes: usize) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            identity,
            block_bytes,
            bound,
            writer: getrandom::u64()?,
            index: Mutex::new(Index::new(bound)),
            hits: AtomicU64::new(0),
            written: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            since_scan: AtomicU64::new(0),
        })
    }

    /// Bytes of one file.
    pub fn file_bytes(block_bytes: usize) -> u64 {
        (HEADER + block_bytes) as u64
    }

    pub fn stats(&self) -> DiskStats {
        DiskStats {
            hits: self.hits.load(Ordering::Relaxed),
            written: self.written.load(Ordering::Relaxed),
            damaged: self.damaged.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            bytes: self.index.lock().total(),
        }
    }

    /// Whether this process knows that the block is there.
    pub fn knows(&self, hash: BlockHash) -> bool {
        self.index.lock().contains(&self.name(hash))
    }

    /// The block's bytes, if they are there and are what was written.
    pub fn load(&self, hash: BlockHash) -> Option<Vec<u8>> {
        let name = self.name(hash);
        let path = self.dir.join(&name);
        let is_file = fs::symlink_metadata(&path).is_ok_and(|found| found.is_file());
        let Some(mut file) = is_file.then(|| File::open(&path).ok()).flatten() else {
            // Another process may have deleted it: it can be written again.
            self.index.lock().remove(&name);
            return None;
        };
        let mut bytes = Vec::with_capacity(HEADER + self.block_bytes);
        // One byte more than there should be, so that a longer file is noticed.
        let read = (&mut file).take(Self::file_bytes(self.block_bytes) + 1).read_to_end(&mut bytes);
        if read.is_err() || !self.is_whole(hash, &bytes) {
            self.damaged.fetch_add(1, Ordering::Relaxed);
            self.delete(hash);
            return None;
        }
        let now = SystemTime::now();
        // Only the order of leaving suffers when this fails.
        let _ = file.set_modified(now);
        self.index.lock().touch(&name, ticks(now));
        self.hits.fetch_add(1, Ordering::Relaxed);
        bytes.drain(..HEADER);
        Some(bytes)
    }

    /// Writes a block beside its place, then puts it there; the oldest used make room.
    pub fn save(&self, hash: BlockHash, block: &[u8]) -> io::Result<()> {
        let name = self.name(hash);
        let path = self.dir.join(&name);
        if path.exists() {
            return Ok(());
        }
        let size = Self::file_bytes(self.block_bytes);
        self.make_room(size);
        let temporary = self.dir.join(format!("{name}.{:016x}.tmp", self.writer));
        let put = self.write(&temporary, hash, block).and_then(|()| fs::rename(&temporary, &path));
        if let Err(error) = put {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        self.written.fetch_add(1, Ordering::Relaxed);
        self.index.lock().insert(name, size, ticks(SystemTime::now()));
        if self.since_scan.fetch_add(size, Ordering::Relaxed) + size > self.bound / RESCAN {
            self.scan();
        }
        Ok(())
    }

    /// Removes a block.
    pub fn delete(&self, hash: BlockHash) {
        let name = self.name(hash);
        self.index.lock().remove(&name);
        // It may be gone already.
        let _ = fs::remove_file(self.dir.join(name));
    }

    /// Reads the directory: blocks of all models and processes, since they share the bound.
    pub fn scan(&self) {
        self.since_scan.store(0, Ordering::Relaxed);
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut index = Index::new(self.bound);
        for entry in entries.flatten() {
            let (Ok(name), Ok(metadata)) = (entry.file_name().into_string(), entry.metadata()) else { continue };
            let modified = metadata.modified().unwrap_or(UNIX_EPOCH);
            match kind(&name) {
                Some(Kind::Block) if metadata.is_file() => index.insert(name, metadata.len(), ticks(modified)),
                Some(Kind::Temporary) if modified.elapsed().is_ok_and(|age| age > ABANDONED) => {
                    let _ = fs::remove_file(entry.path());
                }
                _ => {}
            }
        }
        *self.index.lock() = index;
        self.make_room(0);
    }

    fn make_room(&self, bytes: u64) {
        let victims = self.index.lock().trim(bytes);
        for victim in victims {
            let _ = fs::remove_file(self.dir.join(victim));
        }
    }

    fn write(&self, path: &Path, hash: BlockHash, block: &[u8]) -> io::Result<()> {
        // What a block holds can be read out of it, so nobody else may.
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(MAGIC)?;
        file.write_all(self.checksum(hash, block).as_bytes())?;
        file.write_all(block)
    }

    fn is_whole(&self, hash: BlockHash, bytes: &[u8]) -> bool {
        bytes.len() == HEADER + self.block_bytes
            && &bytes[..MAGIC.len()] == MAGIC
            && bytes[MAGIC.len()..HEADER] == *self.checksum(hash, &bytes[HEADER..]).as_bytes()
    }

    fn checksum(&self, hash: BlockHash, block: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(self.identity.as_bytes());
        hasher.update(&hash.to_le_bytes()).update(block).finalize()
    }

    /// `<32 hex digits of the identity>-<32 hex digits of the block's hash>.kv`
    fn name(&self, hash: BlockHash) -> String {
        format!("{}-{hash:032x}.kv", &self.identity.to_hex()[..32])
    }
}

enum Kind {
    Block,
    Temporary,
}

/// What a file of the directory is; nothing that others put there is ever touched.
fn kind(name: &str) -> Option<Kind> {
    let (stem, rest) = name.split_at_checked(65)?;
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !(hex(&stem[..32]) && &stem[32..33] == "-" && hex(&stem[33..])) {
        return None;
    }
    match rest {
        ".kv" => Some(Kind::Block),
        _ if rest.strip_prefix(".kv.").is_some_and(|rest| rest.strip_suffix(".tmp").is_some()) => Some(Kind::Temporary),
        _ => None,
    }
}

/// Order of use. A clock that is set only changes who leaves first.
fn ticks(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
