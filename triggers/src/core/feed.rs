//! One trigger's way through one topic: which event is next, and the few event bodies held for it.
//!
//! A feed knows two cursors: the committed one, and the one that will stand once all outcomes of this leader are
//! applied. Events are chosen by the second. It promises order within a key (an event waits while an earlier one
//! of its key is parked or waits itself), and it holds a bounded number of bodies: others are read again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use canal_proto::catalog::TriggerInfo;
use canal_proto::cursor::{Cursor, Parked, key_digest};
use canal_proto::event::Stored;
use canal_proto::log::{Disposition, Outcome, TopicSpec};
use prost::Message;

use super::Output;

/// Events asked for at once: as many as a batch of outcomes takes.
const LOAD_EVENTS: u64 = 64;
/// Below this many events read ahead, more are asked for, so that a fast function does not wait for the log.
const LOW_WATER: usize = 16;
/// Bodies read ahead, in bytes: a few events of the largest size, thousands of small ones.
const AHEAD_BYTES: usize = 4 << 20;
/// Bodies of parked and waiting events that are held so as not to be read again.
const KEPT_EVENTS: usize = 64;
/// The same, in bytes.
const KEPT_BYTES: usize = 1 << 20;
/// Wait before events are asked for again that could not be read.
pub(super) const LOAD_WAIT_MS: u64 = 100;

/// The next event of a feed.
pub(super) struct Pick {
    pub event: Stored,
    pub attempt: u32,
}

pub(super) struct Feed {
    trigger: u64,
    pub topic: TopicSpec,
    /// What is applied.
    committed: Cursor,
    /// What will stand when everything under way is applied.
    expected: Cursor,
    /// The topic's next offset.
    head: u64,
    /// All events below are done, parked or waiting.
    frontier: u64,
    /// Bodies of the events from `frontier` on, without gaps.
    ahead: VecDeque<Stored>,
    /// Events that were passed because an earlier one of their key is not done, with their key's digest.
    waiting: BTreeMap<u64, Bytes>,
    /// Whether a waiting event may have become free.
    recheck: bool,
    /// Bodies of parked and waiting events; some of them.
    kept: BTreeMap<u64, Stored>,
    /// The read under way: its first offset, and whether it is for one parked or waiting event.
    loading: Option<(u64, bool)>,
    /// No reads before this time.
    load_after: u64,
    /// Whether the last pick was an event that was run or passed before; then a new one comes first, so that
    /// neither kind can starve the other.
    fresh_first: bool,
}

impl Feed {
    pub fn new(topic: TopicSpec, head: u64, committed: Cursor) -> Self {
        Self {
            trigger: committed.trigger,
            topic,
            expected: committed.clone(),
            frontier: committed.low,
            committed,
            head,
            ahead: VecDeque::new(),
            waiting: BTreeMap::new(),
            recheck: false,
            kept: BTreeMap::new(),
            loading: None,
            load_after: 0,
            fresh_first: true,
        }
    }

    pub fn grow(&mut self, next: u64) {
        self.head = self.head.max(next);
    }

    /// The next event that may run now, if there is one. Asks for bodies as they are needed.
    pub fn pick(&mut self, trigger: &TriggerInfo, now: u64, out: &mut Vec<Output>) -> Option<Pick> {
        let event = if self.fresh_first {
            self.fresh(now, out).or_else(|| self.again(trigger, now, out))
        } else {
            self.again(trigger, now, out).or_else(|| self.fresh(now, out))
        };
        self.read_ahead(now, out);
        let event = event?;
        self.fresh_first = event.offset != self.frontier;
        let attempt = self.expected.attempts(event.offset).saturating_add(1);
        Some(Pick { event, attempt })
    }

    /// When a parked event falls due, or a read may be tried again.
    pub fn wake(&self, trigger: &TriggerInfo, now: u64) -> Option<u64> {
        let parked = self.expected.parked.iter().map(|parked| due_ms(parked, trigger, now));
        parked.chain([self.load_after]).filter(|at| *at > now).min()
    }

    /// Takes bodies that were read.
    pub fn loaded(&mut self, from: u64, events: Vec<Stored>, now: u64) {
        let Some((_, single)) = self.loading.take_if(|loading| loading.0 == from) else {
            return;
        };
        if events.first().is_none_or(|event| event.offset != from) {
            self.load_after = now.saturating_add(LOAD_WAIT_MS);
            return;
        }
        if single {
            // there may be a reset between question and answer
            if let Some(event) = events.into_iter().next().filter(|event| !self.expected.is_done(event.offset)) {
                self.keep(event, true);
            }
            return;
        }
        self.advance();
        let mut bytes: usize = self.ahead.iter().map(Message::encoded_len).sum();
        for event in events {
            let next = self.frontier.saturating_add(self.ahead.len() as u64);
            if event.offset == next && (self.ahead.is_empty() || bytes < AHEAD_BYTES) {
                bytes += event.encoded_len();
                self.ahead.push_back(event);
            }
        }
    }

    /// Takes the outcome of a run of this feed for granted.
    pub fn expect(&mut self, outcome: &Outcome, event: Stored) {
        self.expected.apply(outcome);
        self.waiting.remove(&event.offset);
        if outcome.disposition == Disposition::Retry as i32 {
            self.keep(event, false);
        } else {
            self.kept.remove(&event.offset);
            // what was run before was parked, and may have held others
            self.recheck |= outcome.attempt > 1;
        }
    }

    /// Notes that an outcome, expected before, is applied.
    pub fn commit(&mut self, outcome: &Outcome) {
        self.committed.apply(outcome);
    }

