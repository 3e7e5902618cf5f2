//! How a client gets an answer from the one that can give it, as `canal_sdk::client` does: it asks the replicas of a route, the
//! leader first, follows redirects, asks another when one stays silent, and looks the route up again when it led astray.
//!
//! One call at a time. What may be asked twice is ([`How::Leader`], [`How::Any`]); what may not ([`How::Once`]) is asked again
//! only by those who say that it has not taken effect, and is given up, as uncertain, where nobody can say.

use std::collections::{BTreeMap, VecDeque};

use canal_consensus::Refused;
use canal_proto::request::Route;
use canal_proto::{Code, WireError};

use crate::sim::around::{Answer, Around, Ask, Failed, Machine, Token};

/// Silence after which the next is asked too; as in the SDK.
pub const HEDGE_MS: u64 = 1000;
/// The first wait between rounds, and the longest; as in the SDK.
const FIRST_BACKOFF_MS: u64 = 20;
const LONGEST_BACKOFF_MS: u64 = 500;
/// A replica may not know yet what it hosts: after this time it is believed.
const UNKNOWN_GRACE_MS: u64 = 10_000;
/// Of a thousand rounds for which no route was found, those in which peers are asked at random all the same, as somebody does
/// who was told an address: so that clients of groups go on when only the lookup is broken, and what they see is of use.
const GUESSES: u64 = 250;
/// Rounds on one route: replicas that the group has left behind may send a client from one to the other for ever.
const MAX_ROUNDS: u32 = 3;
/// Questions of one call that wait for answers: more than a group has replicas, so that a round never ends for it.
const MAX_WAITING: usize = 16;

/// Who may answer, and how often it may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// The leader; to ask twice is as good as once.
    Leader,
    /// The leader; what has perhaps taken effect is not asked again.
    Once,
    /// Whoever has it.
    Any,
}

/// What a call came to.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// An answer, and whose.
    Answered(Machine, Answer),
    /// It was refused for good.
    Refused(WireError),
    /// Nobody knows whether it took effect.
    Uncertain,
    /// The deadline passed. What could be asked twice may have taken effect, and may yet.
    Late,
}

struct Call {
    ask: Ask,
    how: How,
    deadline: u64,
    queue: VecDeque<Machine>,
    /// Asked in this round.
    tried: Vec<Machine>,
    /// Asked and not answered.
    waiting: BTreeMap<Token, Machine>,
    resolving: Option<(Token, u64)>,
    round_at: Option<u64>,
    hedge_at: u64,
    /// The route led astray.
    stale: bool,
    /// Rounds since the route was looked up.
    rounds: u32,
    unknown_since: Option<u64>,
    /// Some question may have been taken without an answer.
    lost: bool,
}

/// A client's way to one name.
pub struct Caller {
    name: String,
    /// Replicas of the name, the leader first; what was found last.
    route: Vec<Machine>,
    /// The group that it led to last.
    group: Option<u64>,
    guesses: bool,
    next_token: Token,
    backoff: u64,
    call: Option<Call>,
    /// Of the call that ended last: other questions of it may have been taken, or may yet be.
    repeated: bool,
}

