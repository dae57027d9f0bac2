//! The engine thread: the only owner of model, cache and scheduler. Takes commands, steps while there is work, leaves
//! news in slots. Never waits for a reader; a panic in a step ends the requests of that step and nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use fastchat_kernels::Fault;
use fastchat_models::vision::VisionTower;
use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::asides::Asides;
use crate::choice::Choice;
use crate::command::{self, Command, Job};
use crate::config::EngineConfig;
use crate::constraint::Constraint;
use crate::delta::{Delta, Finish, Usage};
use crate::device::StepError;
use crate::device_sampling::take_most_likely;
use crate::doorbell::Doorbell;
use crate::error::EngineError;
use crate::info::EngineStats;
use crate::media::{ActiveMedia, EncoderQueue, Ready};
use crate::pace::Pace;
use crate::prefix_disk::PrefixDisk;
use crate::prompt_logprobs::PromptLogprobsBuilder;
use crate::queued::Queued;
use crate::runner::Runner;
use crate::sampler::{Sampler, TokenLogprobs};
use crate::scheduler::{Refusal, ScheduledBatch, Scheduler};
use crate::sequence::{FinishReason, SequenceId};
use crate::slot::SlotOwner;
use crate::text::Tokenizer;

/// Most tokens appended at once without a step: other requests wait meanwhile.
const MAX_FORCED: usize = 64;

/// A request the scheduler knows.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) slot: SlotOwner,
    sequences: Vec<SequenceId>,
    /// Until its first step.
    queued: Option<command::Queued>,
    pub(crate) prompt_logprobs: Option<PromptLogprobsBuilder>,
    cached_tokens: usize,
    open: usize,
}

/// What sampling found for one scheduled sequence.
pub(crate) struct Sampled {
    pub id: SequenceId,
    pub token: Result<u32, EngineError>,
    pub logprobs: Option<TokenLogprobs>,
    /// The token was drafted, and the cache holds it already.
    pub drafted: bool,
}

/// The state of the engine thread.
#[derive(Debug)]
pub(crate) struct Worker {
    pub runner: Runner,
    pub tower: Option<VisionTower>,
    pub encoder: EncoderQueue,
    /// Of the requests that the scheduler knows.
    pub pictures: HashMap<u64, ActiveMedia>,
    pub scheduler: Scheduler,
    pub tokenizer: Option<Arc<Tokenizer>>,
    pub commands: Receiver<Command>,
    pub stats: Arc<Mutex<EngineStats>>,
    pub book: Book,
    pub asides: Asides,
    pub disk: Option<PrefixDisk>,
    /// The step that the device computes while the host is done with the one before.
    pub queued: Option<Queued>,
}

/// Requests and choices in flight, and what the thread reuses.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) requests: HashMap<u64, Active>,
    pub(crate) choices: HashMap<SequenceId, Choice>,
    pub(crate) sampler: Sampler,
    bells: Vec<Arc<Doorbell>>,
    pub(crate) counters: EngineStats,
    pace: Pace,
    /// Whether tokens that are no matter of choice are appended without a step.
    forces: bool,
    /// Whether the kernels leave a core to others; otherwise a thread for masks would only stop one of theirs.
    spare_core: bool,
}

impl Worker {
    /// Serves until told to shut down or all callers are gone. A panic outside a step's computation means the books
    /// cannot be trusted, and some errors mean that the device is lost: every request is ended and the engine is dead.
    pub fn run(mut self) {
        self.report(true);
        let served = catch_unwind(AssertUnwindSafe(|| self.serve()));
        self.report(false);
        let failed = || Some(EngineError::Internal("the engine has failed and must be restarted".to_owned()));
        if let Some(lost) = served.unwrap_or_else(|_| failed()) {
            for active in self.book.requests.values() {
                self.book.bells.extend(active.slot.0.close(FinishReason::Error, &lost));
            }
            for job in self.encoder.drain().chain(self.disk.iter_mut().flat_map(PrefixDisk::drain)) {
                self.book.bells.extend(job.slot.0.close(FinishReason::Error, &lost));
            }
            self.ring();
        }
    }

