//! The world as invariants see it: all of it, at one instant.

use std::rc::Rc;

use canal_consensus::Status;
use canal_consensus::core::keys::{Keys, Table};
use canal_consensus::core::kv::{Kv as _, MemoryKv};
use canal_consensus::core::rows::Topic;
use canal_consensus::view::Source;
use canal_proto::event::Stored;
use canal_proto::peer::Seed;
use canal_proto::{GroupId, PeerId, TopicId};
use prost::Message as _;
use raft::eraftpb::{Entry, HardState};

use super::{PeerContent, World};
use crate::sim::around::Machine;
use crate::sim::peer::Stage;
use crate::sim::seen::{Look, Replica};

/// Events that are read at a time.
const READ: usize = 4096;
/// Their bytes.
const READ_BYTES: usize = 16 << 20;

struct Seen<'a> {
    world: &'a World,
    peer: Machine,
    group: GroupId,
    seed: Rc<Seed>,
}

impl Seen<'_> {
    fn log<T: Default>(&self, read: impl FnOnce(&crate::sim::disk::log::Image) -> T) -> T {
        self.world.peers[self.peer].disk.log.read(self.group, read).unwrap_or_default()
    }

    fn synced_log<T: Default>(&self, read: impl FnOnce(&crate::sim::disk::log::Image) -> T) -> T {
        self.world.peers[self.peer].disk.log.read_synced(self.group, read).unwrap_or_default()
    }
}

impl Replica for Seen<'_> {
    fn peer(&self) -> Machine {
        self.peer
    }

    fn seed(&self) -> &Seed {
        &self.seed
    }

    fn status(&self) -> Option<Status> {
        let live = self.world.peers[self.peer].live.as_ref()?;
        Some(live.members.get(&self.group)?.group.status())
    }

    fn before(&self) -> u64 {
        self.log(|image| image.before())
    }

    fn last(&self) -> u64 {
        self.log(|image| image.last())
    }

    fn entry(&self, index: u64) -> Option<Entry> {
        self.log(|image| image.entry(index).cloned())
    }

    fn synced_before(&self) -> u64 {
        self.synced_log(|image| image.before())
    }

    fn synced(&self, index: u64) -> Option<Entry> {
        self.synced_log(|image| image.entry(index).cloned())
    }

    fn synced_hard_state(&self) -> HardState {
        self.synced_log(|image| image.hard_state.clone())
    }

    fn flushed(&self) -> u64 {
        self.world.peers[self.peer].disk.rows.flushed_to(self.group)
    }

    fn kv(&self) -> &MemoryKv {
        self.world.peers[self.peer].disk.rows.open_ref(self.group)
    }

    fn events(&self, topic: TopicId) -> Vec<Stored> {
        let content = PeerContent(&self.world.peers[self.peer].disk);
        let source = Source { group: self.group, kv: self.kv(), content: &content };
        let key = Keys(self.group).topic_only(Table::Topics, topic);
        let row = self.kv().get(&key).ok().flatten().and_then(|row| Topic::decode(row).ok()).unwrap_or_default();
        let mut events: Vec<Stored> = Vec::new();
        let mut next = row.oldest;
        while next < row.next {
            let Ok(more) = source.events(topic, next, READ, READ_BYTES) else { break };
            let Some(last) = more.last() else { break };
            next = last.offset + 1;
            events.extend(more);
        }
        events
    }
}

impl Look for World {
    fn now(&self) -> u64 {
        self.now / 1000
    }

    fn peers(&self) -> usize {
        self.joined
    }

    fn peer_id(&self, peer: Machine) -> PeerId {
        self.identities.id(peer)
    }

    fn groups(&self) -> Vec<GroupId> {
        self.setup.groups.iter().map(|plan| plan.id).collect()
    }

    fn replicas(&self, group: GroupId) -> Vec<Box<dyn Replica + '_>> {
        let mut replicas: Vec<Box<dyn Replica + '_>> = Vec::new();
        for (peer, held) in self.peers.iter() {
            let seed = held.disk.log.read(group, |image| image.seed.clone()).flatten();
            if let Some(seed) = seed.filter(|_| held.stage != Stage::Left) {
                replicas.push(Box::new(Seen { world: self, peer, group, seed }));
            }
        }
        replicas
    }

    fn wanted(&self, group: GroupId) -> usize {
        self.catalog.wished(group).replicas.min(self.staying().len())
    }

    fn staying(&self) -> Vec<Machine> {
        let there = |stage| matches!(stage, Stage::Up | Stage::Down);
        self.peers.iter().filter(|(_, peer)| there(peer.stage)).map(|(peer, _)| peer).collect()
    }

    fn robbed(&self, group: GroupId) -> Vec<(u64, u64)> {
        self.robbed.get(&group).into_iter().flatten().map(|(replica, through)| (*replica, *through)).collect()
    }

    fn healed(&self) -> bool {
        self.healed
    }
}
