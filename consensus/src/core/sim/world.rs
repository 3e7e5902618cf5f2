//! Peers, the network between them, and what goes wrong.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use canal_proto::log::{GroupSpec, Kind, TopicSpec};
use canal_proto::peer::{RaftMessage, Replica, Seed};
use canal_proto::{Code, GroupId, PeerId, TopicId, WireError};
use prost::Message as _;

use super::client::{Client, TOPIC};
use super::disk::{MemoryLog, State};
use super::oracle::{Check, Oracle, events_at};
use super::rng::Rng;
use super::{Sabotage, Setup};
use crate::convert;
use crate::core::group::{Group, Input, Origin, Output, Persist, Refused, Status, Ticket, Ticks};
use crate::core::keys::{Keys, Table, tail_number};
use crate::core::kv::{Kv as _, WriteBatch};
use crate::core::machine::Reply;
use crate::core::rows::{Locator, Topic};

const GROUP: GroupId = GroupId(1);
const TICKS: Ticks = Ticks { election: 10, heartbeat: 2 };
const CLIENTS: usize = 4;
/// Events a client publishes while things go wrong.
const GOAL: u64 = 40;
/// Turns that a peer may take in one tick.
const TURNS: usize = 4;

/// A peer.
struct Node {
    seed: Option<Seed>,
    log: MemoryLog,
    state: State,
    group: Option<Group<MemoryLog>>,
    inbox: Vec<Input>,
    restart_at: u64,
    applied: u64,
}

/// Who waits for an answer.
enum Asker {
    Append { client: usize, first: u64, count: u64 },
    Read { floor: u64 },
    Spec,
    Change,
}

/// What is going wrong, each in a thousand.
struct Faults {
    loss: u64,
    duplicate: u64,
    delay: u64,
    crash: u64,
    crash_in_turn: u64,
    crash_after_change: u64,
    partition: u64,
    transfer: u64,
    flush: u64,
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
        }
    }
}

/// All of it.
pub(super) struct World {
    setup: Setup,
    rng: Rng,
    now: u64,
    faults: Faults,
    nodes: Vec<Node>,
    network: BTreeMap<(u64, u64), (usize, usize, Vec<u8>)>,
    sent: u64,
    side: Vec<bool>,
    partition_until: u64,
    clients: Vec<Client>,
    askers: BTreeMap<Ticket, Asker>,
    tickets: Ticket,
    has_spec: bool,
    /// Learners are all added before the first is promoted.
    all_at_once: bool,
    pub(super) oracle: Oracle,
    trace: DefaultHasher,
    logger: slog::Logger,
}

fn replica_of(peer: usize, id: u64) -> Replica {
    Replica { id, peer: vec![u8::try_from(peer).unwrap(); 32], addresses: Vec::new() }
}

fn peer_of(replica: &Replica) -> usize {
    usize::from(replica.peer[0])
}

impl World {
    pub(super) fn new(seed: u64, setup: Setup) -> Result<Self, String> {
        let mut rng = Rng::new(seed);
        let faults = Faults::draw(&mut rng);
        let all_at_once = rng.chance(500);
        let first: Vec<Replica> = (0..setup.first).map(|peer| replica_of(peer, peer as u64 + 1)).collect();
        let nodes = (0..setup.peers).map(|_| Node {
            seed: None,
            log: MemoryLog::default(),
            state: State::default(),
            group: None,
            inbox: Vec::new(),
            restart_at: 0,
            applied: 0,
        });
        let mut world = Self {
            setup,
            rng,
            now: 0,
            faults,
            nodes: nodes.collect(),
            network: BTreeMap::new(),
            sent: 0,
            side: vec![false; setup.peers],
            partition_until: 0,
            clients: (0..CLIENTS).map(|id| Client::new(id, GOAL)).collect(),
            askers: BTreeMap::new(),
            tickets: 0,
            has_spec: false,
            all_at_once,
            oracle: Oracle::default(),
            trace: DefaultHasher::new(),
            logger: slog::Logger::root(slog::Discard, slog::o!()),
        };
        for peer in 0..setup.first {
            world.create(peer, first.clone(), peer as u64 + 1)?;
        }
        Ok(world)
    }

    fn create(&mut self, peer: usize, first: Vec<Replica>, replica: u64) -> Check {
        let seed = Seed { group: GROUP.0, first, replica, mesh: vec![9; 16], ..Seed::default() };
        self.nodes[peer].seed = Some(seed);
        self.open(peer)
    }

    fn open(&mut self, peer: usize) -> Check {
        let node = &mut self.nodes[peer];
        let Some(seed) = node.seed.clone() else { return Ok(()) };
        let (mut hard_state, last) = node.log.read(|image| (image.hard_state.clone(), image.last()));
        match self.setup.sabotage {
            Sabotage::ForgottenVotes => hard_state.vote = 0,
            Sabotage::ForgottenProducers => node.state.damage(&Keys(GROUP).one(Table::Producers)),
            _ => {}
        }
        let origin = Origin { seed, reader: node.log.clone(), hard_state, last };
        let mut group = Group::open(origin, TICKS, &node.state.kv, &self.logger).map_err(|e| e.0)?;
        if group.is_alone() {
            group.handle(Input::Campaign, self.now);
        }
        node.applied = group.status().applied;
        node.group = Some(group);
        Ok(())
    }

