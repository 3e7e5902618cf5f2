//! The scheduler of one led group: sends every input to the lane that it concerns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use canal_proto::PeerId;
use canal_proto::cursor::Cursor;
use canal_proto::log::{TopicSpec, TriggerSpec};

use super::lane::{Ids, Lane, Pair};
use super::{Hosted, Input, Output, matching};

/// Decides which event runs when, for one group that this peer leads. Drop it when the leadership ends.
pub struct Scheduler {
    executor: PeerId,
    lanes: BTreeMap<String, Lane>,
    /// The lane of every trigger.
    lane_of: BTreeMap<u64, String>,
    /// The lanes that a topic feeds.
    fed_by: BTreeMap<u64, BTreeSet<String>>,
    runs: BTreeMap<u64, String>,
    batches: BTreeMap<u64, String>,
    /// When each lane wants to be looked at, and the same by lane.
    alarms: BTreeSet<(u64, String)>,
    alarm_of: BTreeMap<String, u64>,
    /// The wake-up that the driver was asked for.
    wake: Option<u64>,
    ids: Ids,
}

impl Scheduler {
    /// A scheduler that hosts nothing yet. `executor` stands in the activation records; ids of runs and batches
    /// begin with the term, so that answers meant for an earlier leadership are not mistaken.
    pub fn new(executor: PeerId, term: u64) -> Self {
        Self {
            executor,
            lanes: BTreeMap::new(),
            lane_of: BTreeMap::new(),
            fed_by: BTreeMap::new(),
            runs: BTreeMap::new(),
            batches: BTreeMap::new(),
            alarms: BTreeSet::new(),
            alarm_of: BTreeMap::new(),
            wake: None,
            ids: Ids(term << 32),
        }
    }

    /// Takes what happened, and says what is to be done. `now_ms` is the leader's clock, in milliseconds since
    /// 1970-01-01 UTC.
    pub fn handle(&mut self, input: Input, now_ms: u64) -> Vec<Output> {
        let mut out = Vec::new();
        for name in self.note(input, now_ms, &mut out) {
            let Some(lane) = self.lanes.get_mut(&name) else {
                continue;
            };
            let started = lane.advance(now_ms, &mut self.ids, &mut out);
            let wake = lane.wake(now_ms);
            self.runs.extend(started.ticket.map(|ticket| (ticket, name.clone())));
            self.batches.extend(started.batch.map(|batch| (batch, name.clone())));
            self.alarm(name, wake);
        }
        let wake = self.alarms.first().map(|(at, _)| *at);
        if wake != self.wake {
            self.wake = wake;
            out.extend(wake.map(Output::WakeAt));
        }
        out
    }

    /// Tells the lanes, and returns those that may go on.
    fn note(&mut self, input: Input, now: u64, out: &mut Vec<Output>) -> BTreeSet<String> {
        match input {
            Input::Start(hosted) => {
                self.lanes.clear();
                self.runs.clear();
                self.batches.clear();
                self.host(hosted)
            }
            Input::Spec(hosted) => self.host(hosted),
            Input::Head { topic, next } => {
                let names = self.fed_by.get(&topic).cloned().unwrap_or_default();
                for name in &names {
                    if let Some(lane) = self.lanes.get_mut(name) {
                        lane.grow(topic, next, now, out);
                    }
                }
                names
            }
            Input::Loaded { trigger, topic, from, events } => {
                let name = self.lane_of.get(&trigger).cloned();
                self.tell(name, |lane| lane.loaded((trigger, topic), from, events, now))
            }
            Input::Ran { ticket, run } => {
                let (name, executor) = (self.runs.remove(&ticket), self.executor);
                self.tell(name, |lane| lane.ran(ticket, run, executor, now))
            }
            Input::Committed { batch, results, cursors } => {
                let name = self.batches.remove(&batch);
                self.tell(name, |lane| lane.committed(batch, &results, cursors, now))
            }
            Input::ProposeFailed { batch } => {
                let name = self.batches.remove(&batch);
                self.tell(name, |lane| lane.propose_failed(batch, now))
            }
            Input::Tick => {
                self.wake = None;
                let due = self.alarms.iter().take_while(|(at, _)| *at <= now);
                due.map(|(_, name)| name.clone()).collect()
            }
        }
    }

    fn tell(&mut self, name: Option<String>, message: impl FnOnce(&mut Lane)) -> BTreeSet<String> {
        let Some(name) = name else {
            return BTreeSet::new();
        };
        if let Some(lane) = self.lanes.get_mut(&name) {
            message(lane);
        }
        BTreeSet::from([name])
    }

    fn alarm(&mut self, name: String, at: Option<u64>) {
        if let Some(old) = self.alarm_of.remove(&name) {
            self.alarms.remove(&(old, name.clone()));
        }
        if let Some(at) = at {
            self.alarm_of.insert(name.clone(), at);
            self.alarms.insert((at, name));
        }
    }

    /// Sorts what the group hosts into lanes.
    fn host(&mut self, hosted: Hosted) -> BTreeSet<String> {
        let Hosted { triggers, topics, cursors } = hosted;
        let mut cursors: BTreeMap<Pair, Cursor> = cursors.into_iter().map(|c| ((c.trigger, c.topic), c)).collect();
        let heads: BTreeMap<u64, u64> = topics.iter().map(|(topic, next)| (topic.id, *next)).collect();
        let pairs = matching::pairs(&triggers, topics.iter().map(|(topic, _)| topic));
        let mut lanes: BTreeMap<String, Content> = BTreeMap::new();
        self.lane_of.clear();
        self.fed_by.clear();
        for trigger in triggers {
            let (id, name) = (trigger.info.id, trigger.info.state_bucket().to_owned());
            let lane = lanes.entry(name.clone()).or_default();
            for topic in pairs.get(&id).into_iter().flatten() {
                let Some(cursor) = cursors.remove(&(id, topic.id)) else {
                    continue;
                };
                let head = heads.get(&topic.id).copied().unwrap_or_default();
                lane.feeds.insert((id, topic.id), ((*topic).clone(), head, cursor));
                self.fed_by.entry(topic.id).or_default().insert(name.clone());
            }
            lane.triggers.insert(id, Arc::new(trigger));
            self.lane_of.insert(id, name);
        }
        self.lanes.retain(|name, _| lanes.contains_key(name));
        self.runs.retain(|_, name| lanes.contains_key(name));
        self.batches.retain(|_, name| lanes.contains_key(name));
        self.alarms.clear();
        self.alarm_of.clear();
        let names = lanes.keys().cloned().collect();
        for (name, content) in lanes {
            let lane = self.lanes.entry(name.clone()).or_insert_with(|| Lane::new(name));
            lane.set(content.triggers, content.feeds);
        }
        names
    }
}

/// What one lane serves.
#[derive(Default)]
struct Content {
    triggers: BTreeMap<u64, Arc<TriggerSpec>>,
    feeds: BTreeMap<Pair, (TopicSpec, u64, Cursor)>,
}
