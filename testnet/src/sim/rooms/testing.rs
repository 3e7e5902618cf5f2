//! A world for tests of one room: what it asks is collected, what it is told the test says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use canal_consensus::core::group::{Input, Ticket};
use canal_consensus::core::kv::{MemoryKv, WriteBatch};
use canal_consensus::core::machine;
use canal_consensus::core::txn::Txn;
use canal_consensus::{Configuration, Progress, Reply, Status};
use canal_proto::event::{Event, Stored};
use canal_proto::log::{Command, Emit, Kind, Step, Target};
use canal_proto::peer::Seed;
use canal_proto::{GroupId, PeerId, TopicId};

use super::Place;
use super::spec::Catalog;
use crate::sim::around::{Around, Ask, Here, Machine, Token};
use crate::sim::dht::Identities;
use crate::sim::rng::Rng;
use crate::sim::seen::Seen;
use crate::sim::setup::{self, GroupPlan, Setup, Wish};

const PEERS: usize = 5;

/// Five peers, of which the room sees one, with a replica of the group [`setup::WORK`].
pub struct World {
    pub wall: u64,
    pub mono: u64,
    pub asks: Vec<(Token, Machine, Ask)>,
    pub wakes: Vec<u64>,
    pub seen: Vec<Seen>,
    pub here: FakeHere,
    pub identities: Rc<Identities>,
    pub catalog: Rc<Catalog>,
    setup: Setup,
    rng: Rng,
}

pub struct FakeHere {
    pub status: Status,
    pub seed: Seed,
    pub kv: MemoryKv,
    pub events: BTreeMap<u64, Vec<Stored>>,
    pub silent: BTreeMap<u64, u64>,
    pub proposed: Vec<(Token, Kind)>,
    pub requested: Vec<(Token, Input)>,
    pub inputs: Vec<Input>,
    identities: Rc<Identities>,
}

impl World {
    pub fn new() -> Self {
        let identities = Rc::new(Identities::new(PEERS));
        let plan = |id, name: &str| GroupPlan {
            id,
            name: name.into(),
            first: vec![0, 1, 2],
            wish: Wish { replicas: 3, pinned: Vec::new() },
        };
        let plans = [plan(setup::WORK, "work"), plan(setup::OUT, "out"), plan(setup::LOGS, "logs")];
        let mut here = FakeHere {
            status: status(),
            seed: Seed { group: setup::WORK.0, name: "work".into(), mesh: setup::MESH.to_vec(), ..Seed::default() },
            kv: MemoryKv::default(),
            events: BTreeMap::new(),
            silent: BTreeMap::new(),
            proposed: Vec::new(),
            requested: Vec::new(),
            inputs: Vec::new(),
            identities: identities.clone(),
        };
        here.lead(1, 1, &[1, 2, 3]);
        let catalog = Rc::new(Catalog::new(&plans));
        let (asks, wakes, seen) = (Vec::new(), Vec::new(), Vec::new());
        let (setup, rng) = (Setup::with_peers(7, PEERS), Rng::new(7));
        Self { wall: 1_700_000_000_000, mono: 1000, asks, wakes, seen, here, identities, catalog, setup, rng }
    }

    pub fn place(&self, peer: Machine) -> Place {
        Place::new(peer, self.identities.clone(), self.catalog.clone())
    }

    pub fn pass(&mut self, ms: u64) {
        self.wall += ms;
        self.mono += ms;
    }
}

fn status() -> Status {
    Status {
        group: setup::WORK,
        replica: 1,
        leads: true,
        term: 2,
        leader: 1,
        committed: 1000,
        applied: 1000,
        first: 1,
        last: 1000,
        log_bytes: 0,
        epoch: 9,
        configuration: Arc::default(),
        joint: false,
        spec: Arc::default(),
        outbox: 0,
        matched: BTreeMap::new(),
        progress: BTreeMap::new(),
        hollow: false,
        installing: false,
        forgotten: false,
    }
}

impl FakeHere {
    /// This replica has an id, another leads, and these vote; the replica n is on peer n - 1.
    pub fn lead(&mut self, replica: u64, leader: u64, voters: &[u64]) {
        let replicas = voters.iter().map(|id| self.identities.replica(*id, *id as usize - 1)).collect();
        let last_id = voters.iter().copied().max().unwrap_or_default();
        let configuration = Configuration { voters: voters.to_vec(), replicas, last_id, ..Configuration::default() };
        let progress = Progress { matched: self.status.committed, snapshot: false, recent: true };
        self.status.configuration = Arc::new(configuration);
        self.status.progress = voters.iter().map(|id| (*id, progress)).collect();
        (self.status.replica, self.status.leader, self.status.leads) = (replica, leader, replica == leader);
    }

