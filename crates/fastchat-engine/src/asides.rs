//! Where slow masks are computed: a thread beside the engine's. Their requests sit out of the steps of the others
//! meanwhile.

use std::sync::mpsc::{Sender, channel};

use crate::constraint::Constraint;
use crate::sequence::SequenceId;
use crate::worker::{Command, Worker};

/// The way to that thread, which is there once it was needed.
#[derive(Debug)]
pub(crate) struct Asides {
    jobs: Option<Sender<(SequenceId, Box<Constraint>)>>,
    news: Sender<Command>,
}

impl Asides {
    /// Masks come back as commands.
    pub fn new(news: Sender<Command>) -> Self {
        Self { jobs: None, news }
    }

    /// Gives the constraint back when there is nobody to take it.
    fn take(&mut self, id: SequenceId, constraint: Box<Constraint>) -> Result<(), Box<Constraint>> {
        if self.jobs.is_none() {
            self.jobs = self.start();
        }
        match &self.jobs {
            Some(jobs) => jobs.send((id, constraint)).map_err(|refused| refused.0.1),
            None => Err(constraint),
        }
    }

    fn start(&self) -> Option<Sender<(SequenceId, Box<Constraint>)>> {
        let (jobs, taken) = channel::<(SequenceId, Box<Constraint>)>();
        let news = self.news.clone();
        let work = move || {
            for (id, mut constraint) in taken {
                constraint.prepare();
                if news.send(Command::Masked(id, constraint)).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("fastchat-masks".to_owned()).spawn(work).ok().map(|_| jobs)
    }
}

impl Worker {
    /// Lets a choice whose next mask may be slow sit out until it is there.
    pub(crate) fn set_aside(&mut self, id: SequenceId) {
        let Some(choice) = self.book.choices.get_mut(&id) else { return };
        let Some(constraint) = choice.constraint.take_if(|constraint| constraint.is_slow()) else { return };
        match self.asides.take(id, Box::new(constraint)) {
            Ok(()) => self.scheduler.hold(id),
            Err(constraint) => choice.constraint = Some(*constraint),
        }
    }

    /// Takes a mask back; its choice may have ended.
    pub(crate) fn bring_back(&mut self, id: SequenceId, constraint: Constraint) {
        if let Some(choice) = self.book.choices.get_mut(&id) {
            choice.constraint = Some(constraint);
            self.scheduler.resume(id);
        }
    }
}
