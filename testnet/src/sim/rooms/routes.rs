//! Routes, as in the node: the leader signs a record for each name of its group and puts it to the peers that are nearest
//! to its key, when it begins to lead, when something changes, and again before the records expire.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use canal_consensus::Status;
use canal_proto::route::{self, RouteRecord};

use super::Place;
use super::gossip::Heard;
use super::timer::Timer;
use crate::sim::around::{Actor, Answer, Around, Ask, Failed, Machine, Token};
use crate::sim::dht::{self, Identities, NAMESPACE};

/// How long a record may be believed.
const LIFE_MS: u64 = 300_000;
/// How often a record is published again: two may be lost before one expires.
const AGAIN_MS: u64 = 100_000;
/// Wait before what could not be published is tried again.
const RETRY_MS: u64 = 1000;
/// Records published at a time.
const AT_ONCE: usize = 8;

/// A name and its topic; 0 for the group itself.
type Name = (String, u64);

/// Publishes the group's routes for as long as it is led here.
pub struct Room {
    peer: Machine,
    identities: Rc<Identities>,
    known: Rc<RefCell<Heard>>,
    done: BTreeSet<Name>,
    running: BTreeMap<Name, Publication>,
    /// The publication of a question.
    asked: BTreeMap<Token, Name>,
    /// Names that could not be published, and when they are tried again.
    resting: BTreeMap<Name, u64>,
    epoch: u64,
    spec: u64,
    again: u64,
    tokens: Token,
    timer: Timer,
}

struct Publication {
    bytes: Bytes,
    key: [u8; 32],
    /// Questions that have yet to be answered.
    waiting: usize,
    others: bool,
    took: usize,
}

impl Room {
    /// Of a group that has begun to be led.
    pub fn new(place: &Place, status: &Status) -> Self {
        Self {
            peer: place.peer,
            identities: place.identities.clone(),
            known: place.known.clone(),
            done: BTreeSet::new(),
            running: BTreeMap::new(),
            asked: BTreeMap::new(),
            resting: BTreeMap::new(),
            epoch: status.epoch,
            spec: 0,
            again: 0,
            tokens: 0,
            timer: Timer::default(),
        }
    }

    fn begin(&mut self, name: Name, status: &Status, around: &mut dyn Around) {
        let record = RouteRecord {
            mesh: self.identities.mesh().to_vec().into(),
            namespace: NAMESPACE.into(),
            name: name.0.clone(),
            topic: name.1,
            group: status.group.0,
            epoch: status.epoch,
            replicas: status.configuration.replicas.clone(),
            leader: status.replica,
            issued_ms: around.now_ms(),
            life_ms: LIFE_MS,
        };
        let Ok(bytes) = dht::signed(&self.identities, self.peer, &record) else {
            // more replicas than a record may name, in the middle of a change: it is tried again
            self.resting.insert(name, around.mono_ms() + RETRY_MS);
            return;
        };
        let key = route::key(self.identities.mesh(), NAMESPACE, &name.0);
        let publication = Publication { bytes: bytes.clone(), key, waiting: 0, others: false, took: 0 };
        self.running.insert(name.clone(), publication);
        self.put(&name, vec![self.peer], around);
    }

    fn put(&mut self, name: &Name, to: Vec<Machine>, around: &mut dyn Around) {
        let Some(publication) = self.running.get_mut(name) else { return };
        for peer in to {
            self.tokens += 1;
            publication.waiting += 1;
            self.asked.insert(self.tokens, name.clone());
            around.ask(self.tokens, peer, Ask::Store(publication.bytes.clone()));
        }
    }

    fn end(&mut self, name: Name, well: bool, now: u64) {
        let Some(_) = self.running.remove(&name) else { return };
        self.asked.retain(|_, of| *of != name);
        if well {
            self.done.insert(name);
        } else {
            self.resting.insert(name, now + RETRY_MS);
        }
    }
}

/// The names of a group.
fn names(status: &Status) -> BTreeSet<Name> {
    let mut names: BTreeSet<_> = status.spec.topics.iter().map(|topic| (topic.name.clone(), topic.id)).collect();
    names.insert((route::group_name(status.group), 0));
    names
}

