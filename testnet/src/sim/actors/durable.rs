//! A durable subscription, and two subscribers who want it: each opens it, reads from its cursor on, moves the cursor, and is
//! now and then started again, or only loses its connection; whoever opens it last has it.
//!
//! What they were told is compared: a cursor never goes back behind what somebody was told stands, a later opening has the
//! later session, and a subscriber who asks after another's opening was answered moves nothing any more.

use bytes::Bytes;
use canal_consensus::Reply;
use canal_proto::log::{Advance, Kind, Subscription, SubscriptionChange, SubscriptionOp};
use canal_proto::{Code, WireError};

use super::Line;
use super::alarm::Alarm;
use super::calls::{Caller, How, Outcome};
use super::subscriber::{delivered, wander};
use crate::sim::around::{Actor, Answer, Around, Ask, Failed, Token};
use crate::sim::seen::Seen;

/// The subscription's name.
const NAME: &str = "durable";
/// How long the group is waited for.
const CALL_MS: u64 = 10_000;
/// How long events are waited for.
const READ_MS: u64 = 3_000;
/// Events asked for at a time, at most.
const MOST: usize = 32;
/// Pause when nothing is there.
const PAUSE_MS: u64 = 400;
/// How often a hand is started again, or loses its connection, in a thousand wakings.
const RESTARTS: u64 = 10;
const BREAKS: u64 = 20;

/// What all know who want the subscription.
#[derive(Debug, Default)]
struct Known {
    /// Somebody was told that the cursor is here.
    committed: u64,
    /// The latest session that somebody was told of, and its holder.
    session: u64,
    holder: u64,
    /// Holders that there were.
    holders: u64,
}

enum State {
    /// Has no subscription until then.
    Closed(u64),
    /// Asks for it: what was known when it began.
    Opening { committed: u64, session: u64, again: bool },
    /// Has it, as far as it knows.
    Open,
}

struct Hand {
    state: State,
    holder: u64,
    session: u64,
    /// Some opening of this holder may be taken at any later time.
    limbo: bool,
    /// The offset that is read next, and the cursor as it stands.
    next: u64,
    cursor: u64,
    /// The cursor that is asked for, and whether that must be refused.
    advancing: Option<(u64, bool)>,
    read_at: u64,
    caught_up: bool,
    group: Caller,
    reader: Caller,
}

impl Hand {
    /// The hand of this number.
    fn new(line: &Line, number: u64) -> Self {
        Self {
            state: State::Closed(0),
            holder: 0,
            session: 0,
            limbo: false,
            next: 0,
            cursor: 0,
            advancing: None,
            read_at: 0,
            caught_up: false,
            group: Caller::new(&line.name).numbered(number * 2),
            reader: Caller::new(&line.name).numbered(number * 2 + 1),
        }
    }

    fn describe(&self) -> String {
        let (next, cursor, session) = (self.next, self.cursor, self.session);
        match self.state {
            State::Closed(_) => "closed".to_owned(),
            State::Opening { .. } => format!("opens, {}", self.group.describe()),
            State::Open => format!("session {session} read to {next}, moved to {cursor}, {}", self.reader.describe()),
        }
    }

    /// Loses all it knows, and begins again after a while: as somebody else.
    fn restart(&mut self, until: u64) {
        self.state = State::Closed(until);
        self.holder = 0;
        self.limbo = false;
        self.advancing = None;
        self.group.forget();
        self.reader.forget();
    }
}

/// A durable subscription to one topic.
pub struct Durable {
    line: Line,
    hands: [Hand; 2],
    known: Known,
    alarm: Alarm,
    healed: bool,
}

/// A word to the group, or to whoever reads.
enum Word {
    Group(Outcome),
    Events(Outcome),
}

impl Durable {
    /// Of this topic.
    pub fn new(line: Line) -> Self {
        let hands = [Hand::new(&line, 0), Hand::new(&line, 1)];
        Self { line, hands, known: Known::default(), alarm: Alarm::default(), healed: false }
    }

    fn advance(&mut self, around: &mut dyn Around) {
        let now = around.mono_ms();
        let mut wants = Vec::new();
        for (at, hand) in self.hands.iter_mut().enumerate() {
            // once the faults are over, the first has it
            let may = at == 0 || !self.healed;
            match hand.state {
                State::Closed(until) if now >= until && may => open(&self.line, hand, &mut self.known, false, around),
                State::Closed(until) => wants.extend(may.then_some(until)),
                State::Opening { .. } => {}
                State::Open => {
                    work(&self.line, hand, &self.known, around);
                    wants.extend((!hand.reader.is_busy()).then_some(hand.read_at));
                }
            }
            wants.extend(hand.group.wants());
            wants.extend(hand.reader.wants());
        }
        self.alarm.set(wants.into_iter().min(), around);
    }

