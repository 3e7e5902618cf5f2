//! A world for tests of clients: every group is one real state machine that never fails, but its leader moves, questions and
//! answers get lost, and clocks run fast or slow. It can be told to lie, to see that the clients notice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use canal_consensus::Reply;
use canal_consensus::core::keys::Keys;
use canal_consensus::core::kv::{Kv, MemoryKv, WriteBatch};
use canal_consensus::core::machine::{Place, apply};
use canal_consensus::core::txn::Txn;
use canal_proto::event::Stored;
use canal_proto::log::{Append, AppendItem, Command, GroupSpec, Kind, TopicSpec};
use canal_proto::peer::Replica;
use canal_proto::request::Route;
use canal_proto::{Code, GroupId, MeshId, PeerId, TopicId, WireError, route};

use crate::sim::around::{Actor, Answer, Around, Ask, Failed, Here, Machine, Token};
use crate::sim::rng::Rng;
use crate::sim::rooms::spec;
use crate::sim::seen::Seen;
use crate::sim::setup::{Setup, Wish};

/// How a world lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// It does not.
    None,
    /// A receipt covers more than was sent.
    LongReceipt,
    /// A producer's sequences are forgotten.
    ForgottenProducer,
    /// A cursor is answered as it was a while ago.
    OldCursor,
    /// Whoever had a subscription moves its cursor.
    AnySession,
    /// A row that nobody wrote.
    ForeignRow,
    /// A peer says that it does not lead, after it has taken a write.
    TakenAndDenied,
    /// A read by somebody who led before.
    OldRead,
    /// A name leads to another group.
    WrongGroup,
}

/// Peers of which each group has a replica.
const REPLICAS: usize = 3;
/// How long a question or an answer takes at most, while things go wrong.
const SLOW_MS: u64 = 120;
/// When nothing comes.
const SILENCE_MS: u64 = 2_500;

struct Group {
    kv: MemoryKv,
    index: u64,
    replicas: Vec<Machine>,
    leader: Machine,
    topics: Vec<(u64, String)>,
    events: BTreeMap<u64, Vec<Stored>>,
    /// Rows as they were before the last writes.
    old: BTreeMap<(String, String), Vec<Option<bytes::Bytes>>>,
}

enum Due {
    Wake(usize),
    Question(usize, Token, Machine, Ask),
    Answer(usize, Token, Result<Answer, Failed>),
}

/// All but the clients.
pub struct World {
    pub setup: Setup,
    pub now: u64,
    pub seen: Vec<Seen>,
    pub faulty: bool,
    pub lie: Lie,
    rng: Rng,
    queue: BTreeMap<(u64, u64), Due>,
    sequence: u64,
    groups: BTreeMap<GroupId, Group>,
}

impl World {
    pub fn new(seed: u64, lie: Lie) -> Self {
        let setup = Setup { leisure: 1, ..Setup::with_peers(seed, 5) };
        let mut rng = Rng::new(seed).fork(99);
        let groups = setup.groups.iter().map(|plan| (plan.id, Group::new(plan.id, &mut rng))).collect();
        let (queue, seen) = (BTreeMap::new(), Vec::new());
        Self { setup, now: 0, seen, faulty: true, lie, rng, queue, sequence: 0, groups }
    }

