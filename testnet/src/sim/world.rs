//! Everything that there is in a run, and the loop in which it happens.
//!
//! One event after the other is taken from a queue in the order of simulated time. What actors are told because of it waits
//! until the event is done with, so nothing changes under anybody's hands.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{Index, IndexMut};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use canal_consensus::core::kv::KvError;
use canal_consensus::{Refused, Reply, dump, files, view};
use canal_proto::event::Stored;
use canal_proto::log::Segment;
use canal_proto::peer::{RaftMessage, Seed};
use canal_proto::{ContentHash, GroupId};
use raft::eraftpb::Entry;

use super::around::{Actor, Answer, Ask, Failed, Machine, Token};
use super::dht::{Dht, Identities, Net};
use super::disk::Disk;
use super::disk::files::Unreadable;
use super::faults::Kind;
use super::network::{Cut, Network};
use super::peer::history::Job;
use super::peer::{AskId, Clock, Member, Peer, Stage};
use super::queue::{Micros, Queue};
use super::rng::Rng;
use super::rooms::spec::Catalog;
use super::seen::{Invariant, Seen};
use super::setup::Setup;
use super::trace::Trace;
use super::{Failure, Outcome, Tally};

mod looks;
mod stage;
mod trouble;
mod well;

/// Names an actor.
pub type ActorId = usize;

/// How long an answer is waited for.
const PATIENCE: Micros = 1_000_000;
/// A simulated second.
const SECOND: Micros = 1_000_000;
/// Clients that there are at most; each has a machine.
const MAX_CLIENTS: usize = 64;

/// Something that happens.
pub enum Event {
    /// A peer's clock ticks.
    Tick { peer: Machine, start: u64 },
    /// The write of a peer's turn is synced.
    Synced { peer: Machine, start: u64 },
    /// The time that a piece of work takes is over.
    Job { peer: Machine, start: u64, job: Box<Job> },
    /// A Raft message arrives.
    Message { from: Machine, to: Machine, group: GroupId, message: Box<RaftMessage> },
    /// A question arrives.
    Ask { ask: AskId, to: Machine, question: Box<Ask> },
    /// An answer arrives, or has not come in time.
    Answer { ask: AskId, answer: Box<Result<Answer, Failed>> },
    /// A peer is asked for a file.
    Fetch { from: Machine, start: u64, to: Machine, number: u64, asked: u64, hash: ContentHash },
    /// A file arrives; none when it has not come in time.
    Fetched { to: Machine, start: u64, number: u64, asked: u64, bytes: Option<Bytes> },
    /// An actor wanted to be woken.
    Wake(ActorId),
    /// Something goes wrong, or is right again.
    Trouble(trouble::Trouble),
    /// A second has passed.
    Second,
}

/// What an actor is told when the event is over.
pub enum Call {
    /// Its time has come.
    Wake(ActorId),
    /// What became of a question.
    Answered(ActorId, Token, Box<Result<Answer, Failed>>),
    /// What became of a proposal.
    Proposed(ActorId, Token, Box<Result<Reply, Refused>>),
}

/// All peers, by number.
pub struct Peers(Vec<Peer>);

#[expect(clippy::indexing_slicing, reason = "the numbers of peers are made here, and no peer ever goes")]
impl Index<Machine> for Peers {
    type Output = Peer;

    fn index(&self, peer: Machine) -> &Peer {
        &self.0[peer]
    }
}

#[expect(clippy::indexing_slicing, reason = "the numbers of peers are made here, and no peer ever goes")]
impl IndexMut<Machine> for Peers {
    fn index_mut(&mut self, peer: Machine) -> &mut Peer {
        &mut self.0[peer]
    }
}

impl Peers {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Machine, &Peer)> {
        self.0.iter().enumerate()
    }
}

/// What lies on a peer's disk beside rows, for the code that reads events and snapshots.
pub struct PeerContent<'a>(pub &'a Disk);

fn unreadable(hash: ContentHash, why: Unreadable) -> files::Error {
    match why {
        Unreadable::Missing => files::Error::Missing(hash),
        Unreadable::Damaged => files::Error::Damaged { hash, reason: "a bit has flipped" },
    }
}

