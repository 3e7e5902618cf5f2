//! Peers, the network between them, and what goes wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use canal_proto::peer::{RaftMessage, Replica, Seed};
use canal_proto::{Code, GroupId, PeerId, TopicId, WireError};
use prost::Message as _;
use raft::eraftpb::{Message, MessageType};

use super::client::{Client, TOPIC};
use super::disk::Write;
use super::node::{Node, Step, common};
use super::oracle::{Check, Oracle, events_at};
use super::rng::Rng;
use super::{Sabotage, Setup};
use crate::convert;
use crate::core::group::{Group, Input, Output, Refused, Status, Ticket, Ticks};
use crate::core::keys::{Keys, Table, tail_number};
use crate::core::kv::{Kv as _, WriteBatch};
use crate::core::machine::Reply;
use crate::core::rows::{Configuration, Locator, Topic};

pub(super) const GROUP: GroupId = GroupId(1);
pub(super) const TICKS: Ticks = Ticks { election: 10, heartbeat: 2 };
const CLIENTS: usize = 4;
/// Events a client publishes while things go wrong.
const GOAL: u64 = 40;
/// Turns that a peer may take in one tick.
const TURNS: usize = 4;

/// Who waits for an answer.
pub(super) enum Asker {
    Append { client: usize, first: u64, count: u64 },
    Read { floor: u64 },
    Spec,
    Change,
}

/// Ticks between two looks at whole logs.
const LOOK: u64 = 64;

/// What is going wrong, each in a thousand.
pub(super) struct Faults {
    loss: u64,
    duplicate: u64,
    delay: u64,
    crash: u64,
    crash_in_turn: u64,
    crash_after_change: u64,
    partition: u64,
    transfer: u64,
    flush: u64,
    /// A log is cut.
    compact: u64,
    /// Ticks that making, fetching and each step of installing a snapshot may take.
    fill: u64,
    /// A snapshot can't be made or fetched.
    fail: u64,
    /// A peer crashes in a step of an installation.
    crash_in_install: u64,
    /// A crash takes all of a peer's disk.
    empty: u64,
    /// A crash takes a peer's rows.
    lose_state: u64,
    /// Other peers should hold the replicas.
    pub(super) desire: u64,
}

impl Faults {
    fn draw(rng: &mut Rng) -> Self {
        Self {
            loss: [0, 20, 150][rng.below(3) as usize],
            duplicate: [0, 50][rng.below(2) as usize],
            delay: [1, 3, 12][rng.below(3) as usize],
            crash: [0, 4, 12][rng.below(3) as usize],
            crash_in_turn: [0, 2, 10][rng.below(3) as usize],
            crash_after_change: [0, 300][rng.below(2) as usize],
            partition: [0, 8, 20][rng.below(3) as usize],
            transfer: [0, 10][rng.below(2) as usize],
            flush: [0, 20, 200][rng.below(3) as usize],
            compact: [0, 20, 100][rng.below(3) as usize],
            fill: [1, 5, 40][rng.below(3) as usize],
            fail: [0, 200][rng.below(2) as usize],
            crash_in_install: [0, 150][rng.below(2) as usize],
            empty: [0, 400][rng.below(2) as usize],
            lose_state: [0, 900][rng.below(2) as usize],
            desire: [0, 10][rng.below(2) as usize],
        }
    }

    fn none() -> Self {
        Self {
            loss: 0,
            duplicate: 0,
            delay: 1,
            crash: 0,
            crash_in_turn: 0,
            crash_after_change: 0,
            partition: 0,
            transfer: 0,
            flush: 50,
            compact: 20,
            fill: 3,
            fail: 0,
            crash_in_install: 0,
            empty: 0,
            lose_state: 0,
            desire: 0,
        }
    }
}

/// How often something happened that a run is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Tally {
    pub(super) asked: u64,
    pub(super) installed: u64,
    pub(super) cut_short: u64,
    pub(super) cuts: u64,
    pub(super) emptied: u64,
    pub(super) hollow: u64,
    pub(super) joint: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.asked += other.asked;
        self.installed += other.installed;
        self.cut_short += other.cut_short;
        self.cuts += other.cuts;
        self.emptied += other.emptied;
        self.hollow += other.hollow;
        self.joint += other.joint;
    }
}