    fn push(&mut self, after: u64, due: Due) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), due);
    }

    /// Lets the clients live until then.
    pub fn run(&mut self, clients: &mut [Box<dyn Actor>], rngs: &mut [Rng], until: u64) {
        if self.sequence == 0 {
            (0..clients.len()).for_each(|client| self.push(0, Due::Wake(client)));
        }
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= until) {
            self.now = entry.key().0;
            match entry.remove() {
                Due::Wake(client) => {
                    let mut view = View { world: self, client, rng: &mut rngs[client] };
                    clients[client].wake(&mut view);
                }
                Due::Answer(client, token, answer) => {
                    let mut view = View { world: self, client, rng: &mut rngs[client] };
                    clients[client].answered(token, answer, &mut view);
                }
                Due::Question(client, token, to, ask) => self.question(client, token, to, ask),
            }
        }
        self.now = until;
    }

    fn question(&mut self, client: usize, token: Token, to: Machine, ask: Ask) {
        if self.faulty && self.rng.chance(20) {
            for group in self.groups.values_mut() {
                group.leader = group.replicas[self.rng.index(REPLICAS)];
            }
        }
        if self.faulty && self.rng.chance(60) {
            return self.push(SILENCE_MS, Due::Answer(client, token, Err(Failed::Silence)));
        }
        let answer = self.serve(to, ask);
        if self.faulty && self.rng.chance(60) {
            return self.push(SILENCE_MS, Due::Answer(client, token, Err(Failed::Silence)));
        }
        let after = self.rng.between(1, if self.faulty { SLOW_MS } else { 20 });
        self.push(after, Due::Answer(client, token, answer));
    }

    fn serve(&mut self, to: Machine, ask: Ask) -> Result<Answer, Failed> {
        let id = match &ask {
            Ask::Route(name) | Ask::Afresh(name) => return self.route(name),
            Ask::Append(group, _) | Ask::Propose(group, _) | Ask::State(group, ..) => *group,
            Ask::Stale(group, ..) | Ask::Events(group, ..) | Ask::Standing(group) => *group,
            _ => return Err(Failed::NotHere),
        };
        let (lie, lag) = (self.lie, self.rng.below(4));
        let lies = lie != Lie::None && self.rng.chance(100);
        let group = self.groups.get_mut(&id).ok_or(Failed::NotHere)?;
        if !group.replicas.contains(&to) {
            return Err(Failed::NotHere);
        }
        if !matches!(ask, Ask::Stale(..) | Ask::Events(..) | Ask::Standing(_)) && to != group.leader {
            return Err(Failed::NotLeader((lag > 0).then_some(group.leader)));
        }
        match ask {
            Ask::Append(_, item) => Ok(Answer::Reply(group.append(id, item, lie, lies))),
            Ask::Propose(_, kind) => {
                let reply = group.propose(id, *kind, lie, lies);
                if lie == Lie::TakenAndDenied && lies {
                    return Err(Failed::NotLeader(None));
                }
                Ok(Answer::Reply(reply))
            }
            Ask::State(_, bucket, key) if lie == Lie::OldRead && lies => {
                let old = group.old.get(&(bucket, key)).and_then(|old| old.get(old.len().checked_sub(3)?));
                Ok(Answer::Row(old.cloned().flatten()))
            }
            Ask::Stale(..) if lie == Lie::ForeignRow && lies => Ok(Answer::Row(Some("x".into()))),
            Ask::State(_, bucket, key) | Ask::Stale(_, bucket, key) => {
                Ok(Answer::Row(group.kv.get(&Keys(id).state(&bucket, &key)).unwrap()))
            }
            Ask::Events(_, topic, from, max) => {
                let events = group.events.get(&topic.0).map_or(&[][..], Vec::as_slice);
                let behind = if self.faulty { usize::try_from(lag).unwrap() } else { 0 };
                let known = &events[..events.len().saturating_sub(behind)];
                let from = usize::try_from(from).unwrap().min(known.len());
                Ok(Answer::Events(known[from..].iter().take(max).cloned().collect(), known.len() as u64))
            }
            Ask::Standing(_) => Ok(Answer::Standing(REPLICAS as u64, group.members())),
            _ => Err(Failed::NotHere),
        }
    }

    fn route(&mut self, name: &str) -> Result<Answer, Failed> {
        let unknown = Failed::Error(WireError::new(Code::UnknownTopic, "no route"));
        if self.faulty && self.rng.chance(100) {
            return Err(unknown);
        }
        let hosts = |(id, group): &(&GroupId, &Group)| {
            route::group_name(**id) == name || group.topics.iter().any(|(_, topic)| topic == name)
        };
        let found = self.groups.iter().find(hosts);
        let found = if self.lie == Lie::WrongGroup { self.groups.iter().next() } else { found };
        let (id, group) = found.ok_or(unknown)?;
        let replicas = group.members();
        let leader = if self.faulty { self.rng.below(4) } else { 0 };
        Ok(Answer::Route(Route { group: id.0, replicas, leader, ..Route::default() }))
    }

    /// All events of a topic.
    pub fn events(&self, topic: TopicId) -> Vec<Stored> {
        self.groups.values().find_map(|group| group.events.get(&topic.0).cloned()).unwrap_or_default()
    }
}

impl Group {
    fn new(id: GroupId, rng: &mut Rng) -> Self {
        let mut replicas: Vec<Machine> = (0..5).collect();
        while replicas.len() > REPLICAS {
            replicas.swap_remove(rng.index(replicas.len()));
        }
        let (leader, topics) = (replicas[0], spec::topics(id));
        let (kv, events, old) = (MemoryKv::default(), BTreeMap::new(), BTreeMap::new());
        let mut group = Self { kv, index: 0, replicas, leader, topics: topics.clone(), events, old };
        let topics = topics.into_iter().map(|(id, name)| TopicSpec { id, name, ..TopicSpec::default() }).collect();
        group.run(id, Kind::Spec(GroupSpec { version: 1, topics, ..GroupSpec::default() }));
        group
    }

