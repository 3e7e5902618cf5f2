//! A lane: the runs on one bucket of rows, one after the other, ahead of the commit.
//!
//! An outcome is *forming* from its run's return until it is proposed, and *proposed* until the answer comes. One
//! batch is under way at a time, so that a refused outcome can't be followed by one that was built on it. While
//! it is under way, the next one forms; when that is full, the lane waits.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use canal_proto::PeerId;
use canal_proto::cursor::Cursor;
use canal_proto::event::Stored;
use canal_proto::log::{Outcome, TopicSpec, TriggerSpec};
use prost::Message;

use super::feed::{Feed, Pick};
use super::outcome::{self, MAX_OUTCOME, Subject};
use super::{OutcomeResult, Output, Overlay, Run, RunResult};

/// Outcomes in one batch: bounds the work of one entry, and what one refusal throws away.
pub const MAX_BATCH: usize = 64;
/// Wait before a trigger's next run when one could not be tried.
pub const UNAVAILABLE_WAIT_MS: u64 = 250;
/// Wait before the next run when the outbox is full.
pub const BLOCKED_WAIT_MS: u64 = 200;
/// Wait before the next run when a proposal failed: the group has no quorum, or this peer is about to learn that
/// it no longer leads.
pub const PROPOSE_WAIT_MS: u64 = 200;
/// Longest wait before the next run when batch after batch is refused whole: rows that clients write all the
/// time, or an effect that can't be applied, must not keep the group busy. The first refusal costs no wait, each
/// further one twice that of the one before.
pub const REFUSED_WAIT_MS: u64 = 1024;

/// A trigger and a topic.
pub(super) type Pair = (u64, u64);

/// What makes ids of runs and batches.
pub(super) struct Ids(pub u64);

impl Ids {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        self.0
    }
}

struct Running {
    ticket: u64,
    pair: Pair,
    trigger: Arc<TriggerSpec>,
    topic: TopicSpec,
    event: Stored,
    attempt: u32,
    /// What it was built on is gone: its result will be ignored. The lane waits for it all the same, so that a
    /// lane never has two runs.
    stale: bool,
}

struct Proposal {
    batch: u64,
    outcomes: Vec<Outcome>,
}

pub(super) struct Lane {
    bucket: String,
    triggers: BTreeMap<u64, Arc<TriggerSpec>>,
    feeds: BTreeMap<Pair, Feed>,
    /// Feeds that may have something to run.
    ready: BTreeSet<Pair>,
    /// When other feeds become ready, and the same by feed.
    alarms: BTreeSet<(u64, Pair)>,
    alarm_of: BTreeMap<Pair, u64>,
    /// The feed that was served last; the next one in order is next.
    last: Pair,
    /// Triggers that wait because a run could not be tried.
    out_of_reach: BTreeMap<u64, u64>,
    /// Nothing is run or proposed before this time.
    held_until: u64,
    /// Batches in a row of which nothing was applied.
    fruitless: u32,
    running: Option<Running>,
    forming: Vec<Outcome>,
    forming_bytes: usize,
    proposed: Option<Proposal>,
    overlay: Overlay,
}

impl Lane {
    pub fn new(bucket: String) -> Self {
        Self {
            bucket,
            triggers: BTreeMap::new(),
            feeds: BTreeMap::new(),
            ready: BTreeSet::new(),
            alarms: BTreeSet::new(),
            alarm_of: BTreeMap::new(),
            last: (0, 0),
            out_of_reach: BTreeMap::new(),
            held_until: 0,
            fruitless: 0,
            running: None,
            forming: Vec::new(),
            forming_bytes: 0,
            proposed: None,
            overlay: Overlay::default(),
        }
    }

    /// Takes what the lane serves from now on.
    pub fn set(&mut self, triggers: BTreeMap<u64, Arc<TriggerSpec>>, feeds: BTreeMap<Pair, (TopicSpec, u64, Cursor)>) {
        self.triggers = triggers;
        self.out_of_reach.clear();
        let before = self.feeds.len();
        self.feeds.retain(|pair, _| feeds.contains_key(pair));
        let mut changed = self.feeds.len() < before;
        for (pair, (topic, next, cursor)) in feeds {
            match self.feeds.get_mut(&pair) {
                Some(feed) => {
                    feed.topic = topic;
                    feed.grow(next);
                    changed |= feed.adopt(cursor);
                }
                None => {
                    self.feeds.insert(pair, Feed::new(topic, next, cursor));
                }
            }
        }
        self.ready.extend(self.feeds.keys().copied());
        if changed {
            self.discard();
        }
    }