/// All of it.
pub(super) struct World {
    pub(super) setup: Setup,
    pub(super) rng: Rng,
    now: u64,
    pub(super) faults: Faults,
    pub(super) nodes: Vec<Node>,
    /// The peers that should hold replicas.
    pub(super) desired: Vec<usize>,
    network: BTreeMap<(u64, u64), (usize, usize, Vec<u8>)>,
    sent: u64,
    side: Vec<bool>,
    partition_until: u64,
    clients: Vec<Client>,
    askers: BTreeMap<Ticket, Asker>,
    tickets: Ticket,
    /// Replicas whose disks were emptied.
    lost: BTreeSet<u64>,
    tally: Tally,
    pub(super) has_spec: bool,
    /// Learners are all added before the first is promoted.
    pub(super) all_at_once: bool,
    pub(super) oracle: Oracle,
    trace: DefaultHasher,
    logger: slog::Logger,
}

pub(super) fn replica_of(peer: usize, id: u64) -> Replica {
    Replica { id, peer: vec![u8::try_from(peer).unwrap(); 32], addresses: Vec::new() }
}

pub(super) fn peer_of(replica: &Replica) -> usize {
    usize::from(replica.peer[0])
}

impl World {
    pub(super) fn new(seed: u64, setup: Setup) -> Result<Self, String> {
        let mut rng = Rng::new(seed);
        let faults = Faults::draw(&mut rng);
        let all_at_once = rng.chance(500);
        let first: Vec<Replica> = (0..setup.first).map(|peer| replica_of(peer, peer as u64 + 1)).collect();
        let mut world = Self {
            setup,
            rng,
            now: 0,
            faults,
            nodes: (0..setup.peers).map(|_| Node::default()).collect(),
            desired: (0..setup.peers).collect(),
            network: BTreeMap::new(),
            sent: 0,
            side: vec![false; setup.peers],
            partition_until: 0,
            clients: (0..CLIENTS).map(|id| Client::new(id, GOAL)).collect(),
            askers: BTreeMap::new(),
            tickets: 0,
            lost: BTreeSet::new(),
            tally: Tally::default(),
            has_spec: false,
            all_at_once,
            oracle: Oracle::default(),
            trace: DefaultHasher::new(),
            logger: slog::Logger::root(slog::Discard, slog::o!()),
        };
        world.desire();
        for peer in 0..setup.first {
            world.create(peer, first.clone(), peer as u64 + 1)?;
        }
        Ok(world)
    }

    pub(super) fn create(&mut self, peer: usize, first: Vec<Replica>, replica: u64) -> Check {
        let seed = Seed { group: GROUP.0, first, replica, mesh: vec![9; 16], ..Seed::default() };
        self.nodes[peer].seed = Some(seed);
        self.open(peer)
    }

    fn open(&mut self, peer: usize) -> Check {
        self.nodes[peer].open(self.setup, self.now, &self.logger)?;
        self.tally.hollow += u64::from(self.status(peer).is_some_and(|status| status.hollow));
        Ok(())
    }

    fn crash(&mut self, peer: usize) {
        (self.now, peer, "crash").hash(&mut self.trace);
        let may_lose = self.may_lose(peer);
        let node = &mut self.nodes[peer];
        node.crash(&mut self.rng);
        node.restart_at = self.now + 1 + self.rng.below(60);
        if may_lose && self.rng.chance(self.faults.empty) {
            let seed = node.seed.clone();
            node.remove();
            self.tally.emptied += 1;
            self.lost.insert(seed.as_ref().map_or(0, |seed| seed.replica));
            if self.setup.sabotage == Sabotage::SameIdAgain {
                node.gone = 0;
                node.seed = seed;
            }
        } else if may_lose && self.rng.chance(self.faults.lose_state) {
            node.state.damage(&[]);
            node.state.flush();
        }
    }

