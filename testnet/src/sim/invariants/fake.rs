//! A world made of numbers, for the tests of the invariants.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use canal_consensus::core::keys::{Keys, Table};
use canal_consensus::core::kv::{MemoryKv, WriteBatch};
use canal_consensus::core::rows::{Configuration, Topic};
use canal_consensus::{Progress, Status};
use canal_proto::event::Stored;
use canal_proto::log::{GroupSpec, TopicSpec};
use canal_proto::peer::Seed;
use canal_proto::{Event, GroupId, PeerId, TopicId};
use prost::Message;
use raft::eraftpb::{Entry, HardState};

use crate::sim::seen::{Invariant, Look, Replica, Seen};

pub(super) const GROUP: GroupId = GroupId(2);

/// A replica: id 1 is on peer 1, and so on.
pub(super) struct Fake {
    pub(super) seed: Seed,
    pub(super) up: bool,
    pub(super) status: Status,
    pub(super) entries: Vec<Entry>,
    pub(super) synced: u64,
    pub(super) hard_state: HardState,
    pub(super) before: u64,
    pub(super) flushed: u64,
    pub(super) kv: MemoryKv,
    pub(super) events: BTreeMap<u64, Vec<Stored>>,
}

impl Fake {
    pub(super) fn put<M: Message>(&mut self, key: Bytes, row: &M) {
        self.put_bytes(key, row.encode_to_vec());
    }

    pub(super) fn put_bytes(&mut self, key: Bytes, row: Vec<u8>) {
        let mut batch = WriteBatch::default();
        batch.ops.insert(key, Some(row.into()));
        self.kv.write(&batch);
    }

    /// Puts events into a topic, with its row.
    pub(super) fn fill(&mut self, group: GroupId, topic: u64, events: Vec<Stored>) {
        let next = events.last().map_or(0, |event| event.offset + 1);
        let row = Topic { next, ..Topic::default() };
        self.put(Keys(group).topic_only(Table::Topics, TopicId(topic)), &row);
        self.events.insert(topic, events);
    }

    pub(super) fn entry_at(&self, index: u64) -> Option<Entry> {
        self.entries.iter().find(|entry| entry.index == index && index > self.before).cloned()
    }
}

impl Replica for &Fake {
    fn peer(&self) -> usize {
        self.seed.replica as usize
    }
    fn seed(&self) -> &Seed {
        &self.seed
    }
    fn status(&self) -> Option<Status> {
        self.up.then(|| self.status.clone())
    }
    fn before(&self) -> u64 {
        self.before
    }
    fn last(&self) -> u64 {
        self.entries.last().map_or(self.before, |entry| entry.index)
    }
    fn entry(&self, index: u64) -> Option<Entry> {
        self.entry_at(index)
    }
    fn synced_before(&self) -> u64 {
        self.before
    }
    fn synced(&self, index: u64) -> Option<Entry> {
        self.entry_at(index).filter(|entry| entry.index <= self.synced)
    }
    fn synced_hard_state(&self) -> HardState {
        self.hard_state.clone()
    }
    fn flushed(&self) -> u64 {
        self.flushed
    }
    fn kv(&self) -> &MemoryKv {
        &self.kv
    }
    fn events(&self, topic: TopicId) -> Vec<Stored> {
        self.events.get(&topic.0).cloned().unwrap_or_default()
    }
}

/// All of it.
#[derive(Default)]
pub(super) struct World {
    pub(super) groups: BTreeMap<GroupId, Vec<Fake>>,
    pub(super) now: u64,
    pub(super) healed: bool,
    pub(super) robbed: Vec<(u64, u64)>,
    pub(super) staying: Vec<usize>,
}

impl World {
    /// One group of three, led by replica 1 in term 1.
    pub(super) fn three() -> Self {
        let mut world = Self { staying: vec![1, 2, 3], ..Self::default() };
        world.add(GROUP, &[]);
        world
    }

    /// A group of three more, with these topics.
    pub(super) fn add(&mut self, group: GroupId, topics: &[(u64, &str)]) {
        let topics =
            topics.iter().map(|(id, name)| TopicSpec { id: *id, name: (*name).to_owned(), ..TopicSpec::default() });
        let spec = Arc::new(GroupSpec { topics: topics.collect(), replicas: 3, ..GroupSpec::default() });
        let replicas = (1..=3).map(|id| replica(group, id, Arc::clone(&spec))).collect();
        self.groups.insert(group, replicas);
    }

