//! A producer, as the SDK's publisher is one: it numbers its events, sends batches in order to the leader, several at a time,
//! and after any trouble sends everything that has no receipt again, from the oldest on.
//!
//! It is in one of two states. *Finding*: the oldest batch alone goes through [`Caller`], until a leader takes it. *Flowing*:
//! batches go to that leader, [`PIPELINE`] at a time.
//!
//! A producer with a queue is a device that is cut off now and then: it loses its memory, and on its return has its
//! identity, its events, and which of them were acknowledged, as far as it got to write that down; it cuts its batches anew.

use std::collections::VecDeque;

use bytes::Bytes;
use canal_consensus::Reply;
use canal_proto::event::{Event, Receipt};
use canal_proto::log::AppendItem;
use canal_proto::{Code, WireError};

use super::Line;
use super::alarm::Alarm;
use super::calls::{Caller, How, Outcome};
use crate::sim::around::{Actor, Answer, Around, Ask, Failed, Machine, Token};
use crate::sim::seen::Seen;

/// Publish requests under way; as in the SDK.
const PIPELINE: usize = 8;
/// Silence after which another leader is looked for; as in the SDK.
const SILENCE_MS: u64 = 1000;
/// How long a leader is looked for at a time; as in the SDK.
const FINDING_MS: u64 = 10_000;
/// Times that a leader may deny what was acknowledged before that is believed; as in the SDK.
const MAX_GAPS: u32 = 5;
/// Pause after an error.
const PAUSE_MS: u64 = 250;
/// Events without a receipt: when there are so many, no more are made. A device keeps as many in its queue.
const WINDOW: u64 = 300;
/// Events that are made once the faults are over.
const AFTERWARDS: u64 = 3;

/// How much a producer publishes.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Milliseconds between two bursts of events, about.
    pub every_ms: u64,
    /// Events in a burst, at most.
    pub burst: u64,
    /// Events in a batch, at most.
    pub batch: u64,
    /// For how long, in milliseconds.
    pub for_ms: u64,
}

/// A device's queue.
#[derive(Debug, Default)]
struct Queue {
    /// Events up to this one are written down as acknowledged.
    settled: u64,
    /// It is cut off until then.
    away_until: Option<u64>,
    /// When it is cut off next.
    next_away: u64,
}

struct Batch {
    first: u64,
    count: u64,
    token: Option<Token>,
    receipt: Option<Receipt>,
}

/// A producer of one topic.
pub struct Producer {
    line: Line,
    id: [u8; 16],
    pace: Pace,
    caller: Caller,
    alarm: Alarm,
    began: Option<u64>,
    make_at: u64,
    /// Sequence of the last event that was made.
    made: u64,
    /// Sequence of the last event that was ever sent.
    sent: u64,
    /// Sequence of the last event that has a receipt.
    acknowledged: u64,
    /// Sent and without a receipt; the oldest first.
    batches: VecDeque<Batch>,
    /// The leader that takes batches as they come.
    flow: Option<Machine>,
    heard: u64,
    pause_until: u64,
    gaps: u32,
    queue: Option<Queue>,
    healed: bool,
    afterwards: u64,
}

impl Producer {
    /// A producer of this identity.
    pub fn new(line: Line, id: [u8; 16], pace: Pace) -> Self {
        Self {
            caller: Caller::new(&line.name),
            line,
            id,
            pace,
            alarm: Alarm::default(),
            began: None,
            make_at: 0,
            made: 0,
            sent: 0,
            acknowledged: 0,
            batches: VecDeque::new(),
            flow: None,
            heard: 0,
            pause_until: 0,
            gaps: 0,
            queue: None,
            healed: false,
            afterwards: AFTERWARDS,
        }
    }

    /// The same with a queue, on a device that is cut off now and then.
    #[must_use]
    pub fn queued(mut self) -> Self {
        self.queue = Some(Queue::default());
        self
    }

