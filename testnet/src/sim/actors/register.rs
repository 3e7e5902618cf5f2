//! A client that reads and writes rows of function state as registers.
//!
//! A write to state is not recognised when it comes twice, so the SDK gives it up as uncertain where it may have taken
//! effect, and asks again only where it was told that it has not. So does this client: a write that is uncertain is lost,
//! and the next one is an operation of its own with a value of its own. What it is told has not taken effect is the same
//! operation still: if that is not true, the history shows it.
//!
//! Now and then it reads from any replica what that has applied. That claims little: to be nothing, or what somebody began
//! to write.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::Bytes;
use canal_proto::log::{Kind, StateOp, StateWrite};
use canal_proto::{GroupId, route};

use super::alarm::Alarm;
use super::calls::{Caller, How, Outcome};
use super::subscriber::wander;
use crate::sim::around::{Actor, Answer, Around, Ask, Failed, Token};
use crate::sim::seen::Seen;

/// The bucket that the rows are in.
pub const BUCKET: &str = "registers";
/// Rows: few, so that clients meet.
pub const KEYS: usize = 2;
/// How long an answer is waited for.
const CALL_MS: u64 = 8_000;
/// Milliseconds between two operations of a busy client, at most: what clients do at once decides how hard it is to check.
const THINK_MS: u64 = 300;
/// Milliseconds between two operations of any client, at most.
const THINK_LONGEST_MS: u64 = 3000;
/// Operations once the faults are over.
const AFTERWARDS: u32 = 6;

/// What was ever begun to be written: register and value.
pub type Written = Rc<RefCell<BTreeSet<(usize, Vec<u8>)>>>;

enum Doing {
    Write,
    Read,
    /// From any replica; of this key.
    Stale(usize),
}

/// One client.
pub struct Register {
    group: GroupId,
    caller: Caller,
    alarm: Alarm,
    written: Written,
    operation: u64,
    doing: Option<Doing>,
    next_at: u64,
    afterwards: u32,
    healed: bool,
    lost: u64,
}

impl Register {
    /// A client of the rows in this group; what all of them write is shared.
    pub fn new(group: GroupId, written: Written) -> Self {
        Self {
            group,
            caller: Caller::new(route::group_name(group)),
            alarm: Alarm::default(),
            written,
            operation: 0,
            doing: None,
            next_at: 0,
            afterwards: AFTERWARDS,
            healed: false,
            lost: 0,
        }
    }

    fn advance(&mut self, around: &mut dyn Around) {
        let now = around.mono_ms();
        if self.operation == 0 && self.next_at == 0 {
            self.next_at = now + think(around);
        }
        if self.doing.is_none() && now >= self.next_at && !self.is_done() {
            self.begin(around);
        }
        let idle = (self.doing.is_none() && !self.is_done()).then_some(self.next_at);
        self.alarm.set(self.caller.wants().or(idle), around);
    }

    fn begin(&mut self, around: &mut dyn Around) {
        let client = around.machine();
        let key = around.rng().index(KEYS);
        let (row, register) = (key.to_string(), format!("{BUCKET}/{key}"));
        self.operation += 1;
        let operation = self.operation;
        match around.rng().below(10) {
            0 => {
                self.doing = Some(Doing::Stale(key));
                wander(&mut self.caller, around);
                let ask = Ask::Stale(self.group, BUCKET.into(), row);
                self.caller.begin(ask, How::Any, CALL_MS, around);
            }
            1..=4 => {
                let value = format!("{client}.{operation}").into_bytes();
                self.written.borrow_mut().insert((key, value.clone()));
                around.see(Seen::Invoked { client, operation, register, write: Some(value.clone()) });
                self.doing = Some(Doing::Write);
                let ops = vec![StateOp { key: row, value: Some(Bytes::from(value)) }];
                let write = Kind::StateWrite(StateWrite { bucket: BUCKET.into(), ops });
                self.caller.begin(Ask::Propose(self.group, Box::new(write)), How::Once, CALL_MS, around);
            }
            _ => {
                around.see(Seen::Invoked { client, operation, register, write: None });
                self.doing = Some(Doing::Read);
                self.caller.begin(Ask::State(self.group, BUCKET.into(), row), How::Leader, CALL_MS, around);
            }
        }
    }

    fn ended(&mut self, outcome: Outcome, around: &mut dyn Around) {
        let (client, operation) = (around.machine(), self.operation);
        let answer = match outcome {
            Outcome::Answered(_, answer) => Some(answer),
            Outcome::Refused(_) | Outcome::Uncertain | Outcome::Late => None,
        };
        let served = answer.is_some();
        match (self.doing.take(), answer) {
            (Some(Doing::Write), Some(_)) => around.see(Seen::Returned { client, operation, read: None }),
            (Some(Doing::Read), Some(Answer::Row(row))) => {
                around.see(Seen::Returned { client, operation, read: row.map(|row| row.to_vec()) });
            }
            (Some(Doing::Stale(key)), Some(Answer::Row(Some(row)))) => {
                if !self.written.borrow().contains(&(key, row.to_vec())) {
                    let text = format!("row {key} holds `{}`, which nobody wrote", String::from_utf8_lossy(&row));
                    around.see(Seen::Broken { client, text });
                }
            }
            (Some(Doing::Stale(_)), _) | (None, _) => {}
            (Some(Doing::Write | Doing::Read), _) => {
                self.lost += 1;
                around.see(Seen::Lost { client, operation });
            }
        }
        if self.healed && served {
            self.afterwards = self.afterwards.saturating_sub(1);
        }
        self.next_at = around.mono_ms() + think(around);
    }
}

/// How long a client waits before its next operation.
fn think(around: &mut dyn Around) -> u64 {
    let most = (THINK_MS * around.setup().leisure).min(THINK_LONGEST_MS);
    around.rng().below(most)
}

impl Actor for Register {
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
        let (operations, lost, left) = (self.operation, self.lost, self.afterwards);
        format!("register client: {operations} operations, {lost} lost, {left} to go; {}", self.caller.describe())
    }

    fn is_done(&self) -> bool {
        self.healed && self.afterwards == 0
    }

    fn heal(&mut self) {
        self.healed = true;
    }
}
