//! The rooms of simulated peers: what the node does around the cores where it leads, around the same cores.
//!
//! The world makes one [`Place`] for each start of a peer; rooms of that peer share it. [`make`] is called when a replica
//! on it begins to lead (the rooms live until it does not lead that term any more), [`of_replica`] when a replica comes to life there or
//! is opened again, [`of_peer`] once a start.

use std::cell::RefCell;
use std::rc::Rc;

use super::around::{Actor, Around, Machine};
use super::dht::Identities;

pub mod functions;
pub mod gossip;
pub mod membership;
pub mod outbox;
pub mod routes;
pub mod spec;
pub mod tidy;
mod timer;

#[cfg(test)]
mod testing;

/// One start of a peer, as its rooms see it. It is memory: the next start gets a new one.
#[derive(Clone)]
pub struct Place {
    /// The peer.
    pub peer: Machine,
    /// Who is who.
    pub identities: Rc<Identities>,
    /// What the catalog says.
    pub catalog: Rc<spec::Catalog>,
    /// What is known here of other peers.
    known: Rc<RefCell<gossip::Heard>>,
}

impl Place {
    /// A peer that has just started.
    pub fn new(peer: Machine, identities: Rc<Identities>, catalog: Rc<spec::Catalog>) -> Self {
        Self { peer, identities, catalog, known: Rc::default() }
    }
}

/// A room with its name.
pub type Room = (&'static str, Box<dyn Actor>);

/// The rooms of a group that is led here: for each leadership anew.
pub fn make(place: &Place, around: &mut dyn Around) -> Vec<Room> {
    let Some(status) = around.replica().map(|here| here.status()) else { return Vec::new() };
    vec![
        ("spec", Box::new(spec::Room::new(place, &status))),
        ("routes", Box::new(routes::Room::new(place, &status))),
        ("membership", Box::new(membership::Room::new(place))),
        ("outbox", Box::new(outbox::Room::new(place, &status))),
        ("functions", Box::new(functions::Room::new(place, &status))),
    ]
}

/// The rooms of every replica, led or not.
pub fn of_replica(place: &Place, _: &mut dyn Around) -> Vec<Room> {
    vec![("tidy", Box::new(tidy::Room::new(place)))]
}

/// The rooms of every peer; they have no replica.
pub fn of_peer(place: &Place, _: &mut dyn Around) -> Vec<Room> {
    vec![("gossip", Box::new(gossip::Room::new(place)))]
}
