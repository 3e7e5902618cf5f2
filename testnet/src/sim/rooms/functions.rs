//! Functions, as in the node: the driver of the real scheduling core on the leader of a group.
//!
//! The core decides; this reads events, runs the functions of [`work`], proposes outcomes, and reports back. A run takes
//! time, mostly little and now and then much, and reads what stands when it looks: some rows when it begins, others when it
//! ends. Now and then one can't be tried. An old leader that does not know it yet runs beside the new one.

use std::collections::BTreeMap;

use canal_consensus::core::keys::{Keys, Table, end_of};
use canal_consensus::core::kv::{Kv, KvError};
use canal_consensus::core::rows::Topic;
use canal_consensus::core::txn::decode;
use canal_consensus::{Refused, Reply, Status};
use canal_proto::cursor::Cursor;
use canal_proto::log::{Kind, Outcomes};
use canal_proto::{GroupId, TopicId};
use canal_triggers::core::{Hosted, Input, Output, Run, RunResult, Scheduler};

use super::Place;
use super::timer::Timer;
use crate::sim::around::{Actor, Answer, Around, Failed, Here, Token};

pub mod work;

use work::Rows;

/// Runs that can't be tried, in a thousand.
const UNAVAILABLE: u64 = 8;

/// Fires the group's functions for as long as it is led here.
pub struct Room {
    group: GroupId,
    scheduler: Scheduler,
    heads: BTreeMap<u64, u64>,
    spec: Option<u64>,
    /// When the core wants to be woken, by the room's clock.
    wake: Option<u64>,
    /// What the machine's two clocks said when the room began: the one that people read, and the one that never jumps.
    began: Option<(u64, u64)>,
    /// What is under way, by when it is done.
    tasks: BTreeMap<(u64, u64), Task>,
    numbers: u64,
    /// The batches that are proposed.
    proposed: BTreeMap<Token, u64>,
    runs: u64,
    timer: Timer,
}

enum Task {
    Load { trigger: u64, topic: u64, from: u64, max: u64 },
    Run(Box<work::Running>),
}

impl Room {
    /// Of a group that has begun to be led.
    pub fn new(place: &Place, status: &Status) -> Self {
        Self {
            group: status.group,
            scheduler: Scheduler::new(place.identities.id(place.peer), status.term),
            heads: BTreeMap::new(),
            spec: None,
            wake: None,
            began: None,
            tasks: BTreeMap::new(),
            numbers: 0,
            proposed: BTreeMap::new(),
            runs: 0,
            timer: Timer::default(),
        }
    }

    /// What the machine's clock said when the room began, and the time since then.
    fn now_ms(&mut self, around: &mut dyn Around) -> u64 {
        let now = around.mono_ms();
        let (wall, mono) = *self.began.get_or_insert_with(|| (around.now_ms(), now));
        wall + now.saturating_sub(mono)
    }

    /// Tells the core what has changed.
    fn look(&mut self, around: &mut dyn Around) {
        let group = self.group;
        let Some(here) = around.replica() else { return };
        let spec = here.status().spec;
        let next = |here: &dyn Here, topic: u64| {
            let key = Keys(group).topic_only(Table::Topics, TopicId(topic));
            let row = here.kv().get(&key).ok().flatten().and_then(|bytes| decode::<Topic>(&key, bytes).ok());
            row.unwrap_or_default().next
        };
        if self.spec != Some(spec.version) {
            let Ok(cursors) = cursors(here.kv(), group) else { return };
            let first = self.spec.is_none();
            self.spec = Some(spec.version);
            let topics: Vec<_> = spec.topics.iter().map(|topic| (topic.clone(), next(here, topic.id))).collect();
            self.heads = topics.iter().map(|(topic, next)| (topic.id, *next)).collect();
            let hosted = Hosted { triggers: spec.triggers.clone(), topics, cursors };
            self.handle(if first { Input::Start(hosted) } else { Input::Spec(hosted) }, around);
        }
        if spec.triggers.is_empty() {
            return;
        }
        for topic in &spec.topics {
            let Some(next) = around.replica().map(|here| next(here, topic.id)) else { return };
            if self.heads.insert(topic.id, next) != Some(next) {
                self.handle(Input::Head { topic: topic.id, next }, around);
            }
        }
    }

