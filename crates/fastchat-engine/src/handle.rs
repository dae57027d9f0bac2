//! What a caller holds: one request in flight, and a doorbell for event loops.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use crate::config::Request;
use crate::delta::{Delta, PromptLogprobs, Timings};
use crate::doorbell::Doorbell;
use crate::engine::Front;
use crate::error::EngineError;
use crate::slot::Slot;
use crate::worker::Command;

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

/// A doorbell for an event loop: its descriptor becomes readable when handles made through it have news, at most once
/// per step.
#[derive(Debug)]
pub struct Subscription {
    pub(crate) front: Arc<Front>,
    pub(crate) doorbell: Arc<Doorbell>,
}

impl Subscription {
    /// As `Engine::submit`, with the handle's news announced here.
    ///
    /// # Errors
    /// As `Engine::submit`.
    pub fn submit(&self, request: Request) -> Result<RequestHandle, EngineError> {
        self.front.submit(request, Some(self.doorbell.clone()))
    }

    /// Makes the descriptor unreadable and returns the ids of handles with news; never waits.
    pub fn ready(&self) -> Vec<u64> {
        self.doorbell.take()
    }

    /// Stops announcing. The descriptor stays open until this and all its handles are gone.
    pub fn close(&self) {
        self.doorbell.close();
    }
}

impl AsRawFd for Subscription {
    fn as_raw_fd(&self) -> RawFd {
        self.doorbell.as_raw_fd()
    }
}