    /// There is a learner that has the log up to an index.
    pub fn learner(&mut self, id: u64, peer: Machine, matched: u64) {
        let mut configuration = (*self.status.configuration).clone();
        configuration.learners = vec![id];
        configuration.replicas.retain(|replica| replica.id != id);
        configuration.replicas.push(self.identities.replica(id, peer));
        self.status.configuration = Arc::new(configuration);
        self.status.progress.insert(id, Progress { matched, snapshot: false, recent: true });
    }

    /// Applies an entry, as the state machine does; events that it appends can be read.
    pub fn apply(&mut self, kind: Kind) -> Reply {
        self.status.applied += 1;
        self.status.committed = self.status.applied;
        let mut batch = WriteBatch::default();
        let mut txn = Txn::new(self.status.group, &self.kv, &mut batch);
        let place = machine::Place {
            mesh: canal_proto::MeshId(setup::MESH),
            group: self.status.group,
            namespace: "default",
            index: self.status.applied,
            term: self.status.term,
        };
        let command = Command { time_ms: 1, kind: Some(kind.clone()) };
        let (reply, effects) = machine::apply(&mut txn, place, &command).unwrap();
        for effect in effects {
            match effect {
                machine::Effect::Spec => self.status.spec = Arc::new(machine::spec(&txn).unwrap()),
                machine::Effect::Outbox(len) => self.status.outbox = len,
                _ => {}
            }
        }
        self.kv.write(&batch);
        match (kind, &reply) {
            (Kind::Append(append), Reply::Appended(results)) => {
                for (item, _) in append.items.into_iter().zip(results).filter(|(_, result)| result.is_ok()) {
                    item.events.into_iter().for_each(|event| self.store(item.topic, event));
                }
            }
            (Kind::Outcomes(outcomes), Reply::Outcomes(results, _)) => {
                let applied = outcomes.outcomes.into_iter().zip(results);
                for (outcome, _) in applied.filter(|(_, result)| **result == machine::OutcomeResult::Applied) {
                    let group = self.status.group.0;
                    for emit in outcome.emits.into_iter().filter(|emit| emit.target.group == group) {
                        self.store(emit.target.topic, emit.event);
                    }
                }
            }
            _ => {}
        }
        reply
    }

    fn store(&mut self, topic: u64, event: Event) {
        let events = self.events.entry(topic).or_default();
        let offset = events.len() as u64;
        events.push(Stored { offset, event, ..Stored::default() });
    }

    /// Effects for another group get into the outbox; the report of a step is the shortest way there.
    pub fn emit_to(&mut self, group: u64, topic: u64, name: &str, payloads: &[&str]) {
        for payload in payloads {
            let target = Target { topic, group, name: name.into() };
            let event = Event::new((*payload).to_owned());
            let report = Some(Emit { target: target.clone(), event, dead: target });
            self.apply(Kind::Step(Step { report, ..Step::default() }));
        }
    }
}

impl Around for World {
    fn now_ms(&self) -> u64 {
        self.wall
    }

    fn mono_ms(&self) -> u64 {
        self.mono
    }

    fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    fn peers(&self) -> usize {
        PEERS
    }

    fn machine(&self) -> Machine {
        0
    }

    fn peer_id(&self, peer: Machine) -> PeerId {
        self.identities.id(peer)
    }

    fn machine_of(&self, peer: &PeerId) -> Option<Machine> {
        self.identities.machine(*peer)
    }

    fn setup(&self) -> &Setup {
        &self.setup
    }

    fn wish(&self, group: GroupId) -> Wish {
        self.catalog.wished(group)
    }

    fn ask(&mut self, token: Token, to: Machine, ask: Ask) {
        self.asks.push((token, to, ask));
    }

    fn wake_in(&mut self, ms: u64) {
        assert!(ms > 0, "a waking at once never ends");
        self.wakes.push(self.mono + ms);
    }

    fn see(&mut self, seen: Seen) {
        self.seen.push(seen);
    }

    fn replica(&mut self) -> Option<&mut dyn Here> {
        Some(&mut self.here)
    }
}

impl Here for FakeHere {
    fn status(&self) -> Status {
        self.status.clone()
    }

    fn seed(&self) -> Seed {
        self.seed.clone()
    }

    fn kv(&self) -> &MemoryKv {
        &self.kv
    }

    fn events(&self, topic: TopicId, from: u64, max: usize) -> Vec<Stored> {
        let events = self.events.get(&topic.0).map(Vec::as_slice).unwrap_or_default();
        events.iter().filter(|event| event.offset >= from).take(max).cloned().collect()
    }

    fn silent_ms(&self, replica: u64) -> u64 {
        self.silent.get(&replica).copied().unwrap_or_default()
    }

    fn propose(&mut self, token: Token, kind: Kind) {
        self.proposed.push((token, kind));
    }

    fn request(&mut self, token: Token, make: Box<dyn FnOnce(Ticket) -> Input>) {
        self.requested.push((token, make(token)));
    }

    fn input(&mut self, input: Input) {
        self.inputs.push(input);
    }
}
