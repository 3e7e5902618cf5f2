//! Membership, as in the node: the leader of a group brings its replicas to where they should be, one step at a time.
//!
//! What should be is [`Surroundings::target`], which step comes next [`next_step`], how a replica is [`Signs::condition`]:
//! the same that the node asks. What the node waits for in one task is here a `Phase`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use canal_consensus::core::group::Input;
use canal_consensus::{ChangeSet, Progress, Refused, Reply, Status};
use canal_proto::PeerId;
use canal_proto::peer::{Replica, Seed};
use canal_topology::judge::SILENT;
use canal_topology::{
    Candidate, Condition, Member, Objective, Patience, Role, Signs, Standing, Step, Surroundings, next_step,
};

use super::Place;
use super::gossip::Heard;
use super::timer::Timer;
use crate::sim::around::{Actor, Answer, Around, Ask, Failed, Machine, Token};
use crate::sim::dht::Identities;
use crate::sim::mutants::{self, Mutant};
use crate::sim::seen::Seen;

/// How often a group looks at itself.
const LOOK_MS: u64 = 500;
/// The same while it is on its way somewhere.
const GO_ON_MS: u64 = 100;
/// How often a group that stood as it should looks at the peers again; its own changes it sees at once.
const REST_MS: u64 = 2000;
/// How long a peer is no candidate on which a replica could not be brought to life. The node's 300 s are longer than a run.
const AVOID_MS: u64 = 20_000;
/// For a change of the configuration; a leader that gets no majority in that time loses its office.
const CHANGE_MS: u64 = 10_000;
/// For a hand-over; Raft gives it up earlier.
const HAND_OVER_MS: u64 = 3000;
/// How often, and how many times, a replica that was let go is told so. Later it finds out by itself.
const TELL_MS: u64 = 1000;
const TELLINGS: u32 = 60;
/// Replicas that are being told at a time.
const MAX_TOLD: usize = 16;
/// How often the peer of a silent replica is asked whether it holds it.
const PROBE_MS: u64 = 2000;

/// How long replicas may be silent: less than the node's default, so that a run sees the end of it.
pub const PATIENCE: Patience = Patience {
    replace_after: Duration::from_secs(8),
    bring_up: Duration::from_secs(8),
    installing: Duration::from_secs(15),
};

/// What is waited for.
enum Phase {
    /// The next look.
    Idle,
    /// Answers of peers whose replicas are silent: how many.
    Probing(usize),
    /// A replica to be created, or a change to be agreed on; until then at the latest.
    Step(Token, Doing, u64),
    /// The end of a joint configuration.
    Settling(Vec<Replica>, u64),
    /// Somebody else to lead; when it is asked for again, and when it is given up.
    HandOver(u64, u64, u64),
}

/// A step that was begun.
enum Doing {
    Add,
    Create,
    /// These go.
    Change(Vec<Replica>),
    /// It goes, and whether its peer is avoided.
    GiveUp(Replica, bool),
}

/// A replica that is to be told that it was let go.
struct Telling {
    id: u64,
    peer: Machine,
    left: u32,
    at: u64,
    asked: bool,
}

/// Keeps the group's replicas for as long as it is led here.
pub struct Room {
    peer: Machine,
    identities: Rc<Identities>,
    known: Rc<RefCell<Heard>>,
    phase: Phase,
    /// When it looks next.
    at: u64,
    /// The configuration and the spec with which it stood as it should, and since when.
    rested: Option<((u64, u64), u64)>,
    /// When this leader first saw each replica in the configuration.
    met: BTreeMap<u64, u64>,
    avoided: BTreeMap<PeerId, u64>,
    lost: BTreeSet<u64>,
    probed: BTreeMap<u64, u64>,
    /// The replica that a question is about.
    probes: BTreeMap<Token, u64>,
    tellings: BTreeMap<Token, Telling>,
    tokens: Token,
    last: Option<Step>,
    timer: Timer,
}

impl Room {
    /// Of a group that has begun to be led.
    pub fn new(place: &Place) -> Self {
        Self {
            peer: place.peer,
            identities: place.identities.clone(),
            known: place.known.clone(),
            phase: Phase::Idle,
            at: 0,
            rested: None,
            met: BTreeMap::new(),
            avoided: BTreeMap::new(),
            lost: BTreeSet::new(),
            probed: BTreeMap::new(),
            probes: BTreeMap::new(),
            tellings: BTreeMap::new(),
            tokens: 0,
            last: None,
            timer: Timer::default(),
        }
    }

