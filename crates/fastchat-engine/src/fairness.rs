//! Whose turn it is: the lines of waiting and running sequences, one line per tenant, and how the tokens of a step are
//! shared among them (deficit round robin). Pure books over ranks; knows no blocks, tensors, clocks or channels.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::sequence::{LineId, Rank};

/// Tokens a line is granted per round. A block: small against a step, so that shares are even.
const QUANTUM: usize = 16;

#[derive(Clone, Debug, Default)]
struct Line {
    name: String,
    waiting: BTreeSet<Rank>,
    running: BTreeSet<Rank>,
    /// Sequences in this line, those that wait for a fork's prompt too.
    members: usize,
}

/// What a line asks of a step, and what it has had of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Who asks.
    pub line: LineId,
    /// Tokens of the step that are its own already.
    pub served: usize,
    /// More tokens it could use.
    pub wanted: usize,
}

/// All lines.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    all: BTreeMap<LineId, Line>,
    names: HashMap<String, LineId>,
    next: u64,
    /// Who is first in this step's rounds; moves on with every step.
    first: u64,
}

impl Lines {
    /// The line of a tenant, with one more member.
    pub fn join(&mut self, name: Option<&str>) -> LineId {
        let name = name.unwrap_or_default();
        let id = self.names.get(name).copied().unwrap_or_else(|| {
            let id = LineId(self.next);
            self.next += 1;
            self.names.insert(name.to_owned(), id);
            self.all.insert(id, Line { name: name.to_owned(), ..Line::default() });
            id
        });
        self.line(id).members += 1;
        id
    }

    /// Forgets a member wherever it stands; tells whether it was running.
    pub fn leave(&mut self, id: LineId, rank: Rank) -> bool {
        let line = self.line(id);
        line.waiting.remove(&rank);
        let was_running = line.running.remove(&rank);
        line.members -= 1;
        if line.members == 0
            && let Some(line) = self.all.remove(&id)
        {
            self.names.remove(&line.name);
        }
        was_running
    }

    /// A member waits, whatever it did before.
    pub fn wait(&mut self, id: LineId, rank: Rank) {
        let line = self.line(id);
        line.running.remove(&rank);
        line.waiting.insert(rank);
    }

    /// A waiting member runs.
    pub fn start(&mut self, id: LineId, rank: Rank) {
        let line = self.line(id);
        line.waiting.remove(&rank);
        line.running.insert(rank);
    }

    fn line(&mut self, id: LineId) -> &mut Line {
        self.all.get_mut(&id).expect("a line has members as long as it is asked about; this is a bug")
    }

    /// Everybody who runs, line after line, each line in its order.
    pub fn running(&self) -> impl Iterator<Item = (LineId, Rank)> + '_ {
        self.all.iter().flat_map(|(&id, line)| line.running.iter().map(move |&rank| (id, rank)))
    }

    /// Whether this member runs.
    pub fn is_running(&self, id: LineId, rank: Rank) -> bool {
        self.all.get(&id).is_some_and(|line| line.running.contains(&rank))
    }

    /// How many members of all lines run.
    pub fn num_running(&self) -> usize {
        self.all.values().map(|line| line.running.len()).sum()
    }

    /// Lines in which somebody waits.
    pub fn with_waiting(&self) -> impl Iterator<Item = LineId> + '_ {
        self.all.iter().filter(|(_, line)| !line.waiting.is_empty()).map(|(&id, _)| id)
    }

    /// Whether somebody waits.
    pub fn has_waiting(&self) -> bool {
        self.with_waiting().next().is_some()
    }

    /// Who waits in a line, in order.
    pub fn waiting(&self, id: LineId) -> impl Iterator<Item = Rank> + '_ {
        self.all.get(&id).into_iter().flat_map(|line| line.waiting.iter().copied())
    }

    /// Lines in the order in which they may let somebody in: who has least running first, then in turn.
    pub fn order(&mut self) -> Vec<LineId> {
        self.first += 1;
        let mut order: Vec<LineId> = self.all.keys().copied().collect();
        if !order.is_empty() {
            let places = order.len() as u64;
            order.rotate_left((self.first % places) as usize);
        }
        order.sort_by_key(|id| self.all[id].running.len());
        order
    }

    /// Who has to go when blocks run out: the youngest of the line with most members running.
    pub fn victim(&self) -> Option<(LineId, Rank)> {
        let ends = self.all.iter().filter_map(|(&id, line)| Some((line.running.len(), *line.running.last()?, id)));
        ends.max().map(|(_, rank, id)| (id, rank))
    }

    /// The same, where a newcomer of this line may claim a place: only from a line that keeps more than its own.
    pub fn victim_for(&self, id: LineId) -> Option<(LineId, Rank)> {
        let own = self.all.get(&id).map_or(0, |line| line.running.len());
        self.victim().filter(|(other, _)| *other != id && self.all[other].running.len() >= own + 2)
    }
}