impl view::Content for PeerContent<'_> {
    fn entry(&self, group: GroupId, index: u64) -> Result<Option<Entry>, view::Error> {
        Ok(self.0.log.entry(group, index)?)
    }

    fn contains(&self, hash: &ContentHash) -> bool {
        self.0.files.contains(hash)
    }

    fn segment(&self, segment: &Segment, from: u64, max: usize, bytes: usize) -> Result<Vec<Stored>, files::Error> {
        let hash =
            ContentHash::from_slice(&segment.hash).map_err(|_| files::Error::Unfit("its hash has not 32 bytes"))?;
        let file = self.0.files.read(&hash).map_err(|why| unreadable(hash, why))?;
        files::events_in(&file, segment, from, max, bytes).map_err(|reason| files::Error::Damaged { hash, reason })
    }
}

impl dump::Whole for PeerContent<'_> {
    fn contains(&self, hash: &ContentHash) -> bool {
        self.0.files.contains(hash)
    }

    fn whole(&self, hash: &ContentHash) -> Result<Option<Bytes>, files::Error> {
        match self.0.files.read(hash) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Unreadable::Missing) => Ok(None),
            Err(why) => Err(unreadable(*hash, why)),
        }
    }
}

/// What lookups need of the network.
pub struct NetView<'a> {
    pub(super) network: &'a Network,
    pub(super) peers: &'a Peers,
    pub(super) now: Micros,
}

impl Net for NetView<'_> {
    fn reaches(&self, from: Machine, to: Machine) -> bool {
        let goes = |peer: Machine| self.peers[peer].live.is_some() && self.peers[peer].paused_until <= self.now;
        goes(from) && goes(to) && self.network.reaches(from, to) && self.network.reaches(to, from)
    }

    fn now_ms(&self, peer: Machine) -> u64 {
        self.peers[peer].clock.now_ms(self.now)
    }
}

/// An actor and what it has.
struct Slot {
    actor: Option<Box<dyn Actor>>,
    rng: Rng,
    name: &'static str,
    machine: Machine,
    group: Option<GroupId>,
}

/// A question that waits for its answer.
struct Asked {
    actor: ActorId,
    token: Token,
    from: Machine,
}

/// Everything.
pub struct World {
    pub(super) setup: Setup,
    pub(super) rng: Rng,
    pub(super) disk_rng: Rng,
    trouble_rng: Rng,
    pub(super) now: Micros,
    epoch: Instant,
    pub(super) queue: Queue<Event>,
    pub(super) network: Network,
    pub(super) peers: Peers,
    joined: usize,
    clocks: Vec<Clock>,
    pub(super) identities: Rc<Identities>,
    pub(super) catalog: Rc<Catalog>,
    pub(super) dht: Dht,
    actors: BTreeMap<ActorId, Slot>,
    next_actor: ActorId,
    asks: BTreeMap<AskId, Asked>,
    next_ask: AskId,
    pub(super) calls: VecDeque<Call>,
    invariants: Vec<Box<dyn Invariant>>,
    failure: Option<Failure>,
    pub(super) tally: Tally,
    pub(super) trace: Trace,
    pub(super) logger: slog::Logger,
    /// Things go wrong at the moment.
    pub(super) faulty: bool,
    healed: bool,
    healed_at: Micros,
    pub(super) slow_disks: BTreeSet<Machine>,
    robbed: BTreeMap<GroupId, BTreeMap<u64, u64>>,
    cuts: u64,
    left: usize,
}