    fn token(&mut self) -> Token {
        self.tokens += 1;
        self.tokens
    }

    fn idle(&mut self, wait: u64, around: &mut dyn Around) {
        self.phase = Phase::Idle;
        self.at = around.mono_ms() + wait;
        self.timer.wake_at(self.at, around);
    }

    /// Begins a look: first, who is silent is asked for.
    fn look(&mut self, status: &Status, around: &mut dyn Around) {
        let now = around.mono_ms();
        let key = (status.configuration.index, status.spec.version);
        let rests = self.rested.is_some_and(|(known, since)| known == key && now.saturating_sub(since) < REST_MS);
        if !status.leads || rests || status.spec.replicas == 0 {
            return self.idle(LOOK_MS, around);
        }
        self.rested = None;
        let replicas = &status.configuration.replicas;
        self.met.retain(|id, _| replicas.iter().any(|replica| replica.id == *id));
        self.avoided.retain(|_, since| now.saturating_sub(*since) < AVOID_MS);
        let silent = self.silent(status, around);
        let is_silent = |id: &u64| silent.get(id).is_some_and(|silent| *silent >= SILENT);
        self.lost.retain(is_silent);
        self.probed.retain(|id, _| is_silent(id));
        let mut waiting = 0;
        for replica in replicas {
            let id = replica.id;
            let Some(peer) = self.identities.holder(replica) else { continue };
            let known =
                self.lost.contains(&id) || self.probed.get(&id).is_some_and(|at| now.saturating_sub(*at) < PROBE_MS);
            let there = self.known.borrow().live(now).any(|(live, _)| live == peer);
            if id == status.replica || !is_silent(&id) || known || !there {
                continue;
            }
            self.probed.insert(id, now);
            if existed(status, id) {
                waiting += 1;
                let token = self.token();
                self.probes.insert(token, id);
                around.ask(token, peer, Ask::Holds(status.group, id));
            }
        }
        if waiting > 0 {
            self.phase = Phase::Probing(waiting);
        } else {
            self.step(status, around);
        }
    }

    /// How long replicas were silent while this leader knew them.
    fn silent(&mut self, status: &Status, around: &mut dyn Around) -> BTreeMap<u64, Duration> {
        let now = around.mono_ms();
        let Some(here) = around.replica() else { return BTreeMap::new() };
        let mut silent = BTreeMap::new();
        for replica in &status.configuration.replicas {
            let met = now.saturating_sub(*self.met.entry(replica.id).or_insert(now));
            silent.insert(replica.id, Duration::from_millis(here.silent_ms(replica.id).min(met)));
        }
        silent
    }

    fn standing(&mut self, status: &Status, around: &mut dyn Around) -> Standing {
        let now = around.mono_ms();
        let silent = self.silent(status, around);
        let mut members = Vec::new();
        for replica in &status.configuration.replicas {
            let (id, Ok(peer)) = (replica.id, replica.peer_id()) else { continue };
            let learns = status.configuration.learners.contains(&id);
            let role = if learns { Role::Learner } else { Role::Voter };
            let Progress { matched, snapshot, .. } = status.progress.get(&id).copied().unwrap_or_default();
            let silent = silent.get(&id).copied().unwrap_or_default();
            let (leads, lost) = (id == status.replica, self.lost.contains(&id));
            let signs = Signs { leads, role, silent, matched, snapshot, lost };
            members.push(Member { id, peer, role, condition: signs.condition(status.committed, &PATIENCE) });
        }
        let wanted = usize::try_from(status.spec.replicas).unwrap_or(usize::MAX).min(canal_proto::limits::MAX_REPLICAS);
        let objective = status.spec.placement.as_ref().map(Objective::from).unwrap_or_default();
        let known = self.known.borrow();
        let mut live: Vec<Candidate> = known.live(now).filter_map(|(_, info)| Candidate::try_from(info).ok()).collect();
        let own = self.identities.id(self.peer);
        if !live.iter().any(|candidate| candidate.peer == own) {
            live.extend(Candidate::try_from(&super::gossip::describe(self.peer, &self.identities, 1, false)));
        }
        let told = |peer: PeerId| Candidate::try_from(known.told(self.identities.machine(peer)?)?).ok();
        let avoided = self.avoided.keys().copied().collect();
        let surroundings = Surroundings { leader: status.replica, members: &members, live, avoided };
        let target = surroundings.target(status.group.0, wanted, &objective, told);
        drop(known);
        Standing { members, joint: status.joint, leader: status.replica, wanted, target }
    }