    pub fn grow(&mut self, topic: u64, next: u64, now: u64, out: &mut Vec<Output>) {
        for (trigger, spec) in &self.triggers {
            let pair = (*trigger, topic);
            if let Some(feed) = self.feeds.get_mut(&pair) {
                feed.grow(next);
                self.ready.insert(pair);
                if !spec.info.paused {
                    feed.read_ahead(now, out);
                }
            }
        }
    }

    pub fn loaded(&mut self, pair: Pair, from: u64, events: Vec<Stored>, now: u64) {
        if let Some(feed) = self.feeds.get_mut(&pair) {
            feed.loaded(from, events, now);
            self.ready.insert(pair);
        }
    }

    pub fn ran(&mut self, ticket: u64, run: RunResult, executor: PeerId, now: u64) {
        let Some(running) = self.running.take_if(|running| running.ticket == ticket) else {
            return;
        };
        if running.stale {
            return;
        }
        if run.unavailable {
            self.out_of_reach.insert(running.pair.0, now.saturating_add(UNAVAILABLE_WAIT_MS));
            return;
        }
        let Some(feed) = self.feeds.get_mut(&running.pair) else {
            return;
        };
        let Running { trigger, topic, event, attempt, .. } = running;
        let subject = Subject { trigger: &trigger, topic: &topic, event: &event, attempt, executor };
        let outcome = outcome::build(&subject, run, now);
        feed.expect(&outcome, event);
        overlay(&mut self.overlay, &outcome);
        self.forming_bytes = self.forming_bytes.saturating_add(outcome.encoded_len());
        self.forming.push(outcome);
    }

    pub fn committed(&mut self, batch: u64, results: &[OutcomeResult], cursors: Vec<Cursor>, now: u64) {
        let Some(proposal) = self.proposed.take_if(|proposal| proposal.batch == batch) else {
            return;
        };
        let mut refused = results.len() < proposal.outcomes.len();
        for (outcome, result) in proposal.outcomes.iter().zip(results) {
            match result {
                OutcomeResult::Applied => {
                    if let Some(feed) = self.feeds.get_mut(&(outcome.trigger, outcome.topic)) {
                        feed.commit(outcome);
                    }
                }
                OutcomeResult::Conflict | OutcomeResult::Obsolete => refused = true,
                OutcomeResult::Blocked => {
                    refused = true;
                    self.held_until = now.saturating_add(BLOCKED_WAIT_MS);
                }
            }
        }
        for cursor in cursors {
            let feed = self.feeds.get_mut(&(cursor.trigger, cursor.topic));
            refused |= feed.is_some_and(|feed| feed.adopt(cursor));
        }
        if refused {
            let fruitless = results.first() != Some(&OutcomeResult::Applied);
            self.fruitless = if fruitless { self.fruitless.saturating_add(1) } else { 0 };
            if self.fruitless > 1 {
                let wait = (1 << self.fruitless.min(10)).min(REFUSED_WAIT_MS);
                self.held_until = self.held_until.max(now.saturating_add(wait));
            }
            self.discard();
            return;
        }
        self.fruitless = 0;
        self.overlay = Overlay::default();
        for outcome in &self.forming {
            overlay(&mut self.overlay, outcome);
        }
    }

    pub fn propose_failed(&mut self, batch: u64, now: u64) {
        if self.proposed.take_if(|proposal| proposal.batch == batch).is_some() {
            self.held_until = now.saturating_add(PROPOSE_WAIT_MS);
            self.discard();
        }
    }

    /// Does what can be done now. To be called after anything that was told to the lane.
    pub fn advance(&mut self, now: u64, ids: &mut Ids, out: &mut Vec<Output>) -> Started {
        let mut started = Started::default();
        self.out_of_reach.retain(|_, until| *until > now);
        if self.held_until > now {
            return started;
        }
        started.batch = self.propose(ids, out);
        while let Some((at, pair)) = self.alarms.first().copied().filter(|(at, _)| *at <= now) {
            self.alarms.remove(&(at, pair));
            self.alarm_of.remove(&pair);
            self.ready.insert(pair);
        }
        if self.running.is_none() && self.forming.len() < MAX_BATCH && self.forming_bytes < MAX_OUTCOME {
            started.ticket = self.start(now, ids, out);
        }
        started
    }

