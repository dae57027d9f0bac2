//! How the engine thread uses the prefix cache on disk: requests wait for it before they enter, and blocks that became
//! full are copied for it. Knows no files.

use std::sync::mpsc::Sender;

use fastchat_kernels::BLOCK_SIZE;
use fastchat_models::LoadedModel;

use crate::command::{Command, Job};
use crate::config::EngineConfig;
use crate::error::EngineError;
use crate::info::ModelInfo;
use crate::prefix_disk::{Away, PrefixDisk};
use crate::scheduler::BlockNews;
use crate::worker::Worker;

/// Opens the prefix cache on disk, if one is asked for and of use to this model, and says so in `info`.
pub(crate) fn open_disk(
    config: &EngineConfig,
    model: &LoadedModel,
    info: &mut ModelInfo,
    news: &Sender<Command>,
) -> Result<Option<PrefixDisk>, EngineError> {
    let Some(disk) = &config.prefix_disk else { return Ok(None) };
    if model.decoder.has_recurrent_state() {
        // A snapshot of recurrent state is as large as thousands of tokens' keys, and nothing before it is of use alone.
        "not used: this model has recurrent state, which is not kept on disk".clone_into(&mut info.prefix_disk);
        return Ok(None);
    }
    let block_bytes = model.decoder.bytes_per_block(info.memory.kv_dtype);
    let decides = (env!("CARGO_PKG_VERSION"), &model.fingerprint, &info.kernels, info.memory.kv_dtype, BLOCK_SIZE);
    let identity = blake3::hash(format!("{decides:?} {block_bytes} {}", info.spec).as_bytes());
    info.prefix_disk = format!("{}, at most {} bytes", disk.dir.display(), disk.bytes);
    PrefixDisk::open(disk, identity, block_bytes, news.clone()).map(Some)
}

impl Worker {
    /// Lets a request in, after what the disk may have of its prefix has been read.
    pub(crate) fn admit(&mut self, job: Box<Job>) {
        let Some(disk) = &mut self.disk else { return self.enter(*job) };
        let hashes = self.scheduler.chain(&job.submission);
        let at = self.scheduler.blocks().lookup(&hashes).len();
        if at == hashes.len() {
            return self.enter(*job);
        }
        if let Err(away) = disk.ask(Away { job, hashes, at }) {
            self.enter(*away.job);
        }
    }

    /// A request that has not entered yet, for its caller gave up.
    pub(crate) fn take_back(&mut self, request: u64) -> Option<Box<Job>> {
        let away = |disk: &mut PrefixDisk| disk.remove(request);
        let waiting = self.disk.as_mut().and_then(away).map(|away| away.job);
        waiting.or_else(|| self.encoder.remove(request))
    }

    /// Takes the next blocks of a request's prefix; as long as there are more, has them read.
    pub(crate) fn restore(&mut self, request: u64, blocks: &[Vec<u8>]) {
        let Some(disk) = &mut self.disk else { return };
        // It may have been given up meanwhile.
        let Some(mut away) = disk.remove(request) else { return };
        let end = away.at + blocks.len();
        let adopted = self.scheduler.adopt(&away.hashes[..away.at], &away.hashes[away.at..end]);
        let complete = adopted.len() == blocks.len();
        let mut written = true;
        for (bytes, block) in blocks.iter().zip(&adopted) {
            if let Some(block) = block {
                written = written && self.runner.write_block(*block, bytes).is_ok();
                if !written {
                    self.scheduler.disown(*block);
                }
            }
        }
        away.at = end;
        if complete && written && !blocks.is_empty() && end < away.hashes.len() {
            match disk.ask(away) {
                Ok(()) => return,
                Err(back) => away = *back,
            }
        }
        self.enter(*away.job);
    }

    /// Hands to the disk what became known since the last step, and takes back what proved wrong.
    pub(crate) fn keep_blocks(&mut self) {
        let Some(disk) = &self.disk else { return };
        for news in self.scheduler.take_news() {
            match news {
                BlockNews::Forgotten(hash) => disk.delete(hash),
                BlockNews::Remembered(hash, block) => {
                    // A device that cannot be read from fails the next step, and says so there.
                    if disk.wants(hash)
                        && let Ok(bytes) = self.runner.read_block(block)
                    {
                        disk.save(hash, bytes);
                    }
                }
            }
        }
    }
}
