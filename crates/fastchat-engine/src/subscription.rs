//! A doorbell for event loops, with the way to submit through it.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use crate::config::Request;
use crate::doorbell::Doorbell;
use crate::error::EngineError;
use crate::front::Front;
use crate::handle::RequestHandle;

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