    /// Returns what was lost with the device, or nothing when there is no more to serve.
    fn serve(&mut self) -> Option<EngineError> {
        let mut stalled = false;
        loop {
            if (self.scheduler.is_idle() || stalled) && self.encoder.is_idle() {
                let Ok(command) = self.commands.recv() else { return None };
                if !self.obey(command) {
                    return None;
                }
            }
            loop {
                match self.commands.try_recv() {
                    Ok(command) => {
                        if !self.obey(command) {
                            return None;
                        }
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return None,
                }
            }
            if !self.scheduler.is_idle() {
                match self.step() {
                    // Nobody but masks that are computed aside can make a difference then.
                    Ok(computed) => stalled = !computed && self.scheduler.holds_any(),
                    Err(lost) => return Some(lost),
                }
            }
            self.encode();
            if !self.pictures.is_empty() {
                let live = &self.book.requests;
                self.pictures.retain(|request, _| live.contains_key(request));
            }
            self.report(true);
            self.ring();
        }
    }

    /// Returns whether to go on.
    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Submit(mut job) => match job.media.take() {
                Some(media) => self.encoder.push(job, media),
                None => self.admit(job),
            },
            Command::Abort(request) => match self.take_back(request) {
                Some(job) => self.book.bells.extend(job.slot.0.close(FinishReason::Abort, &EngineError::Cancelled)),
                None => self.end_request(request, FinishReason::Abort, &EngineError::Cancelled),
            },
            Command::Masked(id, constraint) => self.bring_back(id, *constraint),
            Command::Restored(request, blocks) => self.restore(request, &blocks),
            Command::Shutdown => return false,
        }
        true
    }

    /// One piece of work on pictures, between two steps of all that run: as long as the step before, if there was work for
    /// one, so that streams keep half their pace at least.
    fn encode(&mut self) {
        let Some(tower) = &self.tower else { return };
        let until = (!self.scheduler.is_idle()).then(|| Instant::now() + self.book.pace.last_step());
        let Some(Ready { job, media }) = self.encoder.advance(tower, self.runner.decoder(), until) else { return };
        match media {
            Ok(media) => {
                self.pictures.insert(job.submission.request, media);
                self.admit(job);
            }
            Err(error) => self.book.bells.extend(job.slot.0.close(FinishReason::Error, &error)),
        }
    }

    pub(crate) fn enter(&mut self, job: Job) {
        let Job { slot, submission, choices, constraints, prompt_logprobs, media: _, queued } = job;
        let mut constraints = constraints.into_iter();
        let request = submission.request;
        match self.scheduler.submit(submission) {
            Ok(sequences) => {
                for (index, &id) in (0..).zip(&sequences) {
                    self.book.choices.insert(id, Choice::new(request, index, &choices, constraints.next()));
                }
                let open = sequences.len();
                let queued = Some(queued);
                let active = Active { slot, sequences, queued, prompt_logprobs, cached_tokens: 0, open };
                self.book.requests.insert(request, active);
            }
            Err(Refusal { needed, total }) => {
                let message = format!("the request may need {needed} cache blocks; there are {total}");
                self.book.bells.extend(slot.0.close(FinishReason::Error, &EngineError::Internal(message)));
            }
        }
    }

    /// Ends all choices of a request and frees their blocks.
    fn end_request(&mut self, request: u64, reason: FinishReason, error: &EngineError) {
        let Some(active) = self.book.requests.remove(&request) else { return };
        for id in &active.sequences {
            if let Some(choice) = self.book.choices.remove(id) {
                let mut delta = active.delta(&choice);
                delta.finish = Some(Finish { reason, stop: None });
                delta.error = Some(error.clone());
                self.book.bells.extend(active.slot.0.publish(delta));
            }
            self.scheduler.finish(*id, reason);
        }
    }

    /// Returns whether there was anything to compute: all that run may wait for their masks.
    ///
    /// # Errors
    /// When the device is lost.
    fn step(&mut self) -> Result<bool, EngineError> {
        if let Some(queued) = self.queued.take() {
            return self.finish_queued(queued);
        }
        if let Some(tokens) = self.book.pace.tokens() {
            self.scheduler.set_pace(tokens);
        }
        let batch = self.scheduler.schedule();
        if batch.sequences.is_empty() {
            return Ok(false);
        }
        let began = Instant::now();
        self.book.start(&batch, &self.scheduler);
        match self.queue(&batch) {
            Ok(None) => {}
            Ok(Some(tokens)) => return self.finish_queued(Queued { batch, tokens, began }),
            Err(error) => return self.end_failed(&batch, error),
        }
        let Self { runner, scheduler, book, pictures, .. } = self;
        let computed = catch_unwind(AssertUnwindSafe(|| {
            if book.is_greedy(&batch)
                && let Some((tokens, rows)) = runner.most_likely(&batch, scheduler, pictures)?
            {
                return Ok(take_most_likely(&batch, &tokens, &rows));
            }
            let logits = book.beside_masks(&batch, || runner.run(&batch, scheduler, pictures))?;
            if runner.samples() {
                return book.sample_on_device(&batch, scheduler, runner, &logits);
            }
            runner.read(&logits, |rows| book.sample(&batch, scheduler, rows))
        }));
        match computed.unwrap_or_else(|panic| Err(failed_step(panic.as_ref()))) {
            Ok(sampled) => {
                self.end_step(&batch, sampled, began);
                Ok(true)
            }
            Err(error) => self.end_failed(&batch, error),
        }
    }

    /// Books a step that was computed, and hands out its tokens.
    pub(crate) fn end_step(
        &mut self,
        batch: &ScheduledBatch,
        sampled: impl IntoIterator<Item = Sampled>,
        began: Instant,
    ) {
        self.book.counters.steps += 1;
        let tokens = batch.sequences.iter().map(|scheduled| scheduled.end - scheduled.start).sum();
        self.book.pace.observe(tokens, began.elapsed());
        self.scheduler.commit(batch);
        self.keep_blocks();
        for sampled in sampled {
            let id = sampled.id;
            self.deliver(sampled);
            self.append_forced(id);
            self.set_aside(id);
        }
    }

    /// Takes a step back for which there was no memory, or ends its requests.
    ///
    /// # Errors
    /// When the device is lost.
    pub(crate) fn end_failed(&mut self, batch: &ScheduledBatch, failed: StepError) -> Result<bool, EngineError> {
        self.book.counters.steps += 1;
        let StepError { error, fault } = failed;
        match fault {
            Fault::Sticky => {
                return Err(EngineError::Internal(format!("the device is lost, restart the engine: {error}")));
            }
            Fault::OutOfMemory if self.scheduler.recede(batch) => return Ok(true),
            _ => {}
        }
        for sequence in self.scheduler.fail(batch) {
            self.end_request(sequence.request, FinishReason::Error, &error);
        }
        Ok(true)
    }

    /// Appends the tokens that have to follow; the next step computes them all at once.
    fn append_forced(&mut self, id: SequenceId) {
        for _ in 0..MAX_FORCED {
            let choice = self.book.choices.get_mut(&id).filter(|_| self.book.forces);
            let Some(token) = choice.and_then(Choice::forced) else { return };
            self.book.counters.forced_tokens += 1;
            self.deliver(Sampled { id, token: Ok(token), logprobs: None, drafted: false });
        }
    }

    /// Gives one sampled token to its choice, its reader and the scheduler.
    fn deliver(&mut self, sampled: Sampled) {
        let Sampled { id, token, logprobs, drafted } = sampled;
        // An earlier token of this step may have ended the whole request.
        let Some(choice) = self.book.choices.get_mut(&id) else { return };
        let request = choice.request;
        let error = match token {
            Err(error) => error,
            Ok(token) => {
                let last = self.scheduler.append(id, token).is_some();
                if drafted {
                    self.scheduler.keep(id);
                }
                let mut text = String::new();
                match choice.push(self.tokenizer.as_deref(), token, last, &mut text) {
                    Err(error) => error.into(),
                    Ok(finish) => {
                        self.book.counters.generation_tokens += 1;
                        self.publish(
                            id,
                            Delta {
                                text,
                                token_ids: vec![token],
                                logprobs: logprobs.map(|found| vec![found]),
                                finish,
                                ..Delta::default()
                            },
                        );
                        return;
                    }
                }
            }
        };
        self.end_request(request, FinishReason::Error, &error);
    }

    fn publish(&mut self, id: SequenceId, mut delta: Delta) {
        let Some(choice) = self.book.choices.get(&id) else { return };
        let request = choice.request;
        let active = self.book.requests.get_mut(&request).expect("choices belong to requests; this is a bug");
        let Delta { index, usage, .. } = active.delta(choice);
        (delta.index, delta.usage) = (index, usage);
        let ended = delta.finish.as_ref().map(|finish| finish.reason);
        if let Some(builder) = active.prompt_logprobs.take() {
            active.slot.0.set_prompt_logprobs(builder.finish());
        }
        self.book.bells.extend(active.slot.0.publish(delta));
        if let Some(reason) = ended {
            active.open -= 1;
            let over = active.open == 0;
            self.scheduler.finish(id, reason);
            self.book.choices.remove(&id);
            if over {
                self.book.requests.remove(&request);
            }
        }
    }

    fn report(&mut self, alive: bool) {
        let scheduler = &self.scheduler;
        let stats = &mut self.book.counters;
        stats.alive = alive;
        (stats.graph_steps, stats.graph_failure) = self.runner.graphs_so_far();
        stats.running = scheduler.num_running();
        stats.waiting = scheduler.num_waiting() + self.encoder.len() + self.disk.as_ref().map_or(0, PrefixDisk::len);
        stats.free_blocks = scheduler.blocks().num_free();
        stats.total_blocks = scheduler.blocks().num_blocks();
        stats.preemptions = scheduler.stats().preemptions;
        stats.draft_tokens = scheduler.stats().draft_tokens;
        stats.accepted_tokens = scheduler.stats().accepted_tokens;
        self.stats.lock().clone_from(stats);
    }

    fn ring(&mut self) {
        self.book.bells.drain(..).for_each(|bell| bell.ring());
    }

    /// Lets a choice whose next mask may be slow sit out until it is there.
    fn set_aside(&mut self, id: SequenceId) {
        let Some(choice) = self.book.choices.get_mut(&id) else { return };
        let Some(constraint) = choice.constraint.take_if(|constraint| constraint.is_slow()) else { return };
        match self.asides.take(id, Box::new(constraint)) {
            Ok(()) => self.scheduler.hold(id),
            Err(constraint) => choice.constraint = Some(*constraint),
        }
    }

    /// Takes a mask back; its choice may have ended.
    fn bring_back(&mut self, id: SequenceId, constraint: Constraint) {
        if let Some(choice) = self.book.choices.get_mut(&id) {
            choice.constraint = Some(constraint);
            self.scheduler.resume(id);
        }
    }
}