    /// Whether the group can do without what is on a peer's disk: Raft bears a minority of voters that are gone.
    fn may_lose(&self, peer: usize) -> bool {
        let configurations: Vec<Configuration> =
            (0..self.nodes.len()).filter_map(|peer| self.status(peer)).map(|s| (*s.configuration).clone()).collect();
        let Some(newest) = configurations.iter().max_by_key(|configuration| configuration.index) else { return false };
        let held = configurations.iter().all(|configuration| configuration == newest) && newest.voters.len() >= 3;
        let whole = |replica: &Replica| {
            let node = &self.nodes[peer_of(replica)];
            peer_of(replica) != peer
                && node.group.as_ref().is_some_and(|group| {
                    let status = group.status();
                    group.seed().replica == replica.id && status.serves()
                })
        };
        let voters = newest.replicas.iter().filter(|replica| newest.voters.contains(&replica.id));
        held && newest.voters_outgoing.is_empty() && voters.filter(|r| whole(r)).count() * 2 > newest.voters.len()
    }

    pub(super) fn ask(&mut self, peer: usize, asker: Asker, make: impl FnOnce(Ticket) -> Input) {
        self.tickets += 1;
        self.askers.insert(self.tickets, asker);
        self.nodes[peer].inbox.push(make(self.tickets));
    }

    pub(super) fn status(&self, peer: usize) -> Option<Status> {
        self.nodes[peer].group.as_ref().map(Group::status)
    }

    pub(super) fn leader(&self) -> Option<Status> {
        (0..self.nodes.len()).filter_map(|peer| self.status(peer)).filter(|s| s.leads).max_by_key(|s| s.term)
    }

    fn random_peer(&mut self) -> usize {
        self.rng.below(self.nodes.len() as u64) as usize
    }