    fn members(&self) -> Vec<Replica> {
        let replica =
            |(peer, id): (&Machine, u64)| Replica { id, peer: peer_id(*peer).to_vec(), addresses: Vec::new() };
        self.replicas.iter().zip(1..).map(replica).collect()
    }

    fn run(&mut self, id: GroupId, kind: Kind) -> Reply {
        self.index += 1;
        let mut batch = WriteBatch::default();
        let place = Place { mesh: MeshId([1; 16]), group: id, namespace: "n", index: self.index, term: 1 };
        let command = Command { time_ms: 1, kind: Some(kind) };
        let (reply, _) = apply(&mut Txn::new(id, &self.kv, &mut batch), place, &command).unwrap();
        self.kv.write(&batch);
        reply
    }

    fn append(&mut self, id: GroupId, mut item: AppendItem, lie: Lie, lies: bool) -> Reply {
        let stored = item.clone();
        if lie == Lie::ForgottenProducer && lies {
            item.first_sequence += 1000;
        }
        let mut reply = self.run(id, Kind::Append(Append { items: vec![item] }));
        if let Reply::Appended(results) = &mut reply
            && let Some(Ok(receipt)) = results.first_mut()
        {
            if let Some(first) = receipt.offset.filter(|_| !receipt.duplicate) {
                let events = self.events.entry(stored.topic).or_default();
                for (event, at) in stored.events.into_iter().zip(0..) {
                    let sequence = stored.first_sequence + at;
                    events.push(Stored { offset: first + at, event, producer: stored.producer.clone(), sequence });
                }
            }
            if lie == Lie::LongReceipt && lies {
                receipt.count += 1;
            }
        }
        reply
    }

    fn propose(&mut self, id: GroupId, mut kind: Kind, lie: Lie, lies: bool) -> Reply {
        if let Kind::StateWrite(write) = &kind {
            for op in &write.ops {
                self.old.entry((write.bucket.clone(), op.key.clone())).or_default().push(op.value.clone());
            }
        }
        if let Kind::Subscription(change) = &mut kind
            && let Some(canal_proto::log::SubscriptionOp::Advance(advance)) = &mut change.op
            && lie == Lie::AnySession
        {
            let key = Keys(id).make(
                canal_consensus::core::keys::Table::Subscriptions,
                &[&change.topic.to_be_bytes(), change.name.as_bytes()],
            );
            let mut batch = WriteBatch::default();
            let known = Txn::new(id, &self.kv, &mut batch).get::<canal_proto::log::Subscription>(&key).unwrap();
            advance.session = known.unwrap().session;
        }
        let mut reply = self.run(id, kind);
        if let Reply::Subscription(Ok(stands)) = &mut reply
            && lie == Lie::OldCursor
            && lies
        {
            stands.next /= 2;
        }
        reply
    }
}

fn peer_id(peer: Machine) -> PeerId {
    PeerId::from_public_key([u8::try_from(peer).unwrap() + 1; 32])
}

struct View<'a> {
    world: &'a mut World,
    client: usize,
    rng: &'a mut Rng,
}

impl Around for View<'_> {
    fn now_ms(&self) -> u64 {
        self.world.now
    }
    fn mono_ms(&self) -> u64 {
        // some a little fast, some a little slow
        self.world.now * (980 + 10 * (self.client as u64 % 5)) / 1000
    }
    fn rng(&mut self) -> &mut Rng {
        self.rng
    }
    fn peers(&self) -> usize {
        5
    }
    fn machine(&self) -> Machine {
        100 + self.client
    }
    fn peer_id(&self, peer: Machine) -> PeerId {
        peer_id(peer)
    }
    fn machine_of(&self, peer: &PeerId) -> Option<Machine> {
        (0..5).find(|machine| peer_id(*machine) == *peer)
    }
    fn setup(&self) -> &Setup {
        &self.world.setup
    }
    fn wish(&self, _: GroupId) -> Wish {
        Wish::default()
    }
    fn ask(&mut self, token: Token, to: Machine, ask: Ask) {
        let after = self.world.rng.between(1, if self.world.faulty { 300 } else { 20 });
        self.world.push(after, Due::Question(self.client, token, to, ask));
    }
    fn wake_in(&mut self, ms: u64) {
        self.world.push(ms, Due::Wake(self.client));
    }
    fn see(&mut self, seen: Seen) {
        self.world.seen.push(seen);
    }
    fn replica(&mut self) -> Option<&mut dyn Here> {
        None
    }
}
