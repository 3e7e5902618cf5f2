//! A client that looks names up and goes where they point: it asks peers for the route of a topic or a group, and follows
//! redirects from there until the leader answers. It asks nobody that no route or redirect names.

use canal_proto::route;

use super::Line;
use super::alarm::Alarm;
use super::calls::{Caller, How, Outcome};
use super::register::BUCKET;
use crate::sim::around::{Actor, Answer, Around, Ask, Failed, Token};
use crate::sim::seen::Seen;

/// How long a lookup may take before another is begun.
const LOOKUP_MS: u64 = 10_000;
/// Milliseconds between two lookups, at most.
const THINK_MS: u64 = 2_000;

/// A client that looks names up.
pub struct Finder {
    lines: Vec<Line>,
    caller: Caller,
    alarm: Alarm,
    /// The line that is looked up, and under which name.
    looking: Option<(usize, String)>,
    next_at: u64,
    found: u64,
    failed: u64,
    /// Lines that are still to be found, once the faults are over.
    left: Option<Vec<usize>>,
}

impl Finder {
    /// Looks these topics up, and their groups.
    pub fn new(lines: Vec<Line>) -> Self {
        Self {
            lines,
            caller: Caller::new("").by_routes_alone(),
            alarm: Alarm::default(),
            looking: None,
            next_at: 0,
            found: 0,
            failed: 0,
            left: None,
        }
    }

    fn advance(&mut self, around: &mut dyn Around) {
        if self.looking.is_none() && around.mono_ms() >= self.next_at {
            self.begin(around);
        }
        let idle = (self.looking.is_none() && !self.is_done()).then_some(self.next_at);
        self.alarm.set(self.caller.wants().or(idle), around);
    }

    fn begin(&mut self, around: &mut dyn Around) {
        let at = match &self.left {
            Some(left) => left.first().copied(),
            None => Some(around.rng().index(self.lines.len())),
        };
        let Some((at, line)) = at.and_then(|at| Some((at, self.lines.get(at)?))) else { return };
        let name = if around.rng().chance(400) { route::group_name(line.group) } else { line.name.clone() };
        self.caller.rename(name.clone());
        self.looking = Some((at, name));
        let ask = Ask::State(line.group, BUCKET.into(), "0".into());
        self.caller.begin(ask, How::Leader, LOOKUP_MS, around);
    }

    fn ended(&mut self, outcome: Outcome, around: &mut dyn Around) {
        let Some((at, name)) = self.looking.take() else { return };
        let Some(line) = self.lines.get(at) else { return };
        let client = around.machine();
        if let Some(group) = self.caller.group().filter(|group| *group != line.group.0) {
            let text = format!("the route of {name} leads to group {group}; it is in group {}", line.group);
            around.see(Seen::Broken { client, text });
        }
        if let Outcome::Answered(peer, Answer::Row(_)) = outcome {
            self.found += 1;
            around.see(Seen::LookedUp { client, name, group: line.group, at: peer, leads: true });
            if let Some(left) = &mut self.left {
                left.retain(|other| *other != at);
            }
        } else {
            self.failed += 1;
        }
        let think = if self.left.is_some() { THINK_MS / 10 } else { THINK_MS };
        self.next_at = around.mono_ms() + around.rng().below(think);
    }
}

impl Actor for Finder {
    fn wake(&mut self, around: &mut dyn Around) {
        self.alarm.rang();
        if let Some(outcome) = self.caller.wake(around) {
            self.ended(outcome, around);
        }
        self.advance(around);
    }

    fn answered(&mut self, token: Token, answer: Result<Answer, Failed>, around: &mut dyn Around) {
        if let Some(outcome) = self.caller.answered(token, answer, around) {
            self.ended(outcome, around);
        }
        self.advance(around);
    }

    fn describe(&self) -> String {
        let (found, failed) = (self.found, self.failed);
        let names = self.left.iter().flatten().filter_map(|at| self.lines.get(*at)).map(|line| line.name.as_str());
        let left: Vec<&str> = names.collect();
        format!("finder: {found} found, {failed} not; still to be found: {left:?}; {}", self.caller.describe())
    }

    fn is_done(&self) -> bool {
        self.left.as_ref().is_some_and(Vec::is_empty)
    }

    fn heal(&mut self) {
        self.left = Some((0..self.lines.len()).collect());
    }
}
