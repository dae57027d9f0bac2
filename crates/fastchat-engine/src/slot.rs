//! Where the engine thread leaves a request's news and its owner picks them up: merged per choice, so that a slow reader
//! gets bigger pieces and nobody waits for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::delta::{Delta, Finish, PromptLogprobs, Timings, Usage};
use crate::doorbell::Doorbell;
use crate::error::EngineError;
use crate::sequence::FinishReason;

/// The meeting point of one request.
#[derive(Debug)]
pub(crate) struct Slot {
    pub id: u64,
    pub prompt: Arc<[u32]>,
    doorbell: Option<Arc<Doorbell>>,
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Debug)]
struct State {
    pending: Vec<Option<Delta>>,
    ended: Vec<bool>,
    usage: Vec<Usage>,
    prompt_logprobs: Option<Arc<PromptLogprobs>>,
    submitted: Instant,
    timings: Timings,
}

impl State {
    fn is_open(&self) -> bool {
        self.ended.contains(&false)
    }

    fn take(&mut self) -> Vec<Delta> {
        self.pending.iter_mut().filter_map(Option::take).collect()
    }
}

impl Slot {
    pub fn new(id: u64, prompt: Arc<[u32]>, choices: u32, doorbell: Option<Arc<Doorbell>>) -> Self {
        let state = State {
            pending: vec![None; choices as usize],
            ended: vec![false; choices as usize],
            usage: vec![Usage { prompt_tokens: prompt.len(), ..Usage::default() }; choices as usize],
            prompt_logprobs: None,
            submitted: Instant::now(),
            timings: Timings::default(),
        };
        Self { id, prompt, doorbell, state: Mutex::new(state), news: Condvar::new() }
    }

    /// Adds news of one choice. Returns the doorbell if it has to be rung.
    pub fn publish(&self, delta: Delta) -> Option<Arc<Doorbell>> {
        let mut state = self.state.lock();
        let index = delta.index as usize;
        if state.ended[index] {
            return None;
        }
        state.ended[index] = delta.finish.is_some();
        state.usage[index] = delta.usage;
        let elapsed = state.submitted.elapsed();
        if !delta.token_ids.is_empty() {
            state.timings.first_token.get_or_insert(elapsed);
        }
        if !state.is_open() {
            state.timings.total = Some(elapsed);
        }
        match &mut state.pending[index] {
            Some(earlier) => earlier.merge(delta),
            none => *none = Some(delta),
        }
        drop(state);
        self.news.notify_all();
        self.doorbell.as_ref().filter(|bell| bell.announce(self.id)).cloned()
    }

    /// Ends every choice that has not ended. Returns the doorbell if it has to be rung.
    pub fn close(&self, reason: FinishReason, error: &EngineError) -> Option<Arc<Doorbell>> {
        let choices = self.state.lock().ended.len() as u32;
        let mut bell = None;
        for index in 0..choices {
            let finish = Some(Finish { reason, stop: None });
            let end = Delta { index, finish, error: Some(error.clone()), usage: self.usage(index), ..Delta::default() };
            bell = self.publish(end).or(bell);
        }
        bell
    }

    /// Counts of a choice as last reported.
    fn usage(&self, index: u32) -> Usage {
        self.state.lock().usage[index as usize]
    }

    pub fn set_prompt_logprobs(&self, found: PromptLogprobs) {
        self.state.lock().prompt_logprobs = Some(Arc::new(found));
    }

    pub fn prompt_logprobs(&self) -> Option<Arc<PromptLogprobs>> {
        self.state.lock().prompt_logprobs.clone()
    }

    /// Notes that the request has entered its first step.
    pub fn set_started(&self) {
        let mut state = self.state.lock();
        state.timings.queue = Some(state.submitted.elapsed());
    }

    pub fn timings(&self) -> Timings {
        self.state.lock().timings
    }

    pub fn take(&self) -> Vec<Delta> {
        self.state.lock().take()
    }

    /// Waits for news, for the end of the request, or for `timeout`.
    pub fn wait(&self, timeout: Option<Duration>) -> Vec<Delta> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.state.lock();
        loop {
            let deltas = state.take();
            if !deltas.is_empty() || !state.is_open() {
                return deltas;
            }
            match deadline {
                None => self.news.wait(&mut state),
                Some(deadline) => {
                    if self.news.wait_until(&mut state, deadline).timed_out() {
                        return state.take();
                    }
                }
            }
        }
    }

    /// Whether some choice has not ended.
    pub fn is_open(&self) -> bool {
        self.state.lock().is_open()
    }

    /// Whether every choice has ended and its last delta was taken.
    pub fn is_finished(&self) -> bool {
        let state = self.state.lock();
        !state.is_open() && state.pending.iter().all(Option::is_none)
    }
}

/// The engine's end of a slot. However it is lost, the reader is told.
#[derive(Debug)]
pub(crate) struct SlotOwner(pub Arc<Slot>);

impl Drop for SlotOwner {
    fn drop(&mut self) {
        if let Some(bell) = self.0.close(FinishReason::Abort, &EngineError::Cancelled) {
            bell.ring();
        }
    }
}
