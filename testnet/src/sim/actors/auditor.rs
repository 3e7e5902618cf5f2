//! Reads every topic whole, from every replica that its group has, once the faults are over: what cannot be read there is not
//! kept there, and damage that nobody has met yet is met, and has to be repaired.

use std::collections::BTreeSet;

use super::Line;
use super::alarm::Alarm;
use super::calls::{Caller, How, Outcome};
use super::subscriber::delivered;
use crate::sim::around::{Actor, Answer, Around, Ask, Failed, Machine, Token};

/// Events asked for at a time.
const MOST: usize = 256;
/// How long the replicas of a group are looked for at a time.
const CALL_MS: u64 = 8_000;
/// Pause after an answer that did not help: a damaged file takes a while to be fetched from another replica.
const PAUSE_MS: u64 = 250;
/// Answers of a replica that do not help, after which it is asked whether the group still has it.
const PATIENCE: u32 = 8;

/// A replica that is being read.
struct Reading {
    peer: Machine,
    next: u64,
    token: Option<Token>,
    again_at: u64,
    failures: u32,
}

/// A client that reads all.
pub struct Auditor {
    lines: Vec<Line>,
    /// The line that is read.
    at: usize,
    /// Its replicas that were read whole.
    whole: BTreeSet<Machine>,
    reading: Option<Reading>,
    caller: Caller,
    alarm: Alarm,
    healed: bool,
    /// Answers that did not help.
    failures: u64,
}

impl Auditor {
    /// Of these topics.
    pub fn new(lines: Vec<Line>) -> Self {
        Self {
            lines,
            at: 0,
            whole: BTreeSet::new(),
            reading: None,
            caller: Caller::new(""),
            alarm: Alarm::default(),
            healed: false,
            failures: 0,
        }
    }

    fn advance(&mut self, around: &mut dyn Around) {
        let now = around.mono_ms();
        if self.healed
            && let Some(line) = self.lines.get(self.at).cloned()
        {
            match &mut self.reading {
                Some(reading) if reading.failures >= PATIENCE => self.reading = None,
                Some(reading) if reading.token.is_none() && now >= reading.again_at => {
                    let token = self.caller.token();
                    reading.token = Some(token);
                    around.ask(token, reading.peer, Ask::Events(line.group, line.topic, reading.next, MOST));
                }
                _ => {}
            }
            if self.reading.is_none() && !self.caller.is_busy() {
                self.caller.rename(&line.name);
                self.caller.begin(Ask::Standing(line.group), How::Any, CALL_MS, around);
            }
        }
        let again = self.reading.as_ref().filter(|reading| reading.token.is_none()).map(|reading| reading.again_at);
        self.alarm.set(self.caller.wants().into_iter().chain(again).min(), around);
    }

    /// Which replicas there are: the next one is read, or the next topic.
    fn standing(&mut self, outcome: Outcome, around: &mut dyn Around) {
        let Outcome::Answered(_, Answer::Standing(_, replicas)) = outcome else { return };
        let peers = replicas.iter().filter_map(|replica| around.machine_of(&replica.peer_id().ok()?));
        match peers.into_iter().find(|peer| !self.whole.contains(peer)) {
            Some(peer) => {
                let again_at = around.mono_ms();
                self.reading = Some(Reading { peer, next: 0, token: None, again_at, failures: 0 });
            }
            None => {
                self.at += 1;
                self.whole.clear();
            }
        }
    }

    fn read(&mut self, answer: Result<Answer, Failed>, around: &mut dyn Around) {
        let now = around.mono_ms();
        let (Some(reading), Some(line)) = (&mut self.reading, self.lines.get(self.at)) else { return };
        reading.token = None;
        reading.again_at = now;
        let before = reading.next;
        if let Ok(Answer::Events(events, head)) = answer {
            for stored in events {
                reading.next = stored.offset + 1;
                around.see(delivered(around.machine(), line, stored));
            }
            if reading.next >= head {
                self.whole.insert(reading.peer);
                self.reading = None;
                return;
            }
        }
        if reading.next == before {
            self.failures += 1;
            reading.failures += 1;
            reading.again_at = now + PAUSE_MS;
        }
    }
}

impl Actor for Auditor {
    fn wake(&mut self, around: &mut dyn Around) {
        self.alarm.rang();
        if let Some(outcome) = self.caller.wake(around) {
            self.standing(outcome, around);
        }
        self.advance(around);
    }

    fn answered(&mut self, token: Token, answer: Result<Answer, Failed>, around: &mut dyn Around) {
        if self.reading.as_ref().is_some_and(|reading| reading.token == Some(token)) {
            self.read(answer, around);
        } else if let Some(outcome) = self.caller.answered(token, answer, around) {
            self.standing(outcome, around);
        }
        self.advance(around);
    }

    fn describe(&self) -> String {
        let line = self.lines.get(self.at).map_or("", |line| line.name.as_str());
        let at = self.reading.as_ref().map(|reading| (reading.peer, reading.next));
        let (whole, failures) = (&self.whole, self.failures);
        format!(
            "auditor: reads {line} at (peer, offset) {at:?}, whole at {whole:?}, {failures} answers of no use; {}",
            self.caller.describe()
        )
    }

    fn is_done(&self) -> bool {
        self.healed && self.at >= self.lines.len()
    }

    fn heal(&mut self) {
        self.healed = true;
    }
}
