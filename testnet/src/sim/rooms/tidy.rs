//! Tidying up, as in the node: a replica that its group has let go destroys itself, and no other does.
//!
//! It is not believed when it merely hears of no leader: it asks the group's other replicas, and goes only when one of
//! them has a configuration in which ids up to its own were used and its own is not named.

use std::collections::BTreeSet;
use std::rc::Rc;

use canal_consensus::Status;
use canal_proto::peer::Replica;
use canal_proto::{GroupId, route};

use super::Place;
use super::timer::Timer;
use crate::sim::around::{Actor, Answer, Around, Ask, Failed, Machine, Token};
use crate::sim::dht::Identities;

/// How long a replica hears of no leader before it asks whether it still belongs to the group.
const ALONE_MS: u64 = 10_000;
/// How often it looks.
const LOOK_MS: u64 = 1000;
/// How often it asks.
const AGAIN_MS: u64 = 10_000;
/// Peers that are asked in one go: a group's replicas, and as many that took their places.
const MAX_ASKED: usize = 2 * canal_proto::limits::MAX_REPLICAS;

/// Watches one replica for as long as it is there.
pub struct Room {
    peer: Machine,
    identities: Rc<Identities>,
    /// When it last heard of a leader, and belonged to the group; when it last asked.
    heard: Option<u64>,
    asked: Option<u64>,
    /// Who was asked in this go, and how many have yet to answer.
    going: BTreeSet<Machine>,
    waiting: usize,
    looked_up: bool,
    /// Names the go that a question belongs to.
    tokens: Token,
    timer: Timer,
}

impl Room {
    /// Of a replica on this peer.
    pub fn new(place: &Place) -> Self {
        Self {
            peer: place.peer,
            identities: place.identities.clone(),
            heard: None,
            asked: None,
            going: BTreeSet::new(),
            waiting: 0,
            looked_up: false,
            tokens: 0,
            timer: Timer::default(),
        }
    }

    fn look(&mut self, status: &Status, silent_ms: u64, now: u64) -> bool {
        let named = status.configuration.replicas.iter().any(|replica| replica.id == status.replica);
        let hears = status.leader == status.replica || (status.leader != 0 && silent_ms < ALONE_MS);
        // one that a snapshot is being written to does not listen meanwhile
        if self.heard.is_none() || (hears && named) || status.installing {
            self.heard = Some(now);
        }
        let alone = !named || self.heard.is_some_and(|heard| now.saturating_sub(heard) >= ALONE_MS);
        alone && self.asked.is_none_or(|asked| now.saturating_sub(asked) >= AGAIN_MS)
    }

    fn ask(&mut self, group: GroupId, replicas: &[Replica], around: &mut dyn Around) {
        for peer in replicas.iter().filter_map(|replica| self.identities.holder(replica)) {
            if peer != self.peer && self.going.len() < MAX_ASKED && self.going.insert(peer) {
                self.waiting += 1;
                around.ask(self.tokens, peer, Ask::Standing(group));
            }
        }
        if self.waiting == 0 && !self.looked_up {
            // whoever took over may be none of those that are known here
            self.looked_up = true;
            self.waiting += 1;
            around.ask(self.tokens, self.peer, Ask::Afresh(route::group_name(group)));
        }
    }
}

impl Actor for Room {
    fn wake(&mut self, around: &mut dyn Around) {
        let now = around.mono_ms();
        let Some(here) = around.replica() else { return };
        let status = here.status();
        let silent_ms = here.silent_ms(status.leader);
        if self.look(&status, silent_ms, now) {
            self.asked = Some(now);
            self.tokens += 1;
            self.going.clear();
            self.waiting = 0;
            self.looked_up = false;
            self.ask(status.group, &status.configuration.replicas, around);
        }
        self.timer.wake_at(now + LOOK_MS, around);
    }

    fn answered(&mut self, token: Token, answer: Result<Answer, Failed>, around: &mut dyn Around) {
        if token != self.tokens {
            return;
        }
        self.waiting = self.waiting.saturating_sub(1);
        let Some(here) = around.replica() else { return };
        let Status { group, replica, .. } = here.status();
        let told = match answer {
            Ok(Answer::Standing(last_id, replicas)) => {
                if last_id >= replica && !replicas.iter().any(|named| named.id == replica) {
                    self.tokens += 1;
                    return around.ask(0, self.peer, Ask::Remove(group, replica));
                }
                replicas
            }
            Ok(Answer::Route(route)) => route.replicas,
            _ => Vec::new(),
        };
        self.ask(group, &told, around);
    }

    fn describe(&self) -> String {
        format!("tidy on peer {}: last asked whether it belongs to the group at {:?}", self.peer, self.asked)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;
    use crate::sim::rooms::testing::World;

    #[test]
    fn only_a_later_configuration_without_it_lets_a_replica_go() {
        let mut world = World::new();
        let mut room = Room::new(&world.place(2));
        world.here.lead(3, 1, &[1, 2, 3]);
        room.wake(&mut world);
        world.pass(ALONE_MS + LOOK_MS);
        room.wake(&mut world);
        assert!(world.asks.is_empty(), "it hears of its leader");
        world.here.status.leader = 0;
        room.wake(&mut world);
        world.pass(ALONE_MS);
        room.wake(&mut world);
        let asked: Vec<Machine> = world.asks.drain(..).map(|(_, to, _)| to).collect();
        assert_eq!(asked, [0, 1]);
        let replicas = |ids: &[u64]| ids.iter().map(|id| world.identities.replica(*id, *id as usize - 1)).collect();
        let (named, later, older) = (replicas(&[1, 2, 3]), replicas(&[1, 2, 4]), replicas(&[1, 2]));
        room.answered(1, Ok(Answer::Standing(3, named)), &mut world);
        room.answered(1, Ok(Answer::Standing(2, older)), &mut world);
        // nobody else is known: the route is looked up
        let (token, to, Ask::Afresh(_)) = world.asks.remove(0) else { panic!("something else is asked") };
        assert_eq!(to, 2);
        let route = canal_proto::request::Route { replicas: later.clone(), ..Default::default() };
        room.answered(token, Ok(Answer::Route(route)), &mut world);
        let (token, to, Ask::Standing(_)) = world.asks.remove(0) else { panic!("something else is asked") };
        assert_eq!(to, 3);
        room.answered(token, Ok(Answer::Standing(4, later)), &mut world);
        assert!(matches!(world.asks.as_slice(), [(0, 2, Ask::Remove(_, 3))]));
    }
}
