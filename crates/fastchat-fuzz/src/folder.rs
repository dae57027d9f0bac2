//! A folder of its own for each input that has to lie in a file. Knows nothing of what is in it.

use std::path::{Path, PathBuf};

/// Is gone when it is dropped.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// An empty folder that no other thread uses.
    pub(crate) fn new(target: &str) -> Self {
        let (process, thread) = (std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(format!("fastchat-fuzz-{target}-{process}-{thread:?}"));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }

    /// Puts `bytes` into the file `name`; where it lies.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).expect("room for a small file");
        path
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed stays in the temporary folder, which is no reason to lose the finding.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