    /// Takes the cursor that the state machine has. True if that is not what was known: then the feed has to be
    /// [reset](Self::reset).
    pub fn adopt(&mut self, cursor: Cursor) -> bool {
        if cursor.runs < self.committed.runs || cursor == self.committed {
            return false;
        }
        self.committed = cursor;
        true
    }

    /// Begins anew from the committed cursor and the outcomes that are still expected to be applied.
    pub fn reset<'a>(&mut self, outcomes: impl Iterator<Item = &'a Outcome>) {
        self.expected = self.committed.clone();
        for outcome in outcomes.filter(|o| o.trigger == self.trigger && o.topic == self.topic.id) {
            self.expected.apply(outcome);
        }
        if self.ahead.front().is_some_and(|event| event.offset > self.expected.low) {
            self.ahead.clear();
        }
        self.frontier = self.expected.low;
        self.waiting.clear();
        self.recheck = false;
        let expected = &self.expected;
        self.kept.retain(|offset, _| !expected.is_done(*offset));
    }

    /// Asks for the events that will be needed next.
    pub fn read_ahead(&mut self, now: u64, out: &mut Vec<Output>) {
        self.advance();
        let from = self.frontier.saturating_add(self.ahead.len() as u64);
        let bytes = || self.ahead.iter().map(Message::encoded_len).sum::<usize>();
        if self.ahead.len() <= LOW_WATER && self.expected.is_open(from) && bytes() < AHEAD_BYTES / 2 {
            self.load(from, false, now, out);
        }
    }

    /// The first event that was never run, if its key and the gap allow it.
    fn fresh(&mut self, now: u64, out: &mut Vec<Output>) -> Option<Stored> {
        loop {
            self.advance();
            if self.frontier >= self.head || !self.expected.is_open(self.frontier) {
                return None;
            }
            let Some(event) = self.ahead.front() else {
                self.load(self.frontier, false, now, out);
                return None;
            };
            if self.expected.parked.is_empty() && self.waiting.is_empty() {
                return Some(event.clone());
            }
            let digest = key_digest(&event.event.key);
            let same = |other: &Bytes| !digest.is_empty() && *other == digest;
            if !self.expected.parked.iter().any(|p| same(&p.key_digest)) && !self.waiting.values().any(same) {
                return Some(event.clone());
            }
            let event = event.clone();
            self.waiting.insert(event.offset, digest);
            self.keep(event, false);
        }
    }

    /// An event that was run or passed before and whose time has come.
    fn again(&mut self, trigger: &TriggerInfo, now: u64, out: &mut Vec<Output>) -> Option<Stored> {
        let due = self.expected.parked.iter().filter(|parked| due_ms(parked, trigger, now) <= now);
        let due = due.min_by_key(|parked| (parked.not_before_ms, parked.offset)).map(|parked| parked.offset);
        let offset = due.or_else(|| self.released())?;
        if let Some(event) = self.kept.get(&offset) {
            return Some(event.clone());
        }
        self.load(offset, true, now, out);
        None
    }

    /// The first waiting event whose key is free. Of one key the first is met first, so order holds.
    fn released(&mut self) -> Option<u64> {
        if !self.recheck {
            return None;
        }
        let parked: BTreeSet<&Bytes> = self.expected.parked.iter().map(|parked| &parked.key_digest).collect();
        let free = self.waiting.iter().find(|(_, digest)| !parked.contains(digest)).map(|(offset, _)| *offset);
        self.recheck = free.is_some();
        free
    }

    /// Moves the frontier over what needs no look.
    fn advance(&mut self) {
        while self.expected.is_done(self.frontier)
            || self.expected.parked(self.frontier).is_some()
            || self.waiting.contains_key(&self.frontier)
        {
            self.frontier = self.frontier.saturating_add(1).max(self.expected.low);
        }
        while self.ahead.front().is_some_and(|event| event.offset < self.frontier) {
            self.ahead.pop_front();
        }
    }

    fn load(&mut self, from: u64, single: bool, now: u64, out: &mut Vec<Output>) {
        let max = if single { 1 } else { LOAD_EVENTS.min(self.head.saturating_sub(from)) };
        if max == 0 || self.loading.is_some() || now < self.load_after {
            return;
        }
        self.loading = Some((from, single));
        out.push(Output::Load { trigger: self.trigger, topic: self.topic.id, from, max });
    }

    /// Holds a body, in place of others if it must be.
    fn keep(&mut self, event: Stored, must: bool) {
        let bytes = |kept: &BTreeMap<u64, Stored>| kept.values().map(Message::encoded_len).sum::<usize>();
        let (offset, size) = (event.offset, event.encoded_len());
        self.kept.remove(&offset);
        while self.kept.len() >= KEPT_EVENTS || bytes(&self.kept) + size > KEPT_BYTES {
            let last = self.kept.keys().next_back().copied();
            match last.filter(|_| must) {
                Some(last) => self.kept.remove(&last),
                None if must => break,
                None => return,
            };
        }
        self.kept.insert(offset, event);
    }
}

/// When a parked event may run again, by the clock of the peer that leads now.
///
/// Another's clock may have said until when it waits, and may have been far ahead. What is left of the wait is never more
/// than all of it by clocks that agree; if it is, that clock is not believed, and the event is due.
fn due_ms(parked: &Parked, trigger: &TriggerInfo, now: u64) -> u64 {
    let left = parked.not_before_ms.saturating_sub(now);
    if left > trigger.backoff(parked.attempts) { now } else { parked.not_before_ms }
}