impl Active {
    /// An empty delta of one choice with the counts so far.
    fn delta(&self, choice: &Choice) -> Delta {
        let usage = Usage {
            prompt_tokens: self.slot.0.prompt.len(),
            completion_tokens: choice.completion_tokens,
            cached_tokens: self.cached_tokens,
        };
        Delta { index: choice.index, usage, ..Delta::default() }
    }
}

impl Book {
    /// Empty, for an engine configured so (threads `None`: on every core there is).
    pub fn new(config: &EngineConfig) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let spare_core = config.threads.is_some_and(|threads| threads < cores);
        Self { spare_core, forces: config.speculation, ..Self::default() }
    }

    /// Notes which requests have their first step.
    fn start(&mut self, batch: &ScheduledBatch, scheduler: &Scheduler) {
        for scheduled in &batch.sequences {
            let Some(active) =
                self.choices.get(&scheduled.id).and_then(|choice| self.requests.get_mut(&choice.request))
            else {
                continue;
            };
            if active.queued.take().is_some() {
                active.slot.0.set_started();
                let cached = scheduler.sequence(scheduled.id).and_then(|sequence| sequence.cached_tokens);
                active.cached_tokens = cached.unwrap_or(0);
                self.counters.cached_tokens += active.cached_tokens as u64;
                self.counters.prompt_tokens += active.slot.0.prompt.len() as u64;
            }
        }
    }

    /// Runs the model while another thread, if there is a core for it, computes the masks its rows will need.
    fn beside_masks<T>(&mut self, batch: &ScheduledBatch, run: impl FnOnce() -> T) -> T {
        let samples = |id| batch.sequences.iter().any(|scheduled| scheduled.samples && scheduled.id == id);
        let constrained = self.choices.iter_mut().filter_map(|(id, choice)| Some((*id, choice.constraint.as_mut()?)));
        let due: Vec<_> = constrained.filter(|&(id, _)| samples(id)).map(|(_, constraint)| constraint).collect();
        if due.is_empty() || !self.spare_core {
            return run();
        }
        std::thread::scope(|scope| {
            // Without a thread the masks are computed when they are needed.
            let _ = std::thread::Builder::new()
                .name("fastchat-masks".to_owned())
                .spawn_scoped(scope, || due.into_iter().for_each(Constraint::prepare));
            run()
        })
    }
}

/// What a panic in a step is reported as.
pub(crate) fn failed_step(panic: &(dyn std::any::Any + Send)) -> StepError {
    let error = EngineError::Internal(format!("a step failed: {}", panic_text(panic)));
    StepError { error, fault: Fault::Plain }
}

/// The message of a panic.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let owned = || panic.downcast_ref::<String>().map(String::as_str);
    panic.downcast_ref::<&str>().copied().or_else(owned).unwrap_or("no message")
}
