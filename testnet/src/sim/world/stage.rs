//! What actors see of the world, and when they come and go.

use canal_consensus::Status;
use canal_consensus::core::group::{Input, Ticket};
use canal_consensus::core::kv::MemoryKv;
use canal_consensus::view::Source;
use canal_proto::event::Stored;
use canal_proto::log::Kind as CommandKind;
use canal_proto::peer::Seed;
use canal_proto::{GroupId, PeerId, TopicId};

use super::{ActorId, Asked, Call, Event, PATIENCE, PeerContent, Slot, World};
use crate::sim::around::{Actor, Around, Ask, Failed, Here, Machine, Token};
use crate::sim::peer::{Inbound, Waiter};
use crate::sim::rng::Rng;
use crate::sim::rooms;
use crate::sim::seen::Seen;
use crate::sim::setup::{Setup, Wish};

/// Bytes of events that a room reads at a time.
const READ_BYTES: usize = 1 << 20;

/// The world as one actor sees it.
struct Stage<'a> {
    world: &'a mut World,
    actor: ActorId,
    rng: Rng,
    machine: Machine,
    group: Option<GroupId>,
}

impl World {
    /// An actor begins to live.
    pub(super) fn hire(
        &mut self,
        name: &'static str,
        actor: Box<dyn Actor>,
        machine: Machine,
        group: Option<GroupId>,
    ) -> ActorId {
        let id = self.next_actor;
        self.next_actor += 1;
        let rng = self.rng.fork(1_000 + id as u64);
        self.actors.insert(id, Slot { actor: Some(actor), rng, name, machine, group });
        self.calls.push_back(Call::Wake(id));
        id
    }

    /// An actor's life is over.
    pub(in crate::sim) fn dismiss(&mut self, actor: ActorId) {
        self.actors.remove(&actor);
    }

    fn rooms(
        &mut self,
        peer: Machine,
        group: Option<GroupId>,
        make: impl FnOnce(&rooms::Place, &mut dyn Around) -> Vec<rooms::Room>,
    ) -> Vec<ActorId> {
        let Some(place) = self.peers[peer].live.as_ref().map(|live| live.place.clone()) else { return Vec::new() };
        let rng = self.rng.fork(500_000 + self.next_actor as u64);
        let actor = self.next_actor;
        let rooms = make(&place, &mut Stage { world: self, actor, rng, machine: peer, group });
        rooms.into_iter().map(|(name, room)| self.hire(name, room, peer, group)).collect()
    }

    /// The rooms of a peer come with its process.
    pub(in crate::sim) fn hire_peer(&mut self, peer: Machine) {
        let rooms = self.rooms(peer, None, rooms::of_peer);
        if let Some(live) = self.peers[peer].live.as_mut() {
            live.rooms = rooms;
        }
    }

    /// The rooms of a replica come when it comes to life.
    pub(in crate::sim) fn hire_replica(&mut self, peer: Machine, group: GroupId) {
        let rooms = self.rooms(peer, Some(group), rooms::of_replica);
        if let Some(member) = self.member(peer, group) {
            member.rooms = rooms;
        }
    }

    /// The rooms of a leader come when it begins to lead.
    pub(in crate::sim) fn hire_leader(&mut self, peer: Machine, group: GroupId) {
        let rooms = self.rooms(peer, Some(group), rooms::make);
        if let Some(member) = self.member(peer, group) {
            member.led = rooms;
        }
    }

    /// Tells an actor something.
    pub(super) fn call(&mut self, call: Call) {
        let id = match &call {
            Call::Wake(id) | Call::Answered(id, ..) | Call::Proposed(id, ..) => *id,
        };
        let Some(slot) = self.actors.get_mut(&id) else { return };
        let Some(mut actor) = slot.actor.take() else { return };
        let (rng, machine, group) = (slot.rng.clone(), slot.machine, slot.group);
        let mut stage = Stage { world: self, actor: id, rng, machine, group };
        match call {
            Call::Wake(_) => actor.wake(&mut stage),
            Call::Answered(_, token, answer) => actor.answered(token, *answer, &mut stage),
            Call::Proposed(_, token, reply) => {
                stage.world.tally.proposed(&reply);
                actor.proposed(token, *reply, &mut stage);
            }
        }
        let rng = stage.rng;
        // it may have gone in the meantime
        if let Some(slot) = self.actors.get_mut(&id) {
            slot.actor = Some(actor);
            slot.rng = rng;
        }
        if machine < self.peers.len() {
            self.turn(machine);
        }
    }
}