    pub(super) fn of(&mut self, group: GroupId) -> &mut Vec<Fake> {
        self.groups.get_mut(&group).unwrap()
    }

    /// The replica with this id in [`GROUP`].
    pub(super) fn one(&mut self, id: u64) -> &mut Fake {
        &mut self.of(GROUP)[id as usize - 1]
    }

    pub(super) fn each(&mut self, group: GroupId, change: impl Fn(&mut Fake)) {
        self.of(group).iter_mut().for_each(change);
    }

    /// Gives replicas the same configuration.
    pub(super) fn configure(&mut self, change: impl Fn(&mut Configuration)) {
        self.each(GROUP, |fake| change(Arc::make_mut(&mut fake.status.configuration)));
    }
}

fn replica(group: GroupId, id: u64, spec: Arc<GroupSpec>) -> Fake {
    let peer = |id: u64| canal_proto::peer::Replica { id, peer: vec![id as u8; 32], addresses: Vec::new() };
    let replicas: Vec<_> = (1..=3).map(peer).collect();
    let configuration =
        Configuration { voters: vec![1, 2, 3], replicas: replicas.clone(), last_id: 3, ..Configuration::default() };
    let status = Status {
        group,
        replica: id,
        leads: id == 1,
        term: 1,
        leader: 1,
        committed: 0,
        applied: 0,
        first: 1,
        last: 0,
        log_bytes: 0,
        epoch: 0,
        configuration: Arc::new(configuration),
        joint: false,
        spec,
        outbox: 0,
        matched: BTreeMap::new(),
        progress: BTreeMap::<u64, Progress>::new(),
        hollow: false,
        installing: false,
        forgotten: false,
    };
    Fake {
        seed: Seed { group: group.0, first: replicas, replica: id, mesh: vec![9; 16], ..Seed::default() },
        up: true,
        status,
        entries: Vec::new(),
        synced: u64::MAX,
        hard_state: HardState::default(),
        before: 0,
        flushed: 0,
        kv: MemoryKv::default(),
        events: BTreeMap::new(),
    }
}

impl Look for World {
    fn now(&self) -> u64 {
        self.now
    }
    fn peers(&self) -> usize {
        4
    }
    fn peer_id(&self, peer: usize) -> PeerId {
        PeerId::from_public_key([peer as u8; 32])
    }
    fn groups(&self) -> Vec<GroupId> {
        self.groups.keys().copied().collect()
    }
    fn replicas(&self, group: GroupId) -> Vec<Box<dyn Replica + '_>> {
        let of = self.groups.get(&group);
        of.into_iter().flatten().map(|fake| Box::new(fake) as Box<dyn Replica + '_>).collect()
    }
    fn wanted(&self, _: GroupId) -> usize {
        3
    }
    fn staying(&self) -> Vec<usize> {
        self.staying.clone()
    }
    fn robbed(&self, _: GroupId) -> Vec<(u64, u64)> {
        self.robbed.clone()
    }
    fn healed(&self) -> bool {
        self.healed
    }
}

/// An entry with some data.
pub(super) fn entry(index: u64, term: u64, data: &str) -> Entry {
    Entry { index, term, data: data.as_bytes().to_vec().into(), ..Entry::default() }
}

/// An event at an offset.
pub(super) fn stored(offset: u64, producer: u8, sequence: u64, payload: &str) -> Stored {
    let event = Event::new(payload.as_bytes().to_vec());
    Stored { offset, event, producer: vec![producer; 16].into(), sequence }
}

fn tell(invariant: &mut dyn Invariant, world: &World, seen: &[Seen]) -> Result<(), String> {
    seen.iter().try_for_each(|seen| invariant.see(seen, world))?;
    invariant.look(world)?;
    invariant.end(world)
}

/// Nothing in it breaks the invariant, at no moment and not in the end.
pub(super) fn holds(invariant: &mut dyn Invariant, world: &World, seen: &[Seen]) {
    tell(invariant, world, seen).unwrap();
}

/// The last of what is seen, or the look behind it, breaks the invariant, and nothing before.
pub(super) fn caught(invariant: &mut dyn Invariant, world: &World, seen: &[Seen]) -> String {
    if let Some((_, before)) = seen.split_last() {
        before.iter().try_for_each(|seen| invariant.see(seen, world)).unwrap();
    }
    tell(invariant, world, seen.last().map_or(&[], std::slice::from_ref)).unwrap_err()
}