impl World {
    /// A world in which nothing has happened yet.
    pub fn new(setup: Setup) -> Self {
        let rng = Rng::new(setup.seed);
        let machines = setup.most_peers + MAX_CLIENTS;
        let identities = Rc::new(Identities::new(setup.most_peers));
        let catalog = Rc::new(Catalog::new(&setup.groups));
        let network = Network::new(machines, &setup.faults, rng.fork(10));
        let skew = setup.faults.strength(Kind::Skew);
        let mut clocks_rng = rng.fork(11);
        let clock = |_| {
            if skew == 0 {
                return Clock::default();
            }
            let signed = |rng: &mut Rng, most: u64| {
                let drawn = i64::try_from(rng.below(2 * most + 1)).unwrap_or_default();
                drawn - i64::try_from(most).unwrap_or_default()
            };
            Clock { ahead_ms: signed(&mut clocks_rng, skew), fast_ppm: signed(&mut clocks_rng, 2000) }
        };
        let clocks: Vec<Clock> = (0..machines).map(clock).collect();
        let peer = |peer: Machine| Peer {
            id: identities.id(peer),
            disk: Disk::default(),
            clock: clocks.get(peer).copied().unwrap_or_default(),
            stage: Stage::Absent,
            start: 0,
            paused_until: 0,
            live: None,
        };
        let peers = Peers((0..setup.most_peers).map(peer).collect());
        Self {
            disk_rng: rng.fork(12),
            trouble_rng: rng.fork(13),
            now: 0,
            epoch: Instant::now(),
            queue: Queue::default(),
            network,
            peers,
            joined: setup.peers,
            clocks,
            dht: Dht::new(identities.clone(), catalog.clone()),
            identities,
            catalog,
            actors: BTreeMap::new(),
            next_actor: 0,
            asks: BTreeMap::new(),
            next_ask: 0,
            calls: VecDeque::new(),
            invariants: super::invariants::asked(setup.asked),
            failure: None,
            tally: Tally::default(),
            trace: Trace::new(setup.trace),
            logger: slog::Logger::root(slog::Discard, slog::o!()),
            faulty: false,
            healed: false,
            healed_at: 0,
            slow_disks: BTreeSet::new(),
            robbed: BTreeMap::new(),
            cuts: 0,
            left: 0,
            rng,
            setup,
        }
    }

    /// Lets all of it happen.
    pub fn run(mut self) -> Outcome {
        self.trace.tell(0, || {
            let groups: Vec<String> = self
                .setup
                .groups
                .iter()
                .map(|plan| format!("{} ({}) on {:?}, wants {}", plan.id, plan.name, plan.first, plan.wish.replicas))
                .collect();
            format!(
                "{} peers; groups {}; goes wrong for {} s: {}",
                self.setup.peers,
                groups.join("; "),
                self.setup.fault_ms / 1000,
                self.setup.faults.describe()
            )
        });
        self.begin();
        while self.failure.is_none() && !self.is_over() {
            let Some((at, event)) = self.queue.pop() else { break };
            self.now = at;
            self.happen(event);
            while let Some(call) = self.calls.pop_front() {
                self.call(call);
            }
        }
        self.outcome()
    }

    fn begin(&mut self) {
        for peer in 0..self.joined {
            self.start(peer);
        }
        let plans = self.setup.groups.clone();
        for plan in plans {
            let first: Vec<_> = (1..).zip(&plan.first).map(|(id, peer)| self.identities.replica(id, *peer)).collect();
            // the first of them stands for election at once, so it comes last
            for replica in first.iter().rev() {
                let seed = Seed {
                    group: plan.id.0,
                    name: plan.name.clone(),
                    namespace: super::dht::NAMESPACE.to_owned(),
                    first: first.clone(),
                    replica: replica.id,
                    mesh: super::setup::MESH.to_vec(),
                };
                if let Some(peer) = self.identities.holder(replica) {
                    match self.create(peer, seed) {
                        Ok(_) => self.turn(peer),
                        Err(error) => self.store_failed(peer, &error),
                    }
                }
            }
        }
        let clients = super::actors::make(&self.setup, &mut self.rng.fork(14));
        for (client, machine) in clients.into_iter().take(MAX_CLIENTS).zip(self.setup.most_peers..) {
            self.hire("client", client, machine, None);
        }
        self.faulty = true;
        self.queue.push(SECOND, Event::Second);
        self.plan_trouble();
        self.queue.push(self.setup.fault_ms * 1000, Event::Trouble(trouble::Trouble::Heal));
    }