    /// Begins the next step.
    fn step(&mut self, status: &Status, around: &mut dyn Around) {
        let standing = self.standing(status, around);
        let step = match mutants::is(Mutant::NeverReplaces) {
            true => Step::Done,
            false => next_step(&standing),
        };
        if self.last.as_ref() != Some(&step) {
            around.see(Seen::Note { text: format!("group {}: {step:?}", status.group.0) });
            self.last = Some(step.clone());
        }
        let now = around.mono_ms();
        let replica = |id: u64| status.configuration.replicas.iter().find(|replica| replica.id == id).cloned();
        match step {
            Step::AddLearner(peer) => {
                let Some(peer) = self.identities.machine(peer) else { return self.idle(LOOK_MS, around) };
                let learner = self.identities.replica(0, peer);
                self.request(Doing::Add, move |ticket| Input::AddLearner(ticket, learner), around);
            }
            Step::Create(id) => {
                let holder = replica(id).and_then(|replica| self.identities.holder(&replica));
                let seed = around.replica().map(|here| Seed { replica: id, ..here.seed() });
                let (Some(peer), Some(seed)) = (holder, seed) else { return self.idle(LOOK_MS, around) };
                let token = self.token();
                around.ask(token, peer, Ask::Create(seed));
                self.phase = Phase::Step(token, Doing::Create, now + CHANGE_MS);
                self.timer.wake_at(now + CHANGE_MS, around);
            }
            Step::Change { promote, remove } => {
                let gone = remove.iter().copied().filter_map(replica).collect();
                let set = ChangeSet { promote, remove };
                self.request(Doing::Change(gone), move |ticket| Input::Change(ticket, set), around);
            }
            Step::RemoveLearner(id) => {
                let Some(gone) = replica(id) else { return self.idle(LOOK_MS, around) };
                let avoid = standing.members.iter().any(|m| m.id == id && m.condition == Condition::Gone);
                let set = ChangeSet { promote: Vec::new(), remove: vec![id] };
                self.request(Doing::GiveUp(gone, avoid), move |ticket| Input::Change(ticket, set), around);
            }
            Step::Transfer(to) => self.hand_over(to, now + HAND_OVER_MS, around),
            Step::Wait(_) => self.idle(LOOK_MS, around),
            Step::Done => {
                self.rested = Some(((status.configuration.index, status.spec.version), now));
                self.idle(LOOK_MS, around);
            }
        }
    }

    fn request(
        &mut self,
        doing: Doing,
        make: impl FnOnce(canal_consensus::core::group::Ticket) -> Input + 'static,
        around: &mut dyn Around,
    ) {
        let token = self.token();
        let until = around.mono_ms() + CHANGE_MS;
        self.phase = Phase::Step(token, doing, until);
        self.timer.wake_at(until, around);
        if let Some(here) = around.replica() {
            here.request(token, Box::new(make));
        }
    }

    fn hand_over(&mut self, to: u64, until: u64, around: &mut dyn Around) {
        let again = (around.mono_ms() + LOOK_MS).min(until);
        if let Some(here) = around.replica() {
            here.input(Input::Transfer(to));
        }
        self.phase = Phase::HandOver(to, again, until);
        self.timer.wake_at(again, around);
    }

    fn done(&mut self, doing: Doing, around: &mut dyn Around) {
        match doing {
            Doing::Add | Doing::Create => self.idle(GO_ON_MS, around),
            Doing::Change(gone) => {
                self.phase = Phase::Settling(gone, around.mono_ms() + CHANGE_MS);
                self.wake(around);
            }
            Doing::GiveUp(gone, avoid) => {
                if let (true, Ok(peer)) = (avoid, gone.peer_id()) {
                    self.avoided.insert(peer, around.mono_ms());
                }
                self.tell(&gone, around);
                self.idle(GO_ON_MS, around);
            }
        }
    }

    /// Tells a replica that it was let go, until its peer says that it is.
    fn tell(&mut self, replica: &Replica, around: &mut dyn Around) {
        let Some(peer) = self.identities.holder(replica).filter(|peer| *peer != self.peer) else { return };
        if self.tellings.len() < MAX_TOLD {
            let token = self.token();
            let at = around.mono_ms();
            self.tellings.insert(token, Telling { id: replica.id, peer, left: TELLINGS, at, asked: false });
            self.tell_all(around);
        }
    }

