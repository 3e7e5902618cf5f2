//! A subscriber: reads a topic from its first event on, at whatever replica answers, and goes on at another one where it
//! stands when that one fails or when it feels like it.
//!
//! It drops what it has, as the SDK does. What skips is told as it came: that nothing may skip is for the invariants.

use canal_proto::Code;

use super::Line;
use super::alarm::Alarm;
use super::calls::{Caller, How, Outcome};
use crate::sim::around::{Actor, Answer, Around, Ask, Failed, Token};
use crate::sim::seen::Seen;

/// How long it waits for an answer before it looks the topic up again.
const READ_MS: u64 = 5_000;
/// Events asked for at a time, at most.
const MOST: usize = 64;
/// Pauses when nothing is there: the first, and the longest.
const FIRST_PAUSE_MS: u64 = 50;
const LONGEST_PAUSE_MS: u64 = 800;

/// A subscriber of one topic.
pub struct Subscriber {
    line: Line,
    caller: Caller,
    alarm: Alarm,
    next: u64,
    pause: u64,
    read_at: u64,
    /// What was read is all that there is, as a replica that answered said.
    caught_up: bool,
    healed: bool,
}

impl Subscriber {
    /// A subscriber of this topic.
    pub fn new(line: Line) -> Self {
        Self {
            caller: Caller::new(&line.name),
            line,
            alarm: Alarm::default(),
            next: 0,
            pause: FIRST_PAUSE_MS,
            read_at: 0,
            caught_up: false,
            healed: false,
        }
    }

    fn advance(&mut self, around: &mut dyn Around) {
        let now = around.mono_ms();
        if !self.caller.is_busy() && now >= self.read_at {
            wander(&mut self.caller, around);
            let most = around.rng().index(MOST) + 1;
            let ask = Ask::Events(self.line.group, self.line.topic, self.next, most);
            self.caller.begin(ask, How::Any, READ_MS, around);
        }
        let at = self.caller.wants().unwrap_or(self.read_at);
        self.alarm.set(Some(at), around);
    }

    fn ended(&mut self, outcome: Outcome, around: &mut dyn Around) {
        let now = around.mono_ms();
        match outcome {
            Outcome::Answered(_, Answer::Events(events, head)) => {
                let before = self.next;
                for stored in events {
                    if stored.offset < self.next {
                        continue;
                    }
                    self.next = stored.offset + 1;
                    around.see(delivered(around.machine(), &self.line, stored));
                }
                self.pause = if self.next > before { FIRST_PAUSE_MS } else { (self.pause * 2).min(LONGEST_PAUSE_MS) };
                self.caught_up = self.next >= head;
                self.read_at = if self.caught_up { now + self.pause } else { now };
                if self.next == before && !self.caught_up {
                    self.read_at = now + self.pause;
                }
            }
            Outcome::Refused(error) if error.code == Code::OutOfRange as i32 && error.detail > self.next => {
                let (client, next) = (around.machine(), self.next);
                let text = format!("subscribing to {}: offset {next} is gone: {}", self.line.name, error.message);
                around.see(Seen::Broken { client, text });
                self.read_at = now + LONGEST_PAUSE_MS;
            }
            Outcome::Answered(..) | Outcome::Refused(_) | Outcome::Uncertain | Outcome::Late => {
                self.caller.forget();
                self.read_at = now + self.pause;
            }
        }
    }
}

/// Now and then, another replica is read from, or the replicas are looked up again.
pub(super) fn wander(caller: &mut Caller, around: &mut dyn Around) {
    match around.rng().below(20) {
        0 => caller.forget(),
        1..=3 => {
            if let Some(other) = around.rng().pick(caller.route()) {
                caller.leads(other);
            }
        }
        _ => {}
    }
}

pub(super) fn delivered(client: usize, line: &Line, stored: canal_proto::event::Stored) -> Seen {
    Seen::Delivered {
        client,
        topic: line.topic.0,
        offset: stored.offset,
        producer: stored.producer.to_vec(),
        sequence: stored.sequence,
        payload: stored.event.payload.to_vec(),
    }
}

impl Actor for Subscriber {
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
        let (name, next, caught_up) = (&self.line.name, self.next, self.caught_up);
        format!("subscriber of {name}: at {next}, caught up {caught_up}, {}", self.caller.describe())
    }

    fn is_done(&self) -> bool {
        self.healed && self.caught_up
    }

    fn heal(&mut self) {
        self.healed = true;
        self.caught_up = false;
    }
}