    fn happen(&mut self, event: Event) {
        if let Some(until) = self.paused(&event) {
            return self.queue.push(until, event);
        }
        match event {
            Event::Tick { peer, start } => {
                if self.is(peer, start) {
                    let lasts = self.peers[peer].clock.lasts(super::peer::TICK);
                    self.queue.push(self.now + lasts, Event::Tick { peer, start });
                    self.arrive(peer, super::peer::Inbound::Tick);
                }
            }
            Event::Synced { peer, start } => {
                if self.is(peer, start) {
                    self.turn_synced(peer);
                }
            }
            Event::Job { peer, start, job } => {
                if self.is(peer, start) {
                    match self.work(peer, *job) {
                        Ok(()) => self.turn(peer),
                        Err(error) => self.store_failed(peer, &error),
                    }
                }
            }
            Event::Message { from, to, group, message } => {
                if self.peers[to].live.is_some() && self.network.reaches(from, to) {
                    self.note_message(from, to, group, &message);
                    self.arrive(to, super::peer::Inbound::Message(from, group, message));
                }
            }
            Event::Ask { ask, to, question } => {
                if self.peers[to].live.is_some() {
                    self.trace.note(&[self.now, to as u64, ask]);
                    self.arrive(to, super::peer::Inbound::Ask(ask, question));
                }
            }
            Event::Answer { ask, answer } => {
                if let Some(Asked { actor, token, .. }) = self.asks.remove(&ask) {
                    self.trace.note(&[self.now, ask, actor as u64, u64::from(answer.is_ok())]);
                    self.calls.push_back(Call::Answered(actor, token, answer));
                }
            }
            Event::Fetch { from, start, to, number, asked, hash } => {
                self.fetch_asked(from, start, to, number, asked, hash);
            }
            Event::Fetched { to, start, number, asked, bytes } => {
                if self.is(to, start) {
                    self.trace.note(&[self.now, to as u64, number, asked, u64::from(bytes.is_some())]);
                    self.fetch_answered(to, number, asked, bytes);
                }
            }
            Event::Wake(actor) => self.calls.push_back(Call::Wake(actor)),
            Event::Trouble(trouble) => self.trouble(trouble),
            Event::Second => {
                self.queue.push(self.now + SECOND, Event::Second);
                self.look_around();
            }
        }
    }

    fn is(&self, peer: Machine, start: u64) -> bool {
        self.peers[peer].start == start && self.peers[peer].live.is_some()
    }

    /// Until when the process stands still that an event is for.
    fn paused(&self, event: &Event) -> Option<Micros> {
        let machine = match event {
            Event::Tick { peer, .. } | Event::Synced { peer, .. } | Event::Job { peer, .. } => *peer,
            Event::Message { to, .. } | Event::Ask { to, .. } | Event::Fetch { to, .. } | Event::Fetched { to, .. } => {
                *to
            }
            Event::Answer { ask, .. } => self.asks.get(ask)?.from,
            Event::Wake(actor) => self.actors.get(actor)?.machine,
            Event::Trouble(_) | Event::Second => return None,
        };
        if machine >= self.peers.len() {
            return None;
        }
        let until = self.peers[machine].paused_until;
        (until > self.now).then_some(until)
    }

    fn arrive(&mut self, peer: Machine, inbound: super::peer::Inbound) {
        if let Some(live) = self.peers[peer].live.as_mut() {
            live.inbox.push_back(inbound);
            self.turn(peer);
        }
    }

    fn note_message(&mut self, from: Machine, to: Machine, group: GroupId, message: &RaftMessage) {
        self.trace.note(&[
            self.now,
            (from as u64) << 32 | to as u64,
            group.0,
            u64::from(message.msg_type.unsigned_abs()),
            message.term,
            message.index,
            message.commit,
            message.entries.len() as u64,
        ]);
    }

    /// A replica that runs.
    pub(super) fn member(&mut self, peer: Machine, group: GroupId) -> Option<&mut Member> {
        self.peers[peer].live.as_mut()?.members.get_mut(&group)
    }

    /// What the clock of a peer shows.
    pub(super) fn now_ms(&self, peer: Machine) -> u64 {
        self.peers[peer].clock.now_ms(self.now)
    }