impl Caller {
    /// A way to this name: of a topic, or of a group.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            route: Vec::new(),
            group: None,
            guesses: true,
            next_token: 0,
            backoff: FIRST_BACKOFF_MS,
            call: None,
            repeated: false,
        }
    }

    /// Numbers its questions unlike others of the same client: each has its own `way`.
    #[must_use]
    pub fn numbered(mut self, way: u64) -> Self {
        self.next_token = way << 32;
        self
    }

    /// Goes by routes alone: never asks a peer that no route names.
    #[must_use]
    pub fn by_routes_alone(mut self) -> Self {
        self.guesses = false;
        self
    }

    /// Another name from now on, of which nothing is known.
    pub fn rename(&mut self, name: impl Into<String>) {
        self.forget();
        self.name = name.into();
    }

    /// Of the call that ended last: whether another question of it than the one that was answered may have been taken, or may
    /// yet be.
    pub fn is_repeated(&self) -> bool {
        self.repeated
    }

    /// The group that the name led to last.
    pub fn group(&self) -> Option<u64> {
        self.group
    }

    /// A number for a question, unlike all others of this client.
    pub fn token(&mut self) -> Token {
        self.next_token += 1;
        self.next_token
    }

    /// Whether a call is under way.
    pub fn is_busy(&self) -> bool {
        self.call.is_some()
    }

    /// The replicas as last heard of, the leader first.
    pub fn route(&self) -> &[Machine] {
        &self.route
    }

    /// Forgets everything but the numbers of questions: the client was started again.
    pub fn forget(&mut self) {
        self.route.clear();
        self.group = None;
        self.call = None;
        self.backoff = FIRST_BACKOFF_MS;
    }

    /// This machine is asked last from now on.
    pub fn suspect(&mut self, machine: Machine) {
        self.route.sort_by_key(|other| *other == machine);
    }

    /// This machine is asked first from now on.
    pub fn leads(&mut self, machine: Machine) {
        self.route.retain(|other| *other != machine);
        self.route.insert(0, machine);
    }

    /// Takes a route over, and says where it points; the leader first.
    pub fn learn(&mut self, route: &Route, around: &dyn Around) -> Vec<Machine> {
        let mut replicas: Vec<_> = route.replicas.iter().collect();
        replicas.sort_by_key(|replica| replica.id != route.leader);
        let machine = |replica: &&canal_proto::peer::Replica| around.machine_of(&replica.peer_id().ok()?);
        self.route = replicas.iter().filter_map(machine).collect();
        self.group = Some(route.group);
        self.route.clone()
    }

    /// Begins a call; one that is under way is given up.
    pub fn begin(&mut self, ask: Ask, how: How, within_ms: u64, around: &mut dyn Around) {
        let now = around.mono_ms();
        self.call = Some(Call {
            ask,
            how,
            deadline: now + within_ms,
            queue: VecDeque::new(),
            tried: Vec::new(),
            waiting: BTreeMap::new(),
            resolving: None,
            round_at: Some(now),
            hedge_at: now,
            stale: false,
            rounds: 0,
            unknown_since: None,
            lost: false,
        });
        self.advance(around);
    }

    /// When it wants to be woken: a moment of [`Around::mono_ms`].
    pub fn wants(&self) -> Option<u64> {
        let call = self.call.as_ref()?;
        let hedge = (call.how != How::Once && !call.waiting.is_empty()).then_some(call.hedge_at);
        let resolving = call.resolving.map(|(_, since)| since + HEDGE_MS);
        [call.round_at, hedge, resolving].into_iter().flatten().chain([call.deadline]).min()
    }

    /// Time has passed.
    pub fn wake(&mut self, around: &mut dyn Around) -> Option<Outcome> {
        let now = around.mono_ms();
        let call = self.call.as_mut()?;
        if now >= call.deadline {
            let once = call.how == How::Once && !call.waiting.is_empty();
            self.repeated = call.lost || !call.waiting.is_empty();
            self.call = None;
            return Some(if once { Outcome::Uncertain } else { Outcome::Late });
        }
        if call.resolving.is_some_and(|(_, since)| now >= since + HEDGE_MS) {
            // another peer may know
            call.resolving = None;
            call.round_at = Some(now);
            call.stale = true;
        }
        if call.how != How::Once && !call.waiting.is_empty() && now >= call.hedge_at {
            call.hedge_at = now + HEDGE_MS;
            if call.exhausted() && call.resolving.is_none() && call.round_at.is_none() {
                call.stale = true;
                call.round_at = Some(now);
            }
            self.ask_next(around);
        }
        self.advance(around);
        None
    }

    /// An answer; none of this call's business when the question is not its own.
    pub fn answered(
        &mut self,
        token: Token,
        answer: Result<Answer, Failed>,
        around: &mut dyn Around,
    ) -> Option<Outcome> {
        let call = self.call.as_mut()?;
        if call.resolving.is_some_and(|(resolving, _)| resolving == token) {
            call.resolving = None;
            self.resolved(answer, around);
            return None;
        }
        let from = call.waiting.remove(&token)?;
        let outcome = self.judge(from, answer, around);
        if outcome.is_some() {
            self.repeated = self.call.take().is_some_and(|call| call.lost || !call.waiting.is_empty());
        } else {
            self.advance(around);
        }
        outcome
    }

    fn resolved(&mut self, answer: Result<Answer, Failed>, around: &mut dyn Around) {
        let found = match answer {
            Ok(Answer::Route(route)) => self.learn(&route, around),
            _ => Vec::new(),
        };
        let pause = self.pause(around);
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF_MS);
        let guess = self.guesses && found.is_empty() && around.rng().chance(GUESSES);
        let now = around.mono_ms();
        let anybody = if guess { anybody(around) } else { Vec::new() };
        let Some(call) = &mut self.call else { return };
        if guess {
            call.round(anybody);
        } else if found.is_empty() {
            call.stale = true;
            call.round_at = Some(now + pause);
        } else {
            call.round(found);
        }
        self.advance(around);
    }

    fn judge(&mut self, from: Machine, answer: Result<Answer, Failed>, around: &mut dyn Around) -> Option<Outcome> {
        let now = around.mono_ms();
        let call = self.call.as_mut()?;
        let failed = match answer {
            Ok(answer) => {
                self.backoff = FIRST_BACKOFF_MS;
                if call.how != How::Any {
                    self.leads(from);
                }
                return Some(Outcome::Answered(from, answer));
            }
            Err(failed) => failed,
        };
        match failed {
            Failed::NotLeader(leader) => {
                if let Some(leader) = leader {
                    call.queue.push_front(leader);
                    self.leads(leader);
                }
            }
            Failed::NotHere => {
                call.stale = true;
                self.route.retain(|other| *other != from);
            }
            Failed::Refused(Refused::Busy) => {}
            Failed::Refused(Refused::TooLarge(size)) => {
                return Some(Outcome::Refused(WireError::new(Code::TooLarge, format!("{size} bytes are too many"))));
            }
            Failed::Error(error) => return self.judge_error(from, error, now),
            Failed::Refused(_) | Failed::Silence => {
                if call.how == How::Once {
                    return Some(Outcome::Uncertain);
                }
                call.lost = true;
                call.stale = true;
                self.suspect(from);
            }
        }
        None
    }

    fn judge_error(&mut self, from: Machine, error: WireError, now: u64) -> Option<Outcome> {
        let call = self.call.as_mut()?;
        match Code::try_from(error.code).unwrap_or(Code::Unspecified) {
            Code::NotLeader | Code::WouldBlock => {}
            Code::NotHere | Code::Stopping | Code::Forgotten => call.stale = true,
            Code::NoQuorum | Code::Unreachable | Code::Internal if call.how == How::Once => {
                return Some(Outcome::Uncertain);
            }
            Code::NoQuorum | Code::Unreachable | Code::Internal => {
                call.lost = true;
                call.stale = true;
                self.suspect(from);
            }
            Code::UnknownTopic | Code::UnknownGroup
                if now < *call.unknown_since.get_or_insert(now) + UNKNOWN_GRACE_MS =>
            {
                call.stale = true;
            }
            Code::OutOfRange if call.how == How::Any => {}
            _ => return Some(Outcome::Refused(error)),
        }
        None
    }

    /// Does what can be done without waiting.
    fn advance(&mut self, around: &mut dyn Around) {
        let now = around.mono_ms();
        let Some(call) = &mut self.call else { return };
        if call.round_at.is_some_and(|at| at <= now) {
            call.round_at = None;
            self.start_round(around);
        }
        let Some(call) = &mut self.call else { return };
        if call.waiting.is_empty() && !call.exhausted() {
            self.ask_next(around);
        }
        let pause = self.pause(around);
        let Some(call) = &mut self.call else { return };
        if call.exhausted() && call.waiting.is_empty() && call.resolving.is_none() && call.round_at.is_none() {
            call.round_at = Some(now + pause);
            self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF_MS);
        }
    }

    /// A wait before the next round, cut by up to a half.
    fn pause(&self, around: &mut dyn Around) -> u64 {
        self.backoff - around.rng().below(self.backoff / 2)
    }

    fn start_round(&mut self, around: &mut dyn Around) {
        let now = around.mono_ms();
        let token = self.token();
        let Some(call) = &mut self.call else { return };
        call.rounds += 1;
        let fresh = std::mem::take(&mut call.stale) || call.rounds > MAX_ROUNDS;
        if fresh || self.route.is_empty() {
            call.resolving = Some((token, now));
            call.rounds = 0;
            let entry = around.peers();
            let entry = around.rng().index(entry);
            let name = self.name.clone();
            around.ask(token, entry, if fresh { Ask::Afresh(name) } else { Ask::Route(name) });
        } else {
            call.round(self.route.clone());
        }
    }

    fn ask_next(&mut self, around: &mut dyn Around) {
        let now = around.mono_ms();
        let token = self.token();
        let Some(call) = &mut self.call else { return };
        if call.waiting.len() >= MAX_WAITING {
            return;
        }
        while let Some(to) = call.queue.pop_front() {
            if call.may_ask(to) {
                call.tried.push(to);
                call.waiting.insert(token, to);
                call.hedge_at = now + HEDGE_MS;
                around.ask(token, to, call.ask.clone());
                return;
            }
        }
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let Some(call) = &self.call else { return format!("route {:?}", self.route) };
        let (waiting, queue): (Vec<_>, _) = (call.waiting.values().collect(), &call.queue);
        let (resolving, lost) = (call.resolving.is_some(), call.lost);
        format!("route {:?}, waits for {waiting:?}, next {queue:?}, resolving {resolving}, lost {lost}", self.route)
    }
}

impl Call {
    fn round(&mut self, machines: Vec<Machine>) {
        self.tried.clear();
        self.queue = machines.into();
    }

    fn may_ask(&self, machine: Machine) -> bool {
        !self.tried.contains(&machine) && !self.waiting.values().any(|other| *other == machine)
    }

    fn exhausted(&self) -> bool {
        !self.queue.iter().any(|machine| self.may_ask(*machine))
    }
}

/// A few peers, drawn.
fn anybody(around: &mut dyn Around) -> Vec<Machine> {
    let peers = around.peers();
    (0..4).map(|_| around.rng().index(peers)).collect()
}