/// Shares `budget` tokens: in every round each line that wants more gets a quantum, beginning with those that were
/// served least. What one does not want, others get.
pub fn grants(demands: &[Demand], budget: usize) -> Vec<usize> {
    let mut granted = vec![0; demands.len()];
    let mut left = budget;
    let mut level = demands.iter().filter(|demand| demand.wanted > 0).map(|demand| demand.served).min().unwrap_or(0);
    while left > 0 && granted.iter().zip(demands).any(|(&granted, demand)| granted < demand.wanted) {
        level += QUANTUM;
        for (granted, demand) in granted.iter_mut().zip(demands) {
            let room = level.saturating_sub(demand.served + *granted);
            let grant = room.min(demand.wanted - *granted).min(left);
            *granted += grant;
            left -= grant;
        }
    }
    granted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sequence::SequenceId;

    fn rank(turn: i64) -> Rank {
        Rank { turn, id: SequenceId(turn as u64) }
    }

    #[test]
    fn a_line_lives_as_long_as_its_members() {
        let mut lines = Lines::default();
        let a = lines.join(Some("a"));
        assert_eq!(lines.join(Some("a")), a);
        let b = lines.join(None);
        assert_ne!(a, b);
        lines.wait(a, rank(0));
        lines.wait(a, rank(1));
        lines.start(a, rank(1));
        assert!(lines.leave(a, rank(1)) && !lines.leave(a, rank(0)));
        assert_ne!(lines.join(Some("a")), a, "nothing is remembered of who left");
    }

    #[test]
    fn the_line_that_has_most_gives_way() {
        let mut lines = Lines::default();
        let (a, b) = (lines.join(Some("a")), lines.join(Some("b")));
        for turn in 0..3 {
            lines.start(a, rank(turn));
        }
        assert_eq!(lines.victim_for(b), Some((a, rank(2))));
        assert_eq!(lines.victim_for(a), None);
        lines.start(b, rank(9));
        assert_eq!(lines.victim(), Some((a, rank(2))), "though b's is younger");
        assert_eq!(lines.victim_for(b), Some((a, rank(2))));
        lines.start(b, rank(10));
        assert_eq!(lines.victim_for(b), None, "one more or less is fair");
    }

    proptest! {
        #[test]
        fn nothing_is_wasted_and_nobody_is_passed_over(
            demands in prop::collection::vec((0_usize..300, 0_usize..600), 0..8), budget in 0_usize..600,
        ) {
            let demands: Vec<Demand> = demands
                .into_iter()
                .enumerate()
                .map(|(line, (served, wanted))| Demand { line: LineId(line as u64), served, wanted })
                .collect();
            let granted = grants(&demands, budget);
            let wanted: usize = demands.iter().map(|demand| demand.wanted).sum();
            prop_assert_eq!(granted.iter().sum::<usize>(), wanted.min(budget));
            for (one, demand) in granted.iter().zip(&demands) {
                prop_assert!(*one <= demand.wanted);
                for (other, rival) in granted.iter().zip(&demands) {
                    // Who still wants more has at most a quantum less than anybody who was granted something.
                    let behind = *one < demand.wanted && *other > 0;
                    prop_assert!(!behind || rival.served + other <= demand.served + one + QUANTUM);
                }
            }
        }
    }
}