    /// Simulated time for code that counts in instants. Only differences of it matter.
    pub(super) fn instant(&self) -> Instant {
        self.epoch + Duration::from_micros(self.now)
    }

    /// Sends an answer back to who asked.
    pub(super) fn answer(&mut self, peer: Machine, ask: AskId, answer: Result<Answer, Failed>) {
        let Some(asked) = self.asks.get(&ask) else { return };
        let arrivals = self.network.send(peer, asked.from, self.now);
        let answer = Box::new(answer);
        // the second copy of an answer finds nobody who waits
        if let Some(at) = arrivals.into_iter().flatten().min() {
            self.queue.push(at, Event::Answer { ask, answer });
        }
    }

    /// A store or a core failed where no fault explains it.
    pub(super) fn store_failed(&mut self, peer: Machine, error: &KvError) {
        if self.peers[peer].disk.log.damaged().is_empty() {
            return self.fail("the cores and their stores", format!("peer {peer}: {error}"));
        }
        self.tally.count("damaged log found");
        self.see(Seen::Note { text: format!("peer {peer} stops: {error}") });
        self.die(peer);
        self.restart_later(peer);
    }

    /// A segment that was made from a replica's log is not the one that the group agreed on.
    pub(super) fn differs(&mut self, peer: Machine, group: GroupId, own: &Segment, agreed: &Segment) {
        let text = format!("made the segment {own:?} where the group has {agreed:?}");
        self.see(Seen::Contradiction { peer, group, text });
    }

    fn fail(&mut self, invariant: &'static str, text: String) {
        if self.failure.is_none() {
            self.trace.tell(self.now, || format!("FAILED: {invariant}: {text}"));
            self.failure = Some(Failure { invariant, text, at_ms: self.now / 1000 });
        }
    }

    /// Tells the invariants, and the trace.
    pub(super) fn see(&mut self, seen: Seen) {
        self.tally.see(&seen);
        self.tell_story(&seen);
        let mut invariants = std::mem::take(&mut self.invariants);
        for invariant in &mut invariants {
            if let Err(text) = invariant.see(&seen, self) {
                self.fail(invariant.name(), text);
                break;
            }
        }
        self.invariants = invariants;
    }

    fn look_around(&mut self) {
        let mut invariants = std::mem::take(&mut self.invariants);
        for invariant in &mut invariants {
            if let Err(text) = invariant.look(self) {
                self.fail(invariant.name(), text);
                break;
            }
        }
        self.invariants = invariants;
    }

    fn is_over(&mut self) -> bool {
        if !self.healed || self.now < self.healed_at {
            return false;
        }
        // it is looked at four times a second
        self.healed_at = self.now + SECOND / 4;
        let text = match self.is_well() {
            Ok(()) => {
                self.trace.tell(self.now, || "all is well".to_owned());
                return true;
            }
            Err(text) => text,
        };
        if self.now > (self.setup.fault_ms + self.setup.heal_ms) * 1000 {
            if self.setup.asked.is_some() {
                // it is for the invariant that is asked to say what is wrong
                return true;
            }
            let within = self.setup.heal_ms / 1000;
            let text = format!("{within} s after the last fault, {text}; {}", self.describe());
            self.fail("it serves again", text);
        }
        false
    }

    fn outcome(mut self) -> Outcome {
        if self.failure.is_none() {
            let mut invariants = std::mem::take(&mut self.invariants);
            for invariant in &mut invariants {
                if let Err(text) = invariant.end(&self) {
                    self.fail(invariant.name(), text);
                    break;
                }
            }
        }
        self.trace.note(&[self.now, self.tally.acks, self.tally.elections]);
        Outcome {
            seed: self.setup.seed,
            trace: self.trace.hash(),
            simulated_ms: self.now / 1000,
            tally: self.tally,
            failure: self.failure,
        }
    }

    fn cut(&mut self, from: Vec<Machine>, to: Vec<Machine>, both: bool) -> u64 {
        self.cuts += 1;
        self.network.cut(Cut { number: self.cuts, from, to, both });
        self.cuts
    }
}
