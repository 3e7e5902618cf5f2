//! What a client remembers of where things live. All of it is hints: a wrong one costs a redirect.

use std::collections::{HashMap, VecDeque};

use canal_proto::PeerId;
use canal_proto::peer::Replica;
use canal_proto::request::Route;
use parking_lot::Mutex;

use crate::Error;
use crate::pool::Place;

/// Routes remembered: more topics than most clients touch; what is used least is asked for again.
const MAX_ROUTES: usize = 1024;

/// Peers remembered beside routes: enough to find one alive after several have gone.
const MAX_MET: usize = 32;

#[derive(Default)]
pub(crate) struct Routes(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    by_name: HashMap<String, (u64, Route)>,
    clock: u64,
    /// Replicas heard of, the latest last: where the mesh can be entered when the addresses given are dead.
    met: VecDeque<Place>,
}

impl Inner {
    fn meet(&mut self, replicas: &[Replica]) {
        for place in replicas.iter().filter_map(Place::replica) {
            self.met.retain(|other| !other.same(&place));
            if self.met.len() >= MAX_MET {
                self.met.pop_front();
            }
            self.met.push_back(place);
        }
    }
}

impl Routes {
    pub(crate) fn get(&self, name: &str) -> Option<Route> {
        let mut inner = self.0.lock();
        inner.clock += 1;
        let now = inner.clock;
        let (used, route) = inner.by_name.get_mut(name)?;
        *used = now;
        Some(route.clone())
    }

    pub(crate) fn put(&self, name: &str, route: Route) {
        let mut inner = self.0.lock();
        inner.clock += 1;
        let now = inner.clock;
        if !inner.by_name.contains_key(name) && inner.by_name.len() >= MAX_ROUTES {
            let oldest = inner.by_name.iter().min_by_key(|(_, (used, _))| *used).map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                inner.by_name.remove(&oldest);
            }
        }
        inner.meet(&route.replicas);
        inner.by_name.insert(name.to_owned(), (now, route));
    }

    /// Peers heard of, the latest first.
    pub(crate) fn met(&self) -> Vec<Place> {
        self.0.lock().met.iter().rev().cloned().collect()
    }

    pub(crate) fn forget(&self, name: &str) {
        self.0.lock().by_name.remove(name);
    }

    /// This peer answered as the leader.
    pub(crate) fn leads(&self, name: &str, peer: PeerId) {
        if let Some((_, route)) = self.0.lock().by_name.get_mut(name) {
            let leader = route.replicas.iter().find(|replica| replica.peer == peer.public_key());
            route.leader = leader.map_or(0, |replica| replica.id);
        }
    }

    /// This peer can't be reached, or stays silent: whoever else there is should be asked before it.
    pub(crate) fn suspect(&self, name: &str, peer: PeerId) {
        if let Some((_, route)) = self.0.lock().by_name.get_mut(name) {
            route.replicas.sort_by_key(|replica| replica.peer == peer.public_key());
            if route.replicas.last().is_some_and(|last| last.peer == peer.public_key() && last.id == route.leader) {
                route.leader = 0;
            }
        }
    }

    /// A replica said who leads, and who the replicas are, as far as it knows.
    pub(crate) fn redirect(&self, name: &str, error: &Error) {
        let mut inner = self.0.lock();
        inner.meet(&error.replicas);
        if let Some((_, route)) = inner.by_name.get_mut(name) {
            if !error.replicas.is_empty() {
                route.replicas.clone_from(&error.replicas);
            }
            route.leader = error.leader.as_ref().map_or(0, |leader| leader.id);
            if let Some(leader) = &error.leader
                && !route.replicas.iter().any(|replica| replica.id == leader.id)
            {
                route.replicas.push(leader.clone());
            }
        }
    }
}

/// The replicas of a route, the leader first if it is known.
pub(crate) fn places(route: &Route) -> Vec<Place> {
    let mut replicas: Vec<&Replica> = route.replicas.iter().collect();
    replicas.sort_by_key(|replica| replica.id != route.leader);
    replicas.into_iter().filter_map(Place::replica).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;
    use canal_proto::Code;

    fn replica(id: u64) -> Replica {
        Replica { id, peer: vec![u8::try_from(id).unwrap(); 32], addresses: vec![format!("p{id}")] }
    }

    fn route(leader: u64) -> Route {
        Route { replicas: (1..4).map(replica).collect(), leader, ..Route::default() }
    }

    fn order(routes: &Routes) -> Vec<String> {
        places(&routes.get("t").unwrap()).into_iter().flat_map(|place| place.addresses).collect()
    }

    #[test]
    fn the_leader_comes_first_and_redirects_correct_it() {
        let routes = Routes::default();
        routes.put("t", route(3));
        assert_eq!(order(&routes), ["p3", "p1", "p2"]);
        routes.leads("t", PeerId::from_public_key([2; 32]));
        assert_eq!(order(&routes), ["p2", "p1", "p3"]);
        let mut error = Error::new(Code::NotLeader, "");
        error.leader = Some(replica(9));
        routes.redirect("t", &error);
        assert_eq!(order(&routes), ["p9", "p1", "p2", "p3"]);
        routes.suspect("t", PeerId::from_public_key([9; 32]));
        routes.suspect("t", PeerId::from_public_key([1; 32]));
        assert_eq!(order(&routes), ["p2", "p3", "p9", "p1"]);
    }

    #[test]
    fn what_is_used_least_is_forgotten_first() {
        let routes = Routes::default();
        for n in 0..MAX_ROUTES {
            routes.put(&n.to_string(), route(1));
        }
        assert!(routes.get("0").is_some());
        routes.put("one more", route(1));
        assert!(routes.get("0").is_some() && routes.get("1").is_none());
    }
}