    fn handle(&mut self, input: Input, around: &mut dyn Around) {
        let now_ms = self.now_ms(around);
        for output in self.scheduler.handle(input, now_ms) {
            match output {
                Output::Load { trigger, topic, from, max } => {
                    let wait = around.rng().below(3);
                    self.begin(wait, Task::Load { trigger, topic, from, max }, around);
                }
                Output::Run(run) => self.run(*run, around),
                Output::Propose { batch, outcomes } => {
                    self.numbers += 1;
                    self.proposed.insert(self.numbers, batch);
                    if let Some(here) = around.replica() {
                        here.propose(self.numbers, Kind::Outcomes(Outcomes { outcomes }));
                    }
                }
                Output::WakeAt(at) => self.wake = Some(at),
            }
        }
    }

    fn begin(&mut self, wait: u64, task: Task, around: &mut dyn Around) {
        self.numbers += 1;
        self.tasks.insert((around.mono_ms() + wait, self.numbers), task);
    }

    fn run(&mut self, run: Run, around: &mut dyn Around) {
        self.runs += 1;
        let (now_ms, group) = (around.now_ms(), self.group);
        let rng = around.rng();
        let unavailable = rng.chance(UNAVAILABLE);
        let wait = match rng.below(100) {
            0..70 => rng.between(0, 2),
            70..94 => rng.between(3, 40),
            94..99 => rng.between(40, 800),
            _ => rng.between(800, 3000),
        };
        let Some(here) = around.replica() else { return };
        let running = match unavailable {
            true => work::Running::unavailable(run, now_ms),
            false => work::Running::begin(run, now_ms, &Rows { kv: here.kv(), group }),
        };
        self.begin(wait, Task::Run(Box::new(running)), around);
    }

    fn finish(&mut self, task: Task, around: &mut dyn Around) {
        let group = self.group;
        let Some(here) = around.replica() else { return };
        let input = match task {
            Task::Load { trigger, topic, from, max } => {
                let events = here.events(TopicId(topic), from, usize::try_from(max).unwrap_or(usize::MAX));
                Input::Loaded { trigger, topic, from, events }
            }
            Task::Run(running) => {
                let ticket = running.ticket();
                let run: RunResult = running.end(&Rows { kv: here.kv(), group });
                Input::Ran { ticket, run }
            }
        };
        self.handle(input, around);
    }

    fn arm(&mut self, around: &mut dyn Around) {
        let (now, now_ms) = (around.mono_ms(), self.now_ms(around));
        let task = self.tasks.first_key_value().map(|((at, _), _)| *at);
        let tick = self.wake.map(|at| now.saturating_add(at.saturating_sub(now_ms)));
        if let Some(at) = task.into_iter().chain(tick).min() {
            self.timer.wake_at(at, around);
        }
    }
}

fn cursors(kv: &dyn Kv, group: GroupId) -> Result<Vec<Cursor>, KvError> {
    let prefix = Keys(group).one(Table::Cursors);
    let rows = kv.scan(&prefix, &end_of(&prefix), usize::MAX / 2, false)?;
    rows.into_iter().map(|(key, value)| decode(&key, value)).collect()
}

impl Actor for Room {
    fn wake(&mut self, around: &mut dyn Around) {
        self.look(around);
        while let Some((at, number)) = self.tasks.first_key_value().map(|(key, _)| *key)
            && at <= around.mono_ms()
            && let Some(task) = self.tasks.remove(&(at, number))
        {
            self.finish(task, around);
        }
        let now_ms = self.now_ms(around);
        if self.wake.is_some_and(|at| at <= now_ms) {
            self.wake = None;
            self.handle(Input::Tick, around);
        }
        self.arm(around);
    }

    fn answered(&mut self, _: Token, _: Result<Answer, Failed>, _: &mut dyn Around) {}

    fn proposed(&mut self, token: Token, reply: Result<Reply, Refused>, around: &mut dyn Around) {
        let Some(batch) = self.proposed.remove(&token) else { return };
        let input = match reply {
            Ok(Reply::Outcomes(results, cursors)) => Input::Committed { batch, results, cursors },
            _ => Input::ProposeFailed { batch },
        };
        self.handle(input, around);
        self.arm(around);
    }

    fn describe(&self) -> String {
        format!(
            "functions of group {}: {} runs, {} under way, {} batches proposed, next look at {:?}",
            self.group.0,
            self.runs,
            self.tasks.len(),
            self.proposed.len(),
            self.wake
        )
    }
}

#[cfg(test)]
mod tests;