    /// When the lane has to be looked at again, if nothing happens before.
    pub fn wake(&self, now: u64) -> Option<u64> {
        if self.held_until > now {
            return Some(self.held_until);
        }
        self.alarms.first().map(|(at, _)| *at)
    }

    fn propose(&mut self, ids: &mut Ids, out: &mut Vec<Output>) -> Option<u64> {
        if self.proposed.is_some() || self.forming.is_empty() {
            return None;
        }
        let mut bytes = 0;
        let mut take = 0;
        for outcome in self.forming.iter().take(MAX_BATCH) {
            // a repeated field costs its tag and length beside its content
            let size = outcome.encoded_len().saturating_add(8);
            if take > 0 && bytes + size > MAX_OUTCOME {
                break;
            }
            bytes += size;
            take += 1;
        }
        let rest = self.forming.split_off(take);
        let outcomes = std::mem::replace(&mut self.forming, rest);
        self.forming_bytes = self.forming.iter().map(Message::encoded_len).sum();
        let batch = ids.next();
        out.push(Output::Propose { batch, outcomes: outcomes.clone() });
        self.proposed = Some(Proposal { batch, outcomes });
        Some(batch)
    }

    /// Starts the next run: of the feed behind the one served last.
    fn start(&mut self, now: u64, ids: &mut Ids, out: &mut Vec<Output>) -> Option<u64> {
        let mut at = self.last;
        while let Some(pair) = self.ready.range((Excluded(at), Unbounded)).next().or(self.ready.first()).copied() {
            at = pair;
            let (Some(trigger), Some(feed)) = (self.triggers.get(&pair.0), self.feeds.get_mut(&pair)) else {
                self.ready.remove(&pair);
                continue;
            };
            let until = self.out_of_reach.get(&pair.0).copied();
            let picked = if trigger.info.paused || until.is_some() { None } else { feed.pick(&trigger.info, now, out) };
            let Some(Pick { event, attempt }) = picked else {
                // a paused trigger is woken by the next spec
                let wake = until.or_else(|| feed.wake(&trigger.info, now)).filter(|_| !trigger.info.paused);
                self.ready.remove(&pair);
                self.alarm(pair, wake);
                continue;
            };
            self.last = pair;
            let ticket = ids.next();
            out.push(Output::Run(Box::new(Run {
                ticket,
                trigger: Arc::clone(trigger),
                bucket: self.bucket.clone(),
                topic: feed.topic.clone(),
                event: event.clone(),
                attempt,
                overlay: Arc::clone(&self.overlay),
            })));
            let (trigger, topic) = (Arc::clone(trigger), feed.topic.clone());
            self.running = Some(Running { ticket, pair, trigger, topic, event, attempt, stale: false });
            return Some(ticket);
        }
        None
    }

    fn alarm(&mut self, pair: Pair, at: Option<u64>) {
        if let Some(old) = self.alarm_of.remove(&pair) {
            self.alarms.remove(&(old, pair));
        }
        if let Some(at) = at {
            self.alarm_of.insert(pair, at);
            self.alarms.insert((at, pair));
        }
    }

    /// Throws away what is not proposed, and begins anew behind what is.
    fn discard(&mut self) {
        self.forming.clear();
        self.forming_bytes = 0;
        if let Some(running) = &mut self.running {
            running.stale = true;
        }
        let proposed = self.proposed.as_ref().map_or(&[][..], |proposal| &proposal.outcomes);
        self.overlay = Overlay::default();
        for outcome in proposed {
            overlay(&mut self.overlay, outcome);
        }
        for (pair, feed) in &mut self.feeds {
            feed.reset(proposed.iter());
            self.ready.insert(*pair);
        }
    }
}

/// What [`Lane::advance`] set going.
#[derive(Default)]
pub(super) struct Started {
    pub ticket: Option<u64>,
    pub batch: Option<u64>,
}

/// Lays an outcome's writes over those before it.
fn overlay(overlay: &mut Overlay, outcome: &Outcome) {
    if !outcome.writes.is_empty() {
        let writes = outcome.writes.iter().map(|op| (op.key.clone(), op.value.clone()));
        Arc::make_mut(overlay).extend(writes);
    }
}