impl Actor for Room {
    fn wake(&mut self, around: &mut dyn Around) {
        let now = around.mono_ms();
        let Some(status) = around.replica().map(|here| here.status()) else { return };
        if self.epoch != status.epoch || now >= self.again {
            self.epoch = status.epoch;
            self.again = now + AGAIN_MS;
            self.done.clear();
            // what is on its way is late, and goes on
            self.running.clear();
            self.asked.clear();
            self.resting.clear();
        }
        self.spec = status.spec.version;
        let names = names(&status);
        self.done.retain(|name| names.contains(name));
        self.resting.retain(|name, until| names.contains(name) && *until > now);
        for name in names {
            let idle = !self.done.contains(&name) && !self.running.contains_key(&name);
            if idle && !self.resting.contains_key(&name) && self.running.len() < AT_ONCE {
                self.begin(name, &status, around);
            }
        }
        let rest = self.resting.values().copied().min().unwrap_or(self.again);
        self.timer.wake_at(rest.min(self.again), around);
    }

    fn answered(&mut self, token: Token, answer: Result<Answer, Failed>, around: &mut dyn Around) {
        let Some(name) = self.asked.remove(&token) else { return };
        let now = around.mono_ms();
        let Some(publication) = self.running.get_mut(&name) else { return };
        publication.waiting = publication.waiting.saturating_sub(1);
        let took = matches!(answer, Ok(Answer::Yes));
        if !publication.others {
            // its own table: what is refused there is not told to others
            if !took {
                self.end(name, false, now);
                return self.wake(around);
            }
            publication.others = true;
            let key = publication.key;
            let live: Vec<Machine> = self.known.borrow().live(now).map(|(peer, _)| peer).collect();
            let others = self.identities.nearest(&key, live.into_iter().filter(|peer| *peer != self.peer));
            let alone = others.is_empty();
            self.put(&name, others, around);
            if alone {
                // nobody is known yet; with one peer that is all there is, so it is not tried at once
                self.end(name, around.peers() == 1, now);
            }
        } else {
            // a peer that has a newer record takes this one and drops it: that is an answer as well
            publication.took += usize::from(answer.is_ok());
            if publication.waiting == 0 {
                let well = publication.took > 0;
                self.end(name, well, now);
            }
        }
        self.wake(around);
    }

    fn describe(&self) -> String {
        format!(
            "routes on peer {}: epoch {}, {} published, {} resting",
            self.peer,
            self.epoch,
            self.done.len(),
            self.resting.len()
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use canal_proto::route::SignedRoute;
    use prost::Message as _;

    use super::*;
    use crate::sim::rooms::{gossip, routes, testing::World};

    fn stores(world: &mut World) -> Vec<(Token, Machine, RouteRecord)> {
        let stores = world.asks.drain(..).map(|(token, to, ask)| {
            let Ask::Store(bytes) = ask else { panic!("something else is asked") };
            let signed = SignedRoute::decode(bytes).unwrap();
            (token, to, RouteRecord::decode(signed.record).unwrap())
        });
        stores.collect()
    }

    #[test]
    fn each_name_is_put_here_first_and_then_to_those_that_are_known() {
        let mut world = World::new();
        let place = world.place(0);
        world.here.lead(1, 1, &[1, 2, 3]);
        let mut room = routes::Room::new(&place, &world.here.status);
        for peer in [1, 2] {
            let info = gossip::describe(peer, &world.identities, 1, false);
            place.known.borrow_mut().hear(peer, info, world.mono);
        }
        room.wake(&mut world);
        let own = stores(&mut world);
        assert_eq!(
            own.iter().map(|(_, to, record)| (*to, record.name.as_str())).collect::<Vec<_>>(),
            [(0, "$group/0000000000000002")]
        );
        room.answered(own[0].0, Ok(Answer::Yes), &mut world);
        let others = stores(&mut world);
        assert_eq!(others.iter().map(|(_, to, _)| *to).collect::<BTreeSet<_>>(), BTreeSet::from([1, 2]));
        assert_eq!((others[0].2.epoch, others[0].2.leader), (world.here.status.epoch, 1));
        room.answered(others[0].0, Err(Failed::Silence), &mut world);
        room.answered(others[1].0, Ok(Answer::Yes), &mut world);
        room.wake(&mut world);
        assert!(world.asks.is_empty(), "it is published");
        world.pass(AGAIN_MS);
        room.wake(&mut world);
        assert_eq!(stores(&mut world).len(), 1, "it is published again");
        world.here.status.epoch += 1;
        room.wake(&mut world);
        let own = stores(&mut world);
        assert_eq!(own[0].2.epoch, world.here.status.epoch);
        room.answered(own[0].0, Ok(Answer::No), &mut world);
        assert!(world.asks.is_empty(), "what is refused here is not told to others, and tried again");
        world.pass(RETRY_MS);
        room.wake(&mut world);
        assert_eq!(stores(&mut world).len(), 1);
    }
}
