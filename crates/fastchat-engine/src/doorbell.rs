//! A file descriptor that becomes readable when handles have news, rung at most once per step. Knows ids only.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// Both ends of a socket pair; kept together so that the writer never meets a closed reader.
#[derive(Debug)]
pub(crate) struct Doorbell {
    reader: UnixStream,
    writer: UnixStream,
    news: Mutex<BTreeSet<u64>>,
    closed: AtomicBool,
}

impl Doorbell {
    pub fn new() -> std::io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        writer.set_nonblocking(true)?;
        Ok(Self { reader, writer, news: Mutex::default(), closed: AtomicBool::new(false) })
    }

    /// Notes that handle `id` has news. Returns whether the bell must be rung for it.
    pub fn announce(&self, id: u64) -> bool {
        let mut news = self.news.lock();
        let first = news.is_empty();
        news.insert(id);
        first && !self.closed.load(Ordering::Relaxed)
    }

    /// Makes the descriptor readable. A full socket is readable already, so no error matters.
    pub fn ring(&self) {
        let _ = (&self.writer).write(&[1]);
    }

    /// Makes it unreadable and returns the ids. The socket is drained first: news that comes between rings again.
    pub fn take(&self) -> Vec<u64> {
        let mut bytes = [0; 64];
        while matches!((&self.reader).read(&mut bytes), Ok(count) if count > 0) {}
        std::mem::take(&mut *self.news.lock()).into_iter().collect()
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.reader.as_raw_fd()
    }
}