    fn is_away(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.away_until.is_some())
    }

    /// Goes on: makes events, and sends what may be sent.
    fn advance(&mut self, around: &mut dyn Around) {
        self.make(around);
        let now = around.mono_ms();
        if !self.is_away() && now >= self.pause_until {
            if self.flow.is_some() {
                self.fill(around);
            } else if !self.caller.is_busy() {
                self.find(around);
            }
        }
        self.rest(around);
    }

    /// Says when it has to be woken.
    fn rest(&mut self, around: &mut dyn Around) {
        let now = around.mono_ms();
        let silent = (self.flow.is_some() && !self.batches.is_empty()).then_some(self.heard + SILENCE_MS);
        let paused = (self.pause_until > now).then_some(self.pause_until);
        let leaves = |queue: &Queue| (!self.healed).then_some(queue.next_away);
        let device = self.queue.as_ref().and_then(|queue| queue.away_until.or_else(|| leaves(queue)));
        let make = self.is_making(now).then_some(self.make_at);
        let next = [self.caller.wants(), silent, paused, device, make].into_iter().flatten().min();
        self.alarm.set(next, around);
    }

    fn is_making(&self, now: u64) -> bool {
        self.began.is_none_or(|began| now < began + self.pace.for_ms) && !self.healed
    }

    fn make(&mut self, around: &mut dyn Around) {
        let now = around.mono_ms();
        if self.began.is_none() {
            self.began = Some(now);
            self.make_at = now + around.rng().below(self.pace.every_ms);
        }
        if self.healed && !self.is_away() {
            self.made += std::mem::take(&mut self.afterwards);
        }
        if self.is_making(now) && now >= self.make_at {
            let room = WINDOW.saturating_sub(self.made - self.acknowledged);
            self.made += around.rng().between(1, self.pace.burst).min(room);
            self.make_at = now + around.rng().between(self.pace.every_ms / 2, self.pace.every_ms * 3 / 2);
        }
    }

    /// Cuts a batch of what was not sent since the last start.
    fn cut(&mut self, around: &mut dyn Around) -> bool {
        let end = self.batches.back().map_or(self.acknowledged, |batch| batch.first + batch.count - 1);
        if end >= self.made {
            return false;
        }
        let count = around.rng().between(1, self.pace.batch).min(self.made - end);
        self.batches.push_back(Batch { first: end + 1, count, token: None, receipt: None });
        true
    }

    fn payload(&self, sequence: u64) -> Vec<u8> {
        let hex: String = self.id.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{hex}:{sequence}").into_bytes()
    }

    /// The request for a batch; what is sent for the first time is told before.
    fn request(&mut self, at: usize, around: &mut dyn Around) -> Option<Ask> {
        let batch = self.batches.get(at)?;
        let (first, end) = (batch.first, batch.first + batch.count);
        if end > self.sent + 1 {
            let new = self.sent + 1;
            let payloads = (new..end).map(|sequence| self.payload(sequence)).collect();
            self.sent = end - 1;
            let (client, topic) = (around.machine(), self.line.topic.0);
            around.see(Seen::Publishes { client, topic, producer: self.id.to_vec(), first: new, payloads });
        }
        let item = AppendItem {
            topic: self.line.topic.0,
            producer: Bytes::copy_from_slice(&self.id),
            first_sequence: first,
            events: (first..end).map(|sequence| Event::new(self.payload(sequence))).collect(),
            origin: 0,
        };
        Some(Ask::Append(self.line.group, item))
    }

    /// Looks for a leader with the oldest batch.
    fn find(&mut self, around: &mut dyn Around) {
        for batch in &mut self.batches {
            batch.token = None;
            batch.receipt = None;
        }
        if self.batches.is_empty() && !self.cut(around) {
            return;
        }
        if let Some(ask) = self.request(0, around) {
            self.caller.begin(ask, How::Leader, FINDING_MS, around);
        }
    }

    /// Sends batches to the leader until enough are under way.
    fn fill(&mut self, around: &mut dyn Around) {
        let Some(leader) = self.flow else { return };
        let now = around.mono_ms();
        let waiting = self.batches.iter().any(|batch| batch.token.is_some());
        if waiting && now >= self.heard + SILENCE_MS {
            self.caller.suspect(leader);
            self.flow = None;
            return self.find(around);
        }
        for at in 0..PIPELINE {
            if at == self.batches.len() && !self.cut(around) {
                break;
            }
            if self.batches.get(at).is_none_or(|batch| batch.token.is_some()) {
                continue;
            }
            if !self.batches.iter().any(|batch| batch.token.is_some()) {
                self.heard = now;
            }
            let Some(ask) = self.request(at, around) else { break };
            let token = self.caller.token();
            if let Some(batch) = self.batches.get_mut(at) {
                batch.token = Some(token);
            }
            around.ask(token, leader, ask);
        }
    }

    /// A receipt for the oldest batch, which may cover its beginning only; the answer is whether it covered all.
    fn settle(&mut self, receipt: Receipt, around: &mut dyn Around) -> bool {
        let Some(batch) = self.batches.front_mut() else { return false };
        let (client, count) = (around.machine(), u64::from(receipt.count));
        let (topic, producer, first) = (self.line.topic.0, self.id.to_vec(), batch.first);
        if count == 0 || count > batch.count {
            let (name, sent) = (&self.line.name, batch.count);
            let text =
                format!("publishing to {name}: the receipt covers {count} events from {first} on, {sent} were sent");
            around.see(Seen::Broken { client, text });
            self.pause_until = around.mono_ms() + PAUSE_MS;
            return false;
        }
        batch.first += count;
        batch.count -= count;
        let whole = batch.count == 0;
        if whole {
            self.batches.pop_front();
        }
        self.gaps = 0;
        if let Some(queue) = &mut self.queue
            && around.rng().chance(700)
        {
            // or else it is cut off before it has written that down
            queue.settled = queue.settled.max(self.acknowledged);
        }
        self.acknowledged = self.acknowledged.max(first + count - 1);
        around.see(Seen::Acknowledged { client, topic, producer, first, count, offset: receipt.offset });
        whole
    }

    /// Back to finding, with everything that has no receipt.
    fn interrupt(&mut self, error: Option<&WireError>, around: &mut dyn Around) {
        self.flow = None;
        let Some(error) = error else { return };
        if error.code == Code::SequenceGap as i32 && self.gaps > MAX_GAPS {
            let (client, name) = (around.machine(), &self.line.name);
            let text = format!("publishing to {name}: {} had a receipt, but {}", self.acknowledged, error.message);
            around.see(Seen::Broken { client, text });
            self.gaps = 0;
        }
        self.pause_until = around.mono_ms() + PAUSE_MS;
    }

    fn found(&mut self, outcome: Outcome, around: &mut dyn Around) {
        match outcome {
            Outcome::Answered(leader, Answer::Reply(Reply::Appended(mut results))) => match results.pop() {
                Some(Ok(receipt)) => {
                    self.settle(receipt, around);
                    self.flow = Some(leader);
                    self.heard = around.mono_ms();
                }
                Some(Err(error)) => {
                    self.gaps += 1;
                    self.interrupt(Some(&error), around);
                }
                None => self.interrupt(None, around),
            },
            Outcome::Refused(error) => self.interrupt(Some(&error), around),
            Outcome::Answered(..) | Outcome::Uncertain | Outcome::Late => self.interrupt(None, around),
        }
    }

    /// An answer to a batch that was sent while flowing.
    fn flowed(&mut self, at: usize, answer: Result<Answer, Failed>, around: &mut dyn Around) {
        self.heard = around.mono_ms();
        let result = match answer {
            Ok(Answer::Reply(Reply::Appended(mut results))) => results.pop(),
            Err(Failed::NotLeader(Some(leader))) => {
                self.caller.leads(leader);
                None
            }
            Err(Failed::Error(error)) => Some(Err(error)),
            Ok(_) | Err(_) => None,
        };
        match result {
            Some(Ok(receipt)) => {
                if let Some(batch) = self.batches.get_mut(at) {
                    batch.receipt = Some(receipt);
                }
                // in order, whatever the order of the answers
                while let Some(receipt) = self.batches.front_mut().and_then(|batch| batch.receipt.take()) {
                    if !self.settle(receipt, around) {
                        return self.interrupt(None, around);
                    }
                }
            }
            Some(Err(error)) => self.interrupt(Some(&error), around),
            None => self.interrupt(None, around),
        }
    }

    /// The device is cut off, or comes back.
    fn live(&mut self, around: &mut dyn Around) {
        let now = around.mono_ms();
        let healed = self.healed;
        let Some(queue) = &mut self.queue else { return };
        if queue.next_away == 0 {
            queue.next_away = now + around.rng().between(2_000, 10_000);
        }
        match queue.away_until {
            Some(until) if now >= until || healed => {
                queue.away_until = None;
                queue.next_away = now + around.rng().between(3_000, 15_000);
                self.acknowledged = queue.settled;
            }
            None if now >= queue.next_away && !healed => {
                queue.away_until = Some(now + around.rng().between(1_000, 12_000));
                self.caller.forget();
                self.batches.clear();
                self.flow = None;
                self.gaps = 0;
            }
            _ => {}
        }
    }
}

