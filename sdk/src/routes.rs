//! What a client remembers of where things live. All of it is hints: a wrong one costs a redirect.

use std::collections::HashMap;

use canal_proto::PeerId;
use canal_proto::peer::Replica;
use canal_proto::request::Route;
use parking_lot::Mutex;

use crate::Error;
use crate::pool::Place;

/// Routes remembered: more topics than most clients touch; what is used least is asked for again.
const MAX_ROUTES: usize = 1024;

#[derive(Default)]
pub(crate) struct Routes(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    by_name: HashMap<String, (u64, Route)>,
    clock: u64,
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
        inner.by_name.insert(name.to_owned(), (now, route));
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

    /// A replica said who leads, and who the replicas are, as far as it knows.
    pub(crate) fn redirect(&self, name: &str, error: &Error) {
        if let Some((_, route)) = self.0.lock().by_name.get_mut(name) {
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