    /// Now and then a hand is started again, or loses its connection.
    fn stumble(&mut self, around: &mut dyn Around) {
        if self.healed {
            return;
        }
        for hand in &mut self.hands {
            if !matches!(hand.state, State::Open) {
                continue;
            }
            if around.rng().chance(RESTARTS) {
                let until = around.mono_ms() + around.rng().between(100, 5_000);
                hand.restart(until);
            } else if hand.advancing.is_none() && around.rng().chance(BREAKS) {
                open(&self.line, hand, &mut self.known, true, around);
            }
        }
    }

    fn heard(&mut self, at: usize, word: Word, around: &mut dyn Around) {
        let Some(hand) = self.hands.get_mut(at) else { return };
        match (word, &hand.state) {
            (Word::Group(outcome), State::Opening { committed, session, again }) => {
                let then = (*committed, *session, *again);
                opened(&self.line, hand, &mut self.known, then, outcome, around);
            }
            (Word::Group(outcome), State::Open) => {
                advanced(&self.line, hand, &mut self.known, outcome, around);
            }
            (Word::Events(outcome), State::Open) => read(&self.line, hand, outcome, around),
            (_, State::Closed(_)) | (Word::Events(_), State::Opening { .. }) => {}
        }
    }
}

fn broken(line: &Line, text: String, around: &mut dyn Around) {
    let client = around.machine();
    around.see(Seen::Broken { client, text: format!("durable subscription to {}: {text}", line.name) });
}

fn change(line: &Line, hand: &Hand, op: SubscriptionOp, again: bool) -> Ask {
    let holder = Bytes::copy_from_slice(&hand.holder.to_be_bytes());
    let change = SubscriptionChange { topic: line.topic.0, name: NAME.into(), op: Some(op), holder, again };
    Ask::Propose(line.group, Box::new(Kind::Subscription(change)))
}

fn open(line: &Line, hand: &mut Hand, known: &mut Known, again: bool, around: &mut dyn Around) {
    if !again {
        known.holders += 1;
        hand.holder = known.holders;
        hand.limbo = false;
    }
    hand.state = State::Opening { committed: known.committed, session: known.session, again };
    let ask = change(line, hand, SubscriptionOp::Open(0), again);
    hand.group.begin(ask, How::Leader, CALL_MS, around);
}

/// What the state machine said of a change.
fn result(outcome: Outcome) -> Option<Result<Subscription, WireError>> {
    match outcome {
        Outcome::Answered(_, Answer::Reply(Reply::Subscription(result))) => Some(result),
        Outcome::Refused(error) => Some(Err(error)),
        Outcome::Answered(..) | Outcome::Uncertain | Outcome::Late => None,
    }
}

fn opened(
    line: &Line,
    hand: &mut Hand,
    known: &mut Known,
    (committed, session, again): (u64, u64, bool),
    outcome: Outcome,
    around: &mut dyn Around,
) {
    let now = around.mono_ms();
    hand.limbo |= hand.group.is_repeated();
    match result(outcome) {
        Some(Ok(stands)) => {
            if stands.next < committed {
                broken(line, format!("the cursor was at {committed}, and is at {} after that", stands.next), around);
            }
            if stands.session <= session {
                broken(line, format!("session {} was opened after session {session}", stands.session), around);
            }
            if stands.session > known.session {
                known.session = stands.session;
                known.holder = hand.holder;
            }
            known.committed = known.committed.max(stands.next);
            hand.session = stands.session;
            hand.cursor = stands.next;
            if !again {
                hand.next = stands.next;
            }
            hand.read_at = now;
            hand.caught_up = false;
            hand.state = State::Open;
        }
        Some(Err(error)) => {
            let lost = error.code == Code::UnknownSubscription as i32 && known.session > 0;
            let taken = error.code == Code::TakenOver as i32;
            if lost || (taken && !again) {
                broken(
                    line,
                    format!("it stood in session {}, but opening it: {}", known.session, error.message),
                    around,
                );
            }
            hand.restart(now + around.rng().between(500, 4_000));
        }
        None => hand.restart(now + around.rng().below(PAUSE_MS)),
    }
}

