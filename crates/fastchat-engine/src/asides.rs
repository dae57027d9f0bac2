//! Where slow masks are computed: a thread beside the engine's. Their requests sit out of the steps of the others
//! meanwhile.

use std::sync::mpsc::{Sender, channel};

use crate::command::Command;
use crate::constraint::Constraint;
use crate::sequence::SequenceId;

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
    pub fn take(&mut self, id: SequenceId, constraint: Box<Constraint>) -> Result<(), Box<Constraint>> {
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
