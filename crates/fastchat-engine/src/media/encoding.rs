//! Requests that wait for their pictures: one piece of one picture at a time, so that running streams keep their pace.
//! What was encoded is remembered by content, within a budget of bytes.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use fastchat_models::vision::{Encoding, ImageFeatures, VisionTower};
use fastchat_models::{Decoder, ModelError};

use super::{ActiveMedia, RequestMedia};
use crate::block_hash::BlockHash;
use crate::command::Job;
use crate::error::EngineError;

/// Bytes of pictures that are remembered.
const REMEMBERED: usize = 256 << 20;

/// Requests whose pictures are not all encoded, in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct EncoderQueue {
    waiting: VecDeque<Waiting>,
    known: HashMap<BlockHash, Known>,
    bytes: usize,
    clock: u64,
}

#[derive(Debug)]
struct Waiting {
    job: Box<Job>,
    media: RequestMedia,
    done: Vec<Arc<ImageFeatures>>,
    current: Option<Encoding>,
}

#[derive(Debug)]
struct Known {
    features: Arc<ImageFeatures>,
    last_use: u64,
}

/// A request that has left the queue.
pub(crate) struct Ready {
    pub job: Box<Job>,
    pub media: Result<ActiveMedia, EngineError>,
}

impl EncoderQueue {
    /// Whether nothing waits.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Enters a request.
    pub fn push(&mut self, job: Box<Job>, media: RequestMedia) {
        self.waiting.push_back(Waiting { job, media, done: Vec::new(), current: None });
    }

    /// Takes out a request that waits.
    pub fn remove(&mut self, request: u64) -> Option<Box<Job>> {
        let place = self.waiting.iter().position(|waiting| waiting.job.submission.request == request)?;
        self.waiting.remove(place).map(|waiting| waiting.job)
    }

    /// Takes out all of them.
    pub fn drain(&mut self) -> impl Iterator<Item = Box<Job>> {
        self.waiting.drain(..).map(|waiting| waiting.job)
    }

    /// Does one piece of work for the first request, until about `until` if somebody waits; returns the request when it is
    /// ready or has failed.
    pub fn advance(&mut self, tower: &VisionTower, decoder: &Decoder, until: Option<Instant>) -> Option<Ready> {
        let mut first = self.waiting.pop_front()?;
        let worked = catch_unwind(AssertUnwindSafe(|| self.work(&mut first, (tower, decoder), until)));
        let failed = match worked {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(EngineError::from(error)),
            Err(_) => Some(EngineError::Internal("encoding a picture failed".to_owned())),
        };
        let Waiting { media, done, .. } = &first;
        if failed.is_none() && done.len() < media.images.len() {
            self.waiting.push_front(first);
            return None;
        }
        let Waiting { job, media, done, .. } = first;
        let media = failed.map_or(Ok(ActiveMedia { features: done, layout: media.layout }), Err);
        Some(Ready { job, media })
    }

    fn work(
        &mut self,
        waiting: &mut Waiting,
        (tower, decoder): (&VisionTower, &Decoder),
        until: Option<Instant>,
    ) -> Result<(), ModelError> {
        let Some((hash, pixels)) = waiting.media.images.get(waiting.done.len()) else { return Ok(()) };
        self.clock += 1;
        if let Some(known) = self.known.get_mut(hash) {
            known.last_use = self.clock;
            waiting.done.push(known.features.clone());
            waiting.current = None;
            return Ok(());
        }
        let Some(encoding) = &mut waiting.current else {
            waiting.current = Some(tower.start(pixels)?);
            return Ok(());
        };
        if let Some(features) = tower.advance(encoding, until)? {
            let features = Arc::new(decoder.look(features)?);
            waiting.current = None;
            self.remember(*hash, &features);
            waiting.done.push(features);
        }
        Ok(())
    }

    /// Keeps a picture, at the price of those used longest ago.
    fn remember(&mut self, hash: BlockHash, features: &Arc<ImageFeatures>) {
        self.bytes += features.bytes();
        self.known.insert(hash, Known { features: features.clone(), last_use: self.clock });
        while self.bytes > REMEMBERED {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.last_use).map(|(hash, _)| *hash);
            let Some(known) = oldest.and_then(|hash| self.known.remove(&hash)) else { break };
            self.bytes -= known.features.bytes();
        }
    }
}