    fn crash(&mut self, peer: usize) {
        (self.now, peer, "crash").hash(&mut self.trace);
        let node = &mut self.nodes[peer];
        node.group = None;
        node.inbox.clear();
        node.log.crash(&mut self.rng);
        node.state.crash(&mut self.rng);
        node.restart_at = self.now + 1 + self.rng.below(60);
    }

    fn ask(&mut self, peer: usize, asker: Asker, make: impl FnOnce(Ticket) -> Input) {
        self.tickets += 1;
        self.askers.insert(self.tickets, asker);
        self.nodes[peer].inbox.push(make(self.tickets));
    }

    fn status(&self, peer: usize) -> Option<Status> {
        self.nodes[peer].group.as_ref().map(Group::status)
    }

    fn leader(&self) -> Option<Status> {
        (0..self.nodes.len()).filter_map(|peer| self.status(peer)).filter(|s| s.leads).max_by_key(|s| s.term)
    }

    fn random_peer(&mut self) -> usize {
        self.rng.below(self.nodes.len() as u64) as usize
    }

    /// One tick of everything.
    pub(super) fn step(&mut self) -> Check {
        self.now += 1;
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
                let sender = PeerId::from_public_key([u8::try_from(from).unwrap(); 32]);
                self.nodes[to].inbox.push(Input::Message(sender, Box::new(message)));
            }
        }
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

    fn go_wrong(&mut self) -> Check {
        for peer in 0..self.nodes.len() {
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
            let input = match self.rng.below(4) {
                0 => Input::Unreachable(to),
                1 => Input::Campaign,
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

    /// What the rest of a peer does: brings the spec, lets the group grow.
    fn administer(&mut self) -> Check {
        let Some(leader) = self.leader().filter(|_| self.rng.chance(200)) else { return Ok(()) };
        let peer = self.peer_with(leader.replica);
        if !self.has_spec {
            let topics = vec![TopicSpec { id: TOPIC, name: "t".into(), ..TopicSpec::default() }];
            let spec = GroupSpec { version: 1, topics, ..GroupSpec::default() };
            self.ask(peer, Asker::Spec, |ticket| Input::Propose(ticket, Kind::Spec(spec)));
        }
        let configuration = leader.configuration;
        for replica in &configuration.replicas {
            if self.nodes[peer_of(replica)].seed.is_none() {
                let first = self.nodes[peer].group.as_ref().map(|group| group.seed().first.clone());
                self.create(peer_of(replica), first.unwrap_or_default(), replica.id)?;
            }
        }
        let near = |id: &u64| leader.matched.get(id).is_some_and(|matched| matched + 5 >= leader.last);
        let free = |peer: &usize| !configuration.replicas.iter().any(|replica| peer_of(replica) == *peer);
        let next = (0..self.setup.peers).find(free);
        if let Some(next) = next {
            self.ask(peer, Asker::Change, |ticket| Input::AddLearner(ticket, replica_of(next, 0)));
        }
        if let Some(id) = configuration.learners.iter().copied().find(near)
            && (next.is_none() || !self.all_at_once)
        {
            self.ask(peer, Asker::Change, |ticket| Input::Promote(ticket, id));
        }
        Ok(())
    }

    fn peer_with(&self, replica: u64) -> usize {
        let holds = |node: &Node| node.seed.as_ref().is_some_and(|seed| seed.replica == replica);
        self.nodes.iter().position(holds).unwrap_or_default()
    }

    /// One turn, as the worker takes it; it may be cut short anywhere.
    fn turn(&mut self, peer: usize) -> Check {
        let now = self.now;
        let node = &mut self.nodes[peer];
        let Some(group) = &mut node.group else {
            node.inbox.clear();
            return Ok(());
        };
        let voters = group.status().configuration.voters.clone();
        for input in node.inbox.drain(..) {
            group.handle(input, now);
        }
        let persist = group.prepare(now);
        let outputs = group.take_outputs();
        self.emit(peer, outputs, &voters)?;
        if let Some(persist) = persist {
            if self.rng.chance(self.faults.crash_in_turn) {
                if self.rng.chance(500) {
                    self.nodes[peer].log.write(persist, false);
                }
                self.crash(peer);
                return Ok(());
            }
            self.nodes[peer].log.write(persist, self.setup.sabotage != Sabotage::LyingDisks);
        }
        let node = &mut self.nodes[peer];
        let Some(group) = &mut node.group else { return Ok(()) };
        let mut batch = WriteBatch::default();
        group.persisted(&node.state.kv, &mut batch).map_err(|e| e.0)?;
        if let Some(hard_state) = group.must_persist() {
            let persist = Persist { entries: Vec::new(), hard_state: Some(hard_state), sync: true };
            node.log.write(persist, self.setup.sabotage != Sabotage::LyingDisks);
        }
        if self.rng.chance(self.faults.crash_in_turn) {
            self.crash(peer);
            return Ok(());
        }
        let outputs = group.take_outputs();
        let status = group.status();
        node.state.write(batch);
        for index in node.applied + 1..=status.applied {
            node.log.read(|log| match log.get(index) {
                Some(entry) => self.oracle.applies(entry),
                None => Err(format!("entry {index} was applied, but is not in the log")),
            })?;
        }
        node.applied = status.applied;
        if status.leader == status.replica {
            self.oracle.leads(status.term, status.replica)?;
        }
        self.emit(peer, outputs, &voters)?;
        if status.configuration.voters != voters && self.rng.chance(self.faults.crash_after_change) {
            self.crash(peer);
        }
        Ok(())
    }

    fn emit(&mut self, peer: usize, outputs: Vec<Output>, voters: &[u64]) -> Check {
        for output in outputs {
            match output {
                Output::Send(messages) => messages.into_iter().for_each(|message| self.send(peer, message)),
                Output::Reply(ticket, reply) => {
                    let Some(asker) = self.askers.remove(&ticket) else {
                        return Err(format!("ticket {ticket} was answered twice"));
                    };
                    self.answered(peer, ticket, asker, reply, voters)?;
                }
                Output::Effect(_) => {}
            }
        }
        Ok(())
    }

    fn send(&mut self, from: usize, message: raft::eraftpb::Message) {
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
        voters: &[u64],
    ) -> Check {
        (self.now, peer, ticket, format!("{reply:?}")).hash(&mut self.trace);
        match (asker, reply) {
            (Asker::Append { client, first, count }, Ok(Reply::Appended(results))) => match results.as_slice() {
                [Ok(receipt)] => {
                    self.is_durable(peer, receipt.index, receipt.term, voters)?;
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
                let next =
                    if leader == 0 || self.rng.chance(300) { self.random_peer() } else { self.peer_with(leader) };
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

    /// An acknowledged entry is synced on a majority of the voters, of before or after this turn.
    fn is_durable(&self, peer: usize, index: u64, term: u64, before: &[u64]) -> Check {
        let synced = |voter: &&u64| self.nodes[self.peer_with(**voter)].log.synced_term(index) == Some(term);
        let after = self.status(peer).map(|status| status.configuration.voters.clone()).unwrap_or_default();
        let majority = |voters: &[u64]| voters.iter().filter(synced).count() * 2 > voters.len();
        if majority(before) || majority(&after) {
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

    /// Whether it serves again, and all replicas stand alike.
    pub(super) fn is_well(&self) -> bool {
        let statuses: Vec<_> = (0..self.nodes.len()).filter_map(|peer| self.status(peer)).collect();
        self.clients.iter().all(Client::is_done)
            && self.oracle.reads > 0
            && statuses.len() == self.setup.peers
            && statuses.iter().all(|s| s.configuration.voters.len() == self.setup.peers)
            && statuses.windows(2).all(|pair| pair[0].applied == pair[1].applied)
    }

    /// What went wrong with getting well, for people.
    pub(super) fn describe(&self) -> String {
        let node = |peer: usize| match self.status(peer) {
            None => "down".to_owned(),
            Some(s) => format!(
                "{{id {} leader {} term {} applied {}/{}/{} voters {:?}}}",
                s.replica, s.leader, s.term, s.applied, s.committed, s.last, s.configuration.voters
            ),
        };
        let nodes: Vec<_> = (0..self.nodes.len()).map(node).collect();
        format!("{}; clients {:?}", nodes.join(" "), self.clients)
    }

    /// The checks that need all replicas at rest. Returns what the whole run hashes to.
    pub(super) fn finish(mut self) -> Result<u64, String> {
        let first = self.nodes[0].state.kv.snapshot();
        if let Some(other) = self.nodes.iter().position(|node| node.state.kv.snapshot() != first) {
            return Err(format!("peers 0 and {other} have applied the same entries and come to other rows"));
        }
        let prefix = Keys(GROUP).topic_only(Table::Events, TopicId(TOPIC));
        let mut events = Vec::new();
        for (key, row) in first.iter().filter(|(key, _)| key.starts_with(&prefix)) {
            let locator = Locator::decode(row.clone()).map_err(|e| e.to_string())?;
            let found = self.nodes[0].log.read(|log| match log.get(locator.index) {
                Some(entry) => events_at(entry, locator.part),
                None => Err(format!("entry {} is gone", locator.index)),
            })?;
            if tail_number(key) != events.len() as u64 || found.len() != locator.count as usize {
                return Err(format!(
                    "the locator at offset {} does not follow on from {}",
                    tail_number(key),
                    events.len()
                ));
            }
            events.extend(found);
        }
        self.oracle.topic(&events)?;
        (&first, self.now, self.oracle.acknowledged()).hash(&mut self.trace);
        Ok(self.trace.finish())
    }
}
