//! Gossip: what a peer has heard of the others, which placement and publication need.
//!
//! The real exchange of descriptions ([`canal_topology::Known`]) hears of peers through others as well; here each asks the
//! others itself, some at a time. So a peer that another can't reach is no candidate for it, which is the harder case.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use canal_proto::peer::{PeerInfo, Tier};

use super::Place;
use super::timer::Timer;
use crate::sim::around::{Actor, Answer, Around, Ask, Failed, Machine, Token};
use crate::sim::dht::Identities;

/// How often others are asked.
const ROUND_MS: u64 = 2000;
/// Peers that are asked in a round: in the largest mesh each is asked well before [`LOST_MS`].
const AT_ONCE: usize = 14;
/// A peer that was not heard of for this long is no candidate for replicas, as in the node.
const LOST_MS: u64 = canal_topology::known::LOST_MS;
/// Sites: peers are spread over them.
const SITES: usize = 3;

/// What a peer says of itself.
pub fn describe(peer: Machine, identities: &Identities, replicas: usize, draining: bool) -> PeerInfo {
    PeerInfo {
        peer: identities.id(peer).to_vec(),
        tier: Tier::Edge.into(),
        site: format!("site-{}", peer % SITES),
        cpus: 4,
        memory: 8 << 30,
        replicas: u32::try_from(replicas).unwrap_or(u32::MAX),
        draining,
        ..PeerInfo::default()
    }
}

/// What a peer has heard of the others, itself included.
#[derive(Debug, Default)]
pub struct Heard {
    peers: BTreeMap<Machine, (u64, PeerInfo)>,
}

impl Heard {
    /// Those that were heard of lately; `now` is the clock that never jumps.
    pub fn live(&self, now: u64) -> impl Iterator<Item = (Machine, &PeerInfo)> {
        let lately = move |heard: u64| now.saturating_sub(heard) < LOST_MS;
        self.peers.iter().filter(move |(_, (heard, _))| lately(*heard)).map(|(peer, (_, info))| (*peer, info))
    }

    /// The last that was heard of a peer.
    pub fn told(&self, peer: Machine) -> Option<&PeerInfo> {
        self.peers.get(&peer).map(|(_, info)| info)
    }

    /// Something was heard of a peer.
    pub fn hear(&mut self, peer: Machine, info: PeerInfo, now: u64) {
        self.peers.insert(peer, (now, info));
    }
}

/// Asks the others how they stand.
pub struct Room {
    peer: Machine,
    known: Rc<RefCell<Heard>>,
    next: Machine,
    round: u64,
    timer: Timer,
}

impl Room {
    /// Of a peer that has just started.
    pub fn new(place: &Place) -> Self {
        Self { peer: place.peer, known: place.known.clone(), next: 0, round: 0, timer: Timer::default() }
    }
}

impl Actor for Room {
    fn wake(&mut self, around: &mut dyn Around) {
        let now = around.mono_ms();
        if now >= self.round {
            self.round = now + ROUND_MS;
            let peers = around.peers();
            for _ in 0..AT_ONCE.min(peers) {
                self.next = (self.next + 1) % peers;
                // this peer as well: how many replicas it holds matters to placement
                around.ask(self.next as Token, self.next, Ask::Describe);
            }
        }
        self.timer.wake_at(self.round, around);
    }

    fn answered(&mut self, token: Token, answer: Result<Answer, Failed>, around: &mut dyn Around) {
        if let (Ok(Answer::Peer(info)), Ok(peer)) = (answer, Machine::try_from(token)) {
            self.known.borrow_mut().hear(peer, *info, around.mono_ms());
        }
    }

    fn describe(&self) -> String {
        let known: Vec<_> = self.known.borrow().peers.keys().copied().collect();
        format!("gossip of peer {}: has heard of {known:?}", self.peer)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;
    use crate::sim::rooms::testing::World;

    #[test]
    fn who_answers_is_live_for_a_while() {
        let mut world = World::new();
        let place = world.place(0);
        let mut room = Room::new(&place);
        room.wake(&mut world);
        room.wake(&mut world);
        let asked: Vec<Machine> = world.asks.drain(..).map(|(_, to, _)| to).collect();
        assert_eq!(asked, [1, 2, 3, 4, 0]);
        let info = describe(3, &world.identities, 2, false);
        room.answered(3, Ok(Answer::Peer(Box::new(info.clone()))), &mut world);
        room.answered(1, Err(Failed::Silence), &mut world);
        assert_eq!(place.known.borrow().live(world.mono).collect::<Vec<_>>(), [(3, &info)]);
        world.pass(LOST_MS);
        assert_eq!(place.known.borrow().live(world.mono).count(), 0);
        assert_eq!(place.known.borrow().told(3), Some(&info));
        room.wake(&mut world);
        assert_eq!(world.asks.len(), 5);
    }
}