    fn tell_all(&mut self, around: &mut dyn Around) {
        let now = around.mono_ms();
        let Some(group) = around.replica().map(|here| here.status().group) else { return };
        let mut next = u64::MAX;
        for (token, telling) in self.tellings.iter_mut().filter(|(_, telling)| !telling.asked) {
            if telling.at <= now {
                telling.asked = true;
                around.ask(*token, telling.peer, Ask::Remove(group, telling.id));
            } else {
                next = next.min(telling.at);
            }
        }
        if next < u64::MAX {
            self.timer.wake_at(next, around);
        }
    }

    fn told(&mut self, token: Token, done: bool, around: &mut dyn Around) -> bool {
        let Some(telling) = self.tellings.get_mut(&token) else { return false };
        telling.left = telling.left.saturating_sub(1);
        telling.at = around.mono_ms() + TELL_MS;
        telling.asked = false;
        if done || telling.left == 0 {
            self.tellings.remove(&token);
        }
        self.tell_all(around);
        true
    }
}

/// Whether a replica is known to have existed. A group's first replicas are there from the beginning of a run.
fn existed(status: &Status, id: u64) -> bool {
    // a learner that nobody has created is created; a voter was a learner that had the log
    status.progress.get(&id).is_some_and(|progress| progress.matched > 0)
        || !status.configuration.learners.contains(&id)
}

impl Actor for Room {
    fn wake(&mut self, around: &mut dyn Around) {
        let now = around.mono_ms();
        if !self.tellings.is_empty() {
            self.tell_all(around);
        }
        let waits = match &self.phase {
            Phase::Idle => self.at,
            Phase::Probing(_) => u64::MAX,
            Phase::Step(_, _, until) => *until,
            Phase::Settling(..) => 0,
            Phase::HandOver(_, again, _) => *again,
        };
        if now < waits {
            if waits < u64::MAX {
                self.timer.wake_at(waits, around);
            }
            return;
        }
        let Some(status) = around.replica().map(|here| here.status()) else { return };
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Idle => self.look(&status, around),
            // whoever asked does not wait any longer; it may yet come about
            Phase::Probing(_) | Phase::Step(..) => self.idle(LOOK_MS, around),
            Phase::Settling(gone, until) if status.joint && now < until => {
                self.phase = Phase::Settling(gone, until);
                self.timer.wake_at(until, around);
            }
            Phase::Settling(gone, _) => {
                if status.joint {
                    return self.idle(LOOK_MS, around);
                }
                for replica in &gone {
                    self.tell(replica, around);
                }
                self.idle(GO_ON_MS, around);
            }
            Phase::HandOver(to, _, until) if status.leads && now < until => self.hand_over(to, until, around),
            Phase::HandOver(..) => self.idle(GO_ON_MS, around),
        }
    }

    fn answered(&mut self, token: Token, answer: Result<Answer, Failed>, around: &mut dyn Around) {
        if self.told(token, matches!(answer, Ok(Answer::Yes) | Err(Failed::NotHere)), around) {
            return;
        }
        if let Some(id) = self.probes.remove(&token) {
            if matches!(answer, Ok(Answer::No) | Err(Failed::NotHere)) {
                around.see(Seen::Note { text: format!("replica {id} is lost: its peer does not hold it") });
                self.lost.insert(id);
            }
            if let Phase::Probing(waiting) = &mut self.phase {
                *waiting = waiting.saturating_sub(1);
                if *waiting == 0 {
                    let Some(status) = around.replica().map(|here| here.status()) else { return };
                    self.step(&status, around);
                }
            }
            return;
        }
        if matches!(&self.phase, Phase::Step(asked, Doing::Create, _) if *asked == token) {
            let wait = if matches!(answer, Ok(Answer::Yes)) { GO_ON_MS } else { LOOK_MS };
            self.idle(wait, around);
        }
    }

    fn proposed(&mut self, token: Token, reply: Result<Reply, Refused>, around: &mut dyn Around) {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Step(asked, doing, _) if asked == token => match reply {
                Ok(_) => self.done(doing, around),
                Err(_) => self.idle(LOOK_MS, around),
            },
            other => self.phase = other,
        }
    }

    fn describe(&self) -> String {
        let phase = match &self.phase {
            Phase::Idle => "idle",
            Phase::Probing(_) => "probing",
            Phase::Step(..) => "in a step",
            Phase::Settling(..) => "settling",
            Phase::HandOver(..) => "handing over",
        };
        format!("membership on peer {}: {phase}; last step {:?}; lost {:?}", self.peer, self.last, self.lost)
    }
}

#[cfg(test)]
mod tests;
