//! What the scheduler tells of its cache to whoever keeps blocks elsewhere, and takes from there: hashes and numbers.

use super::Scheduler;
use crate::block_hash::{BlockHash, hash_media, hash_salt};
use crate::schedule::Submission;
use crate::sequence::extend_chain;
use fastchat_kernels::BLOCK_SIZE;

/// What became of a block's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockNews {
    /// Computed, and in this block until the next step.
    Remembered(BlockHash, u32),
    /// Not to be trusted any more.
    Forgotten(BlockHash),
}

impl Scheduler {
    /// From now on news are gathered, and somebody must take them after every step.
    pub fn tell_news(&mut self) {
        self.news = Some(Vec::new());
    }

    /// The news since the last call.
    pub fn take_news(&mut self) -> Vec<BlockNews> {
        self.news.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn note(&mut self, news: BlockNews) {
        if let Some(all) = &mut self.news {
            all.push(news);
        }
    }

    /// Start of a request's chain of hashes; `None` shares nothing.
    pub(super) fn salt(&self, submission: &Submission) -> Option<BlockHash> {
        let salt = match (self.config.enable_prefix_caching, &submission.cache_salt) {
            (true, Some(salt)) => hash_salt("salt", salt.as_bytes()),
            (true, None) => hash_salt("shared", &[]),
            (false, _) if submission.n > 1 => hash_salt("request", &self.next_id.to_le_bytes()),
            (false, _) => return None,
        };
        Some(submission.surroundings.map_or(salt, |surroundings| hash_media(salt, surroundings)))
    }

    /// Hashes of the blocks that a request could find in the cache, as many as the cache could take.
    pub fn chain(&self, submission: &Submission) -> Vec<BlockHash> {
        let mut hashes = Vec::new();
        if self.config.enable_prefix_caching
            && !submission.wants_prompt_logits
            && let Some(salt) = self.salt(submission)
        {
            // One token at least must be computed, for its logits.
            let count = (submission.prompt.len().saturating_sub(1) / BLOCK_SIZE).min(self.config.num_blocks);
            extend_chain(&mut hashes, (salt, count), &submission.prompt, &submission.spans);
        }
        hashes
    }

    /// Unreferenced blocks for contents that follow `before`, findable at once; the caller fills them before the next
    /// step. `None` for contents that are there already; shorter than `hashes` when there is no room.
    pub fn adopt(&mut self, before: &[BlockHash], hashes: &[BlockHash]) -> Vec<Option<u32>> {
        // The chain must not be eaten by its own end.
        let mut held = self.blocks.lookup(before);
        self.blocks.share(&held);
        let mut adopted = Vec::new();
        for &hash in hashes {
            if let [known] = self.blocks.lookup(&[hash])[..] {
                self.blocks.share(&[known]);
                held.push(known);
                adopted.push(None);
                continue;
            }
            if self.blocks.num_free() <= self.lines.num_running() {
                break;
            }
            let Some(block) = self.blocks.allocate() else { break };
            self.blocks.remember(block, hash);
            held.push(block);
            adopted.push(Some(block));
        }
        self.blocks.release(&held);
        adopted
    }

    /// Takes back an adopted block that could not be filled.
    pub fn disown(&mut self, block: u32) {
        self.blocks.share(&[block]);
        self.blocks.forget(&[block]);
        self.blocks.release(&[block]);
    }
}