impl Actor for Producer {
    fn wake(&mut self, around: &mut dyn Around) {
        self.alarm.rang();
        self.live(around);
        if let Some(outcome) = self.caller.wake(around) {
            self.found(outcome, around);
        }
        self.advance(around);
    }

    fn answered(&mut self, token: Token, answer: Result<Answer, Failed>, around: &mut dyn Around) {
        match self.batches.iter().position(|batch| batch.token == Some(token)) {
            Some(at) if self.flow.is_some() => self.flowed(at, answer, around),
            Some(_) => {}
            None => {
                if let Some(outcome) = self.caller.answered(token, answer, around) {
                    self.found(outcome, around);
                }
            }
        }
        self.advance(around);
    }

    fn describe(&self) -> String {
        let (made, acknowledged) = (self.made, self.acknowledged);
        let state = match (self.is_away(), self.flow) {
            (true, _) => "is away".to_owned(),
            (_, Some(leader)) => format!("flows to {leader}"),
            _ => format!("finds: {}", self.caller.describe()),
        };
        format!("producer of {}: {acknowledged} of {made} events acknowledged, {state}", self.line.name)
    }

    fn is_done(&self) -> bool {
        self.healed && self.afterwards == 0 && self.acknowledged == self.made
    }

    fn heal(&mut self) {
        self.healed = true;
    }
}
