//! The thread that owns an encoder: takes one text of each request in turn until a step is full, so that a large request
//! does not hold up a small one.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use fastchat_models::{Embedder, Encoder, ModelError, Pair};

use crate::error::EngineError;

/// What a request ends with.
pub(crate) type Answer = Result<Vec<Vec<f32>>, EngineError>;

#[derive(Debug)]
pub(crate) enum Command {
    Embed(Job),
    Shutdown,
}

/// One text, or two that are scored.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub ids: Vec<u32>,
    /// Where the second text begins.
    pub second: Option<usize>,
}

/// One request.
#[derive(Debug)]
pub(crate) struct Job {
    sequences: Vec<Sequence>,
    vectors: Vec<Vec<f32>>,
    reply: Sender<Answer>,
    cancelled: Arc<AtomicBool>,
}

impl Job {
    pub fn new(sequences: Vec<Sequence>, reply: Sender<Answer>, cancelled: Arc<AtomicBool>) -> Self {
        Self { vectors: Vec::with_capacity(sequences.len()), sequences, reply, cancelled }
    }

    /// Texts that have no vector yet.
    fn left(&self) -> usize {
        self.sequences.len() - self.vectors.len()
    }

    /// Nobody may be there to hear it.
    fn answer(self, answer: Option<EngineError>) {
        let _ = self.reply.send(match answer {
            Some(error) => Err(error),
            None => Ok(self.vectors),
        });
    }
}

#[derive(Debug)]
pub(crate) struct Worker {
    encoder: Embedder,
    commands: Receiver<Command>,
    max_batch_tokens: usize,
    waiting: Arc<AtomicUsize>,
    alive: Arc<AtomicBool>,
    jobs: VecDeque<Job>,
}

impl Worker {
    pub fn new(
        encoder: Embedder,
        commands: Receiver<Command>,
        max_batch_tokens: usize,
        waiting: Arc<AtomicUsize>,
        alive: Arc<AtomicBool>,
    ) -> Self {
        Self { encoder, commands, max_batch_tokens, waiting, alive, jobs: VecDeque::new() }
    }

    /// Until told to stop, or until nobody is left who could ask.
    pub fn run(mut self) {
        while self.listen() {
            self.sweep();
            if !self.jobs.is_empty() {
                self.step();
            }
        }
        self.alive.store(false, Ordering::Relaxed);
        for job in self.jobs.drain(..) {
            job.answer(Some(EngineError::Cancelled));
        }
    }

    /// Takes what has come, waiting when there is nothing to do; false to stop.
    fn listen(&mut self) -> bool {
        if self.jobs.is_empty() {
            match self.commands.recv() {
                Ok(Command::Embed(job)) => self.jobs.push_back(job),
                Ok(Command::Shutdown) | Err(_) => return false,
            }
        }
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Embed(job) => self.jobs.push_back(job),
                Command::Shutdown => return false,
            }
        }
        true
    }

    /// Ends the requests that are complete, or that nobody waits for.
    fn sweep(&mut self) {
        for _ in 0..self.jobs.len() {
            let Some(job) = self.jobs.pop_front() else { return };
            if job.left() == 0 || job.cancelled.load(Ordering::Relaxed) {
                self.waiting.fetch_sub(job.left(), Ordering::Relaxed);
                job.answer(None);
            } else {
                self.jobs.push_back(job);
            }
        }
    }

    /// For each request how many of its texts go into the next step; the first request has at least one.
    fn plan(&self) -> Vec<usize> {
        let mut taken = vec![0; self.jobs.len()];
        let mut tokens = 0;
        loop {
            let before = tokens;
            for (i, job) in self.jobs.iter().enumerate() {
                let Some(next) = job.sequences.get(job.vectors.len() + taken[i]) else { continue };
                if tokens > 0 && tokens + next.ids.len() > self.max_batch_tokens {
                    return taken;
                }
                tokens += next.ids.len();
                taken[i] += 1;
            }
            if tokens == before {
                return taken;
            }
        }
    }

    fn step(&mut self) {
        let taken = self.plan();
        let texts = self.jobs.iter().zip(&taken);
        let texts = texts.flat_map(|(job, &taken)| job.sequences[job.vectors.len()..][..taken].iter());
        let texts: Vec<&Sequence> = texts.collect();
        // The encoder keeps nothing between calls, so a panic leaves nothing half done.
        let result = catch_unwind(AssertUnwindSafe(|| run(&self.encoder, &texts)));
        let result = match result {
            Ok(result) => result.map_err(EngineError::from),
            Err(_) => Err(EngineError::Internal("the encoder failed".to_owned())),
        };
        let mut vectors = result.map(Vec::into_iter);
        for taken in taken {
            let Some(mut job) = self.jobs.pop_front() else { return };
            match &mut vectors {
                Ok(vectors) => {
                    job.vectors.extend(vectors.by_ref().take(taken));
                    self.waiting.fetch_sub(taken, Ordering::Relaxed);
                    if job.left() == 0 { job.answer(None) } else { self.jobs.push_back(job) }
                }
                Err(error) if taken > 0 => {
                    self.waiting.fetch_sub(job.left(), Ordering::Relaxed);
                    job.answer(Some(error.clone()));
                }
                Err(_) => self.jobs.push_back(job),
            }
        }
    }
}

/// A cross-encoder's vectors have one element, the score.
fn run(embedder: &Embedder, texts: &[&Sequence]) -> Result<Vec<Vec<f32>>, ModelError> {
    let Some(encoder) = embedder.encoder().filter(|encoder| Encoder::makes_scores(encoder)) else {
        let ids: Vec<&[u32]> = texts.iter().map(|text| text.ids.as_slice()).collect();
        return embedder.embeddings(&ids);
    };
    let pairs = texts.iter().map(|text| Pair { ids: &text.ids, second: text.second.unwrap_or(text.ids.len()) });
    let pairs: Vec<Pair> = pairs.collect();
    Ok(encoder.scores(&pairs)?.into_iter().map(|score| vec![score]).collect())
}
