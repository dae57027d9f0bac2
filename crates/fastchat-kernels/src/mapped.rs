//! Read-only bytes of a weight file: memory-mapped, or owned when a loader had to rearrange them. Knows no format.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A whole file mapped read-only. Its pages are shared with the page cache and freed when the last [`Bytes`] goes.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: memmap2::Mmap,
}

impl MappedFile {
    /// Maps `path`.
    ///
    /// # Errors
    /// The I/O error of opening or mapping.
    pub fn open(path: &Path) -> std::io::Result<Arc<Self>> {
        let file = File::open(path)?;
        // SAFETY: the map is read-only and private to this process. A file truncated by somebody else while it is
        // mapped raises SIGBUS; docs/operations.md tells users to replace weight files by renaming, never in place.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Arc::new(Self { path: path.to_owned(), map }))
    }

    /// Where the file lies, for error messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file in bytes.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether the file is empty.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The whole content.
    pub fn as_slice(&self) -> &[u8] {
        &self.map
    }
}

/// A cheap, shared view of bytes: a range of a mapped file, or an owned buffer.
#[derive(Clone, Debug)]
pub enum Bytes {
    /// A range of a mapped file.
    Mapped {
        /// The file.
        file: Arc<MappedFile>,
        /// Byte range inside it; checked by [`Bytes::mapped`].
        range: Range<usize>,
    },
    /// Bytes a loader made.
    Owned(Arc<[u8]>),
}

impl Bytes {
    /// The `range` of `file`, or `None` when it does not lie inside.
    pub fn mapped(file: &Arc<MappedFile>, range: Range<usize>) -> Option<Self> {
        (range.start <= range.end && range.end <= file.len()).then(|| Self::Mapped { file: file.clone(), range })
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped { file, range } => &file.as_slice()[range.clone()],
            Self::Owned(bytes) => bytes,
        }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Owned(bytes.into())
    }
}
