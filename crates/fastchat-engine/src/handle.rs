//! What a caller holds: one request in flight.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use crate::command::Command;
use crate::delta::{Delta, PromptLogprobs, Timings};
use crate::slot::Slot;

/// One request in flight. Dropping it aborts the request.
#[derive(Debug)]
pub struct RequestHandle {
    pub(crate) slot: Arc<Slot>,
    pub(crate) commands: Sender<Command>,
}

impl RequestHandle {
    /// Its number, unique in this engine.
    pub fn id(&self) -> u64 {
        self.slot.id
    }

    /// The prompt as the model sees it.
    pub fn prompt_token_ids(&self) -> &[u32] {
        &self.slot.prompt
    }

    /// What has come since the last call, at most one delta per choice; never waits.
    pub fn take(&self) -> Vec<Delta> {
        self.slot.take()
    }

    /// As `take`, but waits until there is news, the request has ended, or `timeout` has passed.
    pub fn wait(&self, timeout: Option<Duration>) -> Vec<Delta> {
        self.slot.wait(timeout)
    }

    /// Whether every choice has ended and its last delta was taken.
    pub fn is_finished(&self) -> bool {
        self.slot.is_finished()
    }

    /// Available from the first delta on, when asked for.
    pub fn prompt_logprobs(&self) -> Option<PromptLogprobs> {
        self.slot.prompt_logprobs().map(|found| PromptLogprobs::clone(&found))
    }

    /// What it waited for so far.
    pub fn timings(&self) -> Timings {
        self.slot.timings()
    }

    /// Frees its blocks within one step, wherever it is. Twice does no harm.
    pub fn abort(&self) {
        if self.slot.is_open() {
            // An engine that is gone has ended the request already.
            let _ = self.commands.send(Command::Abort(self.slot.id));
        }
    }
}

impl Drop for RequestHandle {
    fn drop(&mut self) {
        self.abort();
    }
}