impl Stage<'_> {
    fn input_to(&mut self, input: Input) {
        let Some(group) = self.group else { return };
        if let Some(live) = self.world.peers[self.machine].live.as_mut() {
            live.inbox.push_back(Inbound::Input(group, Box::new(input)));
        }
    }
}

impl Around for Stage<'_> {
    fn now_ms(&self) -> u64 {
        let clock = if self.machine < self.world.peers.len() {
            self.world.peers[self.machine].clock
        } else {
            self.world.clocks.get(self.machine).copied().unwrap_or_default()
        };
        clock.now_ms(self.world.now)
    }

    fn mono_ms(&self) -> u64 {
        self.world.clocks.get(self.machine).copied().unwrap_or_default().mono_ms(self.world.now)
    }

    fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    fn peers(&self) -> usize {
        self.world.joined
    }

    fn machine(&self) -> Machine {
        self.machine
    }

    fn peer_id(&self, peer: Machine) -> PeerId {
        self.world.identities.id(peer)
    }

    fn machine_of(&self, peer: &PeerId) -> Option<Machine> {
        self.world.identities.machine(*peer)
    }

    fn setup(&self) -> &Setup {
        &self.world.setup
    }

    fn wish(&self, group: GroupId) -> Wish {
        self.world.catalog.wished(group)
    }

    fn ask(&mut self, token: Token, to: Machine, ask: Ask) {
        let world = &mut *self.world;
        world.next_ask += 1;
        let id = world.next_ask;
        world.asks.insert(id, Asked { actor: self.actor, token, from: self.machine });
        if to < world.peers.len() {
            // requests go over ordered streams: they are lost with their connection, but never come twice
            let [first, _] = world.network.send(self.machine, to, world.now);
            let question = Box::new(ask);
            if let Some(first) = first {
                world.queue.push(first, Event::Ask { ask: id, to, question });
            }
        }
        let answer = Box::new(Err(Failed::Silence));
        world.queue.push(world.now + PATIENCE, Event::Answer { ask: id, answer });
    }

    fn wake_in(&mut self, ms: u64) {
        self.world.queue.push(self.world.now + ms * 1000, Event::Wake(self.actor));
    }

    fn see(&mut self, seen: Seen) {
        self.world.see(seen);
    }

    fn replica(&mut self) -> Option<&mut dyn Here> {
        let group = self.group?;
        self.world.member(self.machine, group)?;
        Some(self)
    }
}

#[expect(clippy::panic, reason = "it is handed out only while the replica is there, and nothing removes it in between")]
impl Here for Stage<'_> {
    fn status(&self) -> Status {
        let live = self.world.peers[self.machine].live.as_ref();
        match self.group.and_then(|group| live?.members.get(&group)) {
            Some(member) => member.group.status(),
            None => panic!("a room asked for a replica that is gone"),
        }
    }

    fn seed(&self) -> Seed {
        let live = self.world.peers[self.machine].live.as_ref();
        match self.group.and_then(|group| live?.members.get(&group)) {
            Some(member) => member.group.seed().clone(),
            None => panic!("a room asked for a replica that is gone"),
        }
    }

    fn kv(&self) -> &MemoryKv {
        self.world.peers[self.machine].disk.rows.open_ref(self.group.unwrap_or_default())
    }

    fn events(&self, topic: TopicId, from: u64, max: usize) -> Vec<Stored> {
        let disk = &self.world.peers[self.machine].disk;
        let source = Source { group: self.group.unwrap_or_default(), kv: self.kv(), content: &PeerContent(disk) };
        source.events(topic, from, max, READ_BYTES).unwrap_or_default()
    }

    fn silent_ms(&self, replica: u64) -> u64 {
        let live = self.world.peers[self.machine].live.as_ref();
        let member = self.group.and_then(|group| live?.members.get(&group));
        member.map_or(0, |member| (self.world.now - member.heard.get(&replica).unwrap_or(&member.opened)) / 1000)
    }

    fn propose(&mut self, token: Token, kind: CommandKind) {
        self.request(token, Box::new(|ticket| Input::Propose(ticket, Box::new(kind))));
    }

    fn request(&mut self, token: Token, make: Box<dyn FnOnce(Ticket) -> Input>) {
        let (actor, Some(group)) = (self.actor, self.group) else { return };
        let Some(live) = self.world.peers[self.machine].live.as_mut() else { return };
        let ticket = live.ticket(group, Waiter::Room(actor, token));
        self.input_to(make(ticket));
    }

    fn input(&mut self, input: Input) {
        self.input_to(input);
    }
}