    /// One tick of everything.
    pub(super) fn step(&mut self) -> Check {
        self.now += 1;
        if self.now.is_multiple_of(LOOK) {
            self.logs_match()?;
        }
        self.go_wrong()?;
        while let Some(entry) = self.network.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (from, to, bytes) = entry.remove();
            let apart = self.now < self.partition_until && self.side[from] != self.side[to];
            if apart || self.nodes[to].group.is_none() {
                continue;
            }
            (self.now, from, to, &bytes).hash(&mut self.trace);
            let wire = RaftMessage::decode(bytes.as_slice()).map_err(|e| e.to_string())?;
            // as the worker does it: what only a broken peer would send is not taken
            if let Ok(message) = convert::from_wire(wire) {
                self.arrive(from, to, Box::new(message));
            }
        }
        self.fill()?;
        self.act();
        self.administer()?;
        for peer in 0..self.nodes.len() {
            if self.rng.chance(950) {
                self.nodes[peer].inbox.push(Input::Tick);
            }
            for _ in 0..TURNS {
                self.turn(peer)?;
                if !self.nodes[peer].group.as_ref().is_some_and(Group::has_work) {
                    break;
                }
            }
            if self.rng.chance(self.faults.flush) {
                self.nodes[peer].state.flush();
            }
        }
        Ok(())
    }

    fn arrive(&mut self, from: usize, to: usize, message: Box<Message>) {
        let node = &mut self.nodes[to];
        let Some(group) = &node.group else { return };
        if group.seed().replica != message.to {
            return;
        }
        let index = message.get_snapshot().get_metadata().index;
        if message.msg_type == MessageType::MsgSnapshot && group.needs_snapshot(index) {
            // its pieces come first; a later one takes the place of an earlier
            node.fetching = Some((self.now + self.rng.below(self.faults.fill), from, message));
            return;
        }
        let sender = PeerId::from_public_key([u8::try_from(from).unwrap(); 32]);
        node.inbox.push(Input::Message(sender, message));
    }

    /// Snapshots are made, fetched and installed.
    fn fill(&mut self) -> Check {
        for peer in 0..self.nodes.len() {
            let (now, failing) = (self.now, self.rng.chance(self.faults.fail));
            let node = &mut self.nodes[peer];
            if let Some((_, point, data)) = node.making.take_if(|(due, ..)| *due <= now) {
                let input = if failing { Input::SnapshotFailed } else { Input::SnapshotReady(point, data) };
                node.inbox.push(input);
            }
            if let Some((_, from, message)) = node.fetching.take_if(|(due, ..)| *due <= now)
                && !failing
            {
                let sender = PeerId::from_public_key([u8::try_from(from).unwrap(); 32]);
                node.inbox.push(Input::Message(sender, message));
            }
            if let Some((_, step, install)) = node.installing.take_if(|(due, ..)| *due <= now) {
                self.install(peer, step, install)?;
            }
        }
        Ok(())
    }

    fn install(&mut self, peer: usize, step: Step, install: crate::core::group::Install) -> Check {
        let setup = self.setup;
        let node = &mut self.nodes[peer];
        let done = node.install(step, &install, setup)?;
        if self.rng.chance(self.faults.crash_in_install) {
            self.tally.cut_short += 1;
            self.crash(peer);
        } else if done {
            let Some(group) = &mut node.group else { return Err("an installation without a replica".into()) };
            group.installed(&node.state.kv).map_err(|e| e.0)?;
            node.applied = install.index;
            self.tally.installed += 1;
            let (outputs, configuration) = (group.take_outputs(), group.status().configuration);
            self.oracle.state(install.index, &common(&self.nodes[peer].state))?;
            self.emit(peer, outputs, &configuration)?;
        } else {
            let next = if step == Step::Remove { Step::Fill } else { Step::Finish };
            node.installing = Some((self.now + self.rng.below(self.faults.fill), next, install));
        }
        Ok(())
    }

    fn go_wrong(&mut self) -> Check {
        for peer in 0..self.nodes.len() {
            if self.nodes[peer].seed.is_none() {
                continue;
            }
            if self.nodes[peer].group.is_some() && self.rng.chance(self.faults.crash) {
                self.crash(peer);
            } else if self.nodes[peer].group.is_none() && self.now >= self.nodes[peer].restart_at {
                self.open(peer)?;
            }
        }
        if self.now >= self.partition_until && self.rng.chance(self.faults.partition) {
            self.partition_until = self.now + 1 + self.rng.below(80);
            self.side = (0..self.nodes.len()).map(|_| self.rng.chance(500)).collect();
        }
        if self.rng.chance(self.faults.transfer) {
            let (peer, to) = (self.random_peer(), 1 + self.rng.below(self.nodes.len() as u64));
            let input = match self.rng.below(5) {
                0 => Input::Unreachable(to),
                1 => Input::Campaign,
                2 => Input::SnapshotLost(to),
                _ => Input::Transfer(to),
            };
            self.nodes[peer].inbox.push(input);
        }
        Ok(())
    }

    /// Clients publish and read.
    fn act(&mut self) {
        for client in 0..self.clients.len() {
            if !self.rng.chance(400) {
                continue;
            }
            if self.nodes[self.clients[client].peer].seed.is_none() {
                self.clients[client].peer = self.random_peer();
            }
            let ticket = self.tickets + 1;
            let Some((item, count)) = self.clients[client].send(self.now, ticket, &mut self.rng) else { continue };
            let asker = Asker::Append { client, first: item.first_sequence, count };
            self.ask(self.clients[client].peer, asker, |ticket| Input::Append(ticket, item));
        }
        if self.rng.chance(200) {
            let (peer, floor) = (self.random_peer(), self.oracle.head);
            self.ask(peer, Asker::Read { floor }, Input::Read);
        }
    }

    pub(super) fn peer_with(&self, replica: u64) -> Option<usize> {
        let holds = |node: &Node| node.seed.as_ref().is_some_and(|seed| seed.replica == replica);
        self.nodes.iter().position(holds)
    }

    /// One turn, as the worker takes it; it may be cut short anywhere.
    fn turn(&mut self, peer: usize) -> Check {
        let now = self.now;
        let honest = self.setup.sabotage != Sabotage::LyingDisks;
        let node = &mut self.nodes[peer];
        let Some(group) = &mut node.group else {
            node.inbox.clear();
            return Ok(());
        };
        let before = group.status().configuration;
        for input in node.inbox.drain(..) {
            group.handle(input, now);
        }
        let mut write = Write::default();
        if self.rng.chance(self.faults.compact) {
            let upto = node.state.flushed_to(GROUP).saturating_sub(self.rng.below(8));
            write.compact = group.compact(upto).map_err(|e| e.0)?;
            self.tally.cuts += u64::from(write.compact.is_some());
        }
        let persist = group.prepare(now);
        let outputs = group.take_outputs();
        self.emit(peer, outputs, &before)?;
        let node = &mut self.nodes[peer];
        if let Some(persist) = persist {
            if let Some(install) = &persist.install {
                node.installing = Some((now + self.rng.below(self.faults.fill), Step::Remove, install.clone()));
            }
            write = Write { compact: write.compact, ..persist.into() };
        }
        let loose = self.setup.sabotage == Sabotage::LooseInstall && write.installing.is_some();
        if self.rng.chance(self.faults.crash_in_turn) {
            if self.rng.chance(500) {
                node.log.write(write, false);
            }
            self.crash(peer);
            return Ok(());
        }
        node.log.write(write, honest && !loose);
        let Some(group) = &mut node.group else { return Ok(()) };
        let mut batch = WriteBatch::default();
        group.persisted(&node.state.kv, &mut batch).map_err(|e| e.0)?;
        if let Some(hard_state) = group.must_persist() {
            node.log.write(Write { hard_state: Some(hard_state), sync: true, ..Write::default() }, honest);
        }
        if self.rng.chance(self.faults.crash_in_turn) {
            self.crash(peer);
            return Ok(());
        }
        let outputs = group.take_outputs();
        let status = group.status();
        if !batch.ops.is_empty() {
            node.state.write(batch);
        }
        for index in node.applied + 1..=status.applied {
            node.log.read(|log| match log.get(index) {
                Some(entry) => self.oracle.applies(entry),
                None => Err(format!("entry {index} was applied, but is not in the log")),
            })?;
        }
        if status.applied > node.applied && status.applied.is_multiple_of(8) && !status.hollow {
            self.oracle.state(status.applied, &common(&node.state))?;
        }
        node.applied = node.applied.max(status.applied);
        if status.leader == status.replica {
            self.oracle.leads(status.term, status.replica)?;
        }
        self.emit(peer, outputs, &before)?;
        self.tally.joint += u64::from(status.configuration != before && status.joint);
        if status.configuration != before && self.rng.chance(self.faults.crash_after_change) {
            self.crash(peer);
        }
        Ok(())
    }

    fn emit(&mut self, peer: usize, outputs: Vec<Output>, before: &Configuration) -> Check {
        for output in outputs {
            match output {
                Output::Send(messages) => messages.into_iter().for_each(|message| self.send(peer, message)),
                Output::Reply(ticket, reply) => {
                    let Some(asker) = self.askers.remove(&ticket) else {
                        return Err(format!("ticket {ticket} was answered twice"));
                    };
                    self.answered(peer, ticket, asker, reply, before)?;
                }
                Output::WantsSnapshot(point) => {
                    let node = &mut self.nodes[peer];
                    let data = node.freeze(self.setup);
                    node.making = Some((self.now + self.rng.below(self.faults.fill), point, data));
                    self.tally.asked += 1;
                }
                Output::Forgotten { leader, acknowledged, last } => {
                    return Err(format!(
                        "peer {peer} acknowledged entry {acknowledged} to replica {leader}, and its log ends at {last}"
                    ));
                }
                Output::Contradicted { from, index } => {
                    return Err(format!("peer {peer} and replica {from} contradict each other at entry {index}"));
                }
                Output::Effect(_) | Output::Refill { .. } => {}
            }
        }
        Ok(())
    }

    fn send(&mut self, from: usize, message: Message) {
        let Some(group) = &self.nodes[from].group else { return };
        let Some(to) = group.replica(message.to).map(peer_of) else { return };
        let bytes = convert::to_wire(message).encode_to_vec();
        let copies = if self.rng.chance(self.faults.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            if !self.rng.chance(self.faults.loss) {
                self.sent += 1;
                let due = self.now + 1 + self.rng.below(self.faults.delay);
                self.network.insert((due, self.sent), (from, to, bytes.clone()));
            }
        }
    }

    fn answered(
        &mut self,
        peer: usize,
        ticket: Ticket,
        asker: Asker,
        reply: Result<Reply, Refused>,
        before: &Configuration,
    ) -> Check {
        (self.now, peer, ticket, format!("{reply:?}")).hash(&mut self.trace);
        match (asker, reply) {
            (Asker::Append { client, first, count }, Ok(Reply::Appended(results))) => match results.as_slice() {
                [Ok(receipt)] => {
                    self.is_durable(peer, receipt.index, receipt.term, before)?;
                    self.oracle.acks(client, first, receipt.offset, u64::from(receipt.count))?;
                    self.clients[client].receipt(ticket, first, count, u64::from(receipt.count));
                }
                [Err(WireError { code, detail, .. })] => {
                    if *code == Code::SequenceGap as i32 {
                        self.oracle.gap(client, first, *detail)?;
                    } else if *code != Code::UnknownTopic as i32 {
                        return Err(format!("a good publish was refused: {results:?}"));
                    }
                    self.clients[client].refused(ticket, peer);
                }
                other => return Err(format!("one publish, {} results", other.len())),
            },
            (Asker::Append { client, .. }, Err(_)) => {
                let leader = self.status(peer).map_or(0, |status| status.leader);
                let next = if leader == 0 || self.rng.chance(300) { None } else { self.peer_with(leader) };
                let next = next.unwrap_or_else(|| self.random_peer());
                self.clients[client].refused(ticket, next);
            }
            (Asker::Read { floor }, Ok(Reply::Done)) => {
                let row = self.nodes[peer].state.kv.get(&Keys(GROUP).topic_only(Table::Topics, TopicId(TOPIC)));
                let row = row.map_err(|e| e.0)?.map(Topic::decode).transpose().map_err(|e| e.to_string())?;
                self.oracle.reads(floor, row.unwrap_or_default().next)?;
            }
            (Asker::Spec, Ok(Reply::Done)) => self.has_spec = true,
            (Asker::Change, Ok(Reply::Done)) | (Asker::Read { .. } | Asker::Spec | Asker::Change, Err(_)) => {}
            (_, Ok(other)) => return Err(format!("an answer to another question: {other:?}")),
        }
        Ok(())
    }

    /// An acknowledged entry is synced on a majority of the voters, of before or after this turn; of both majorities
    /// while a change is under way. A disk that was lost since it was synced there is borne like a crash: [`Self::may_lose`]
    /// keeps those to a minority.
    fn is_durable(&self, peer: usize, index: u64, term: u64, before: &Configuration) -> Check {
        let synced = |voter: &&u64| {
            self.lost.contains(*voter)
                || self.peer_with(**voter).is_some_and(|peer| {
                    let node = &self.nodes[peer];
                    let hollow = node.group.as_ref().is_some_and(|group| group.status().hollow);
                    let in_rows = |upto| index <= upto && (hollow || node.state.flushed_to(GROUP) >= upto);
                    node.log.read_synced(|log| match log.get(index) {
                        Some(entry) => entry.term == term,
                        None => in_rows(log.before()) && self.oracle.term(index) == Some(term),
                    })
                })
        };
        let majority = |voters: &[u64]| voters.iter().filter(synced).count() * 2 > voters.len();
        let holds = |configuration: &Configuration| {
            let outgoing = &configuration.voters_outgoing;
            majority(&configuration.voters) && (outgoing.is_empty() || majority(outgoing))
        };
        if holds(before) || self.status(peer).is_some_and(|status| holds(&status.configuration)) {
            return Ok(());
        }
        Err(format!("entry {index} of term {term} was acknowledged without a majority of {before:?} having it synced"))
    }

    /// Everything is mended; clients want a little more.
    pub(super) fn heal(&mut self) {
        self.faults = Faults::none();
        self.partition_until = 0;
        for node in &mut self.nodes {
            node.restart_at = self.now;
        }
        self.clients.iter_mut().for_each(|client| client.more(3));
        self.oracle.reads = 0;
    }

    /// Whether it serves again, and all replicas that there should be stand alike.
    pub(super) fn is_well(&self) -> bool {
        let statuses: Vec<_> = (0..self.nodes.len()).filter_map(|peer| self.status(peer).map(|s| (peer, s))).collect();
        let wanted = |(peer, s): &(usize, Status)| {
            self.desired.contains(peer)
                && s.configuration.voters.contains(&s.replica)
                && s.configuration.replicas.len() == self.setup.wanted
                && !(s.joint || s.hollow || s.installing)
        };
        self.clients.iter().all(Client::is_done)
            && self.oracle.reads > 0
            && statuses.iter().any(|(_, s)| s.leads)
            && statuses.len() == self.setup.wanted
            && statuses.iter().all(wanted)
            && statuses.windows(2).all(|pair| pair[0].1.applied == pair[1].1.applied)
    }

    /// What went wrong with getting well, for people.
    pub(super) fn describe(&self) -> String {
        let node = |peer: usize| match self.status(peer) {
            None => "down".to_owned(),
            Some(s) => format!(
                "{{id {} leader {} term {} log {}..={} applied {}/{} {:?}{}{}{} {:?}}}",
                s.replica,
                s.leader,
                s.term,
                s.first,
                s.last,
                s.applied,
                s.committed,
                (&s.configuration.voters, &s.configuration.voters_outgoing, &s.configuration.learners),
                if s.hollow { " hollow" } else { "" },
                if s.installing { " installing" } else { "" },
                if s.forgotten { " forgotten" } else { "" },
                s.progress,
            ),
        };
        let nodes: Vec<_> = (0..self.nodes.len()).map(node).collect();
        format!("{}; desired {:?}, clients {:?}", nodes.join(" "), self.desired, self.clients)
    }

    /// Log matching: where two logs have an entry of one term at one index, they have the same entries up to there.
    fn logs_match(&self) -> Check {
        let logs: Vec<_> = self.nodes.iter().filter(|node| node.seed.is_some()).map(|node| &node.log).collect();
        for (at, one) in logs.iter().enumerate() {
            for other in &logs[at + 1..] {
                one.read(|one| other.read(|other| self.oracle.logs_match(one, other)))?;
            }
        }
        Ok(())
    }

    /// The checks that need all replicas at rest. Returns what the whole run hashes to.
    pub(super) fn finish(mut self) -> Result<(u64, Tally), String> {
        self.logs_match()?;
        let mut held = self.nodes.iter().filter(|node| node.seed.is_some()).map(|node| common(&node.state));
        let first = held.next().unwrap_or_default();
        if held.any(|rows| rows != first) {
            return Err("two replicas have applied the same entries and come to other rows".into());
        }
        let prefix = Keys(GROUP).topic_only(Table::Events, TopicId(TOPIC));
        let mut events = Vec::new();
        for row in first.iter().filter(|row| row.key.starts_with(&prefix)) {
            let locator = Locator::decode(row.value.clone()).map_err(|e| e.to_string())?;
            let found = match self.oracle.entry(locator.index) {
                Some(entry) => events_at(entry, locator.part)?,
                None => return Err(format!("entry {} was never applied", locator.index)),
            };
            if tail_number(&row.key) != events.len() as u64 || found.len() != locator.count as usize {
                return Err(format!("the locator at {:?} does not follow on from {}", row.key, events.len()));
            }
            events.extend(found);
        }
        self.oracle.topic(&events)?;
        (self.now, self.oracle.acknowledged(), self.tally).hash(&mut self.trace);
        first.iter().for_each(|row| (&row.key, &row.value).hash(&mut self.trace));
        Ok((self.trace.finish(), self.tally))
    }
}