/// Reads, and moves the cursor.
fn work(line: &Line, hand: &mut Hand, known: &Known, around: &mut dyn Around) {
    let now = around.mono_ms();
    if !hand.reader.is_busy() && now >= hand.read_at {
        wander(&mut hand.reader, around);
        let most = around.rng().index(MOST) + 1;
        hand.reader.begin(Ask::Events(line.group, line.topic, hand.next, most), How::Any, READ_MS, around);
    }
    if !hand.group.is_busy() && hand.advancing.is_none() && hand.next > hand.cursor {
        let refused = known.session > hand.session && known.holder != hand.holder && !hand.limbo;
        hand.advancing = Some((hand.next, refused));
        let advance = SubscriptionOp::Advance(Advance { session: hand.session, next: hand.next });
        hand.group.begin(change(line, hand, advance, false), How::Leader, CALL_MS, around);
    }
}

fn advanced(line: &Line, hand: &mut Hand, known: &mut Known, outcome: Outcome, around: &mut dyn Around) {
    let now = around.mono_ms();
    let Some((to, refused)) = hand.advancing.take() else { return };
    match result(outcome) {
        Some(Ok(stands)) => {
            if stands.next < to {
                broken(line, format!("the cursor was moved to {to}, and is at {}", stands.next), around);
            }
            if refused {
                let (session, later) = (hand.session, known.session);
                broken(line, format!("session {session} moved the cursor after session {later} was opened"), around);
            }
            known.committed = known.committed.max(stands.next);
            hand.cursor = stands.next;
        }
        Some(Err(error)) if error.code == Code::TakenOver as i32 => {
            hand.restart(now + around.rng().between(1_000, 8_000));
        }
        Some(Err(error)) => {
            let (session, text) = (hand.session, error.message);
            broken(line, format!("session {session} moves the cursor to {to}: {text}"), around);
            hand.restart(now + PAUSE_MS);
        }
        None => {}
    }
}

fn read(line: &Line, hand: &mut Hand, outcome: Outcome, around: &mut dyn Around) {
    let now = around.mono_ms();
    if let Outcome::Answered(_, Answer::Events(events, head)) = outcome {
        let before = hand.next;
        for stored in events {
            if stored.offset >= hand.next {
                hand.next = stored.offset + 1;
                around.see(delivered(around.machine(), line, stored));
            }
        }
        hand.caught_up = hand.next >= head;
        hand.read_at = if hand.next > before && !hand.caught_up { now } else { now + PAUSE_MS };
    } else {
        hand.reader.forget();
        hand.read_at = now + PAUSE_MS;
    }
}

impl Actor for Durable {
    fn wake(&mut self, around: &mut dyn Around) {
        self.alarm.rang();
        for at in 0..self.hands.len() {
            if let Some(outcome) = self.hands.get_mut(at).and_then(|hand| hand.group.wake(around)) {
                self.heard(at, Word::Group(outcome), around);
            }
            if let Some(outcome) = self.hands.get_mut(at).and_then(|hand| hand.reader.wake(around)) {
                self.heard(at, Word::Events(outcome), around);
            }
        }
        self.stumble(around);
        self.advance(around);
    }

    fn answered(&mut self, token: Token, answer: Result<Answer, Failed>, around: &mut dyn Around) {
        // each hand has two ways to ask
        let at = usize::from(token >> 33 != 0);
        let Some(hand) = self.hands.get_mut(at) else { return };
        let word = if (token >> 32).is_multiple_of(2) {
            hand.group.answered(token, answer, around).map(Word::Group)
        } else {
            hand.reader.answered(token, answer, around).map(Word::Events)
        };
        if let Some(word) = word {
            self.heard(at, word, around);
        }
        self.advance(around);
    }

    fn describe(&self) -> String {
        let hands: Vec<String> = self.hands.iter().map(Hand::describe).collect();
        let (name, committed) = (&self.line.name, self.known.committed);
        format!("durable subscription to {name}: cursor {committed}; {}", hands.join("; "))
    }

    fn is_done(&self) -> bool {
        let first = self.hands.first();
        let settled = |hand: &Hand| {
            matches!(hand.state, State::Open) && hand.caught_up && hand.advancing.is_none() && hand.cursor == hand.next
        };
        self.healed && first.is_some_and(settled)
    }

    fn heal(&mut self) {
        self.healed = true;
        for hand in &mut self.hands {
            hand.caught_up = false;
        }
    }
}
