//! What a peer remembers of routes that it has looked up, so that steady state costs no DHT traffic.
//!
//! Entries are hints. They end with the life of the record they came from; a redirect corrects one before; one that
//! led nowhere is forgotten. The cache is bounded: when it is full, what would end soonest goes.

use std::collections::{BTreeMap, BTreeSet};

use canal_proto::request::Route;

use super::record::Verified;

/// Routes remembered at once: those that one peer's clients and functions use, of half a KiB each.
pub const MAX_CACHED: usize = 4096;
/// How long a corrected route is believed: like a published one of usual life, since nothing says how old it is.
pub const CORRECTED_LIFE_MS: u64 = 60_000;

type Name = (String, String);

/// The cache.
#[derive(Debug)]
pub struct Cache {
    max: usize,
    routes: BTreeMap<Name, (u64, Route)>,
    /// The same by end of life, soonest first.
    ends: BTreeSet<(u64, Name)>,
}

impl Default for Cache {
    fn default() -> Self {
        Self::with_bound(MAX_CACHED)
    }
}

impl Cache {
    /// An empty cache with another bound than [`MAX_CACHED`].
    pub fn with_bound(max: usize) -> Self {
        Self { max: max.max(1), routes: BTreeMap::new(), ends: BTreeSet::new() }
    }

    /// Remembers a record that was found, unless something newer is remembered.
    pub fn learn(&mut self, found: &Verified, now_ms: u64) {
        let record = found.route();
        self.correct(&record.namespace, &record.name, route_of(found, "cache"), now_ms, found.expires_ms());
    }

    /// Replaces a route by what a redirect says, until `expires_ms`, unless something newer is remembered.
    pub fn correct(&mut self, namespace: &str, name: &str, route: Route, now_ms: u64, expires_ms: u64) {
        let id = (namespace.to_owned(), name.to_owned());
        if self.get(namespace, name, now_ms).is_some_and(|known| order(known) > order(&route)) {
            return;
        }
        self.forget(namespace, name);
        self.expire(now_ms);
        while self.routes.len() >= self.max {
            let Some((_, (namespace, name))) = self.ends.first().cloned() else {
                break;
            };
            self.forget(&namespace, &name);
        }
        self.ends.insert((expires_ms, id.clone()));
        self.routes.insert(id, (expires_ms, Route { source: "cache".to_owned(), ..route }));
    }

    /// The route of a name, if one is remembered and lives at `now_ms`.
    pub fn get(&self, namespace: &str, name: &str, now_ms: u64) -> Option<&Route> {
        let (expires_ms, route) = self.routes.get(&(namespace.to_owned(), name.to_owned()))?;
        (*expires_ms > now_ms).then_some(route)
    }

    /// Forgets the route of a name: it led nowhere.
    pub fn forget(&mut self, namespace: &str, name: &str) {
        if let Some((id, (expires_ms, _))) = self.routes.remove_entry(&(namespace.to_owned(), name.to_owned())) {
            self.ends.remove(&(expires_ms, id));
        }
    }

    /// Forgets everything: the peer has joined another mesh.
    pub fn clear(&mut self) {
        self.routes.clear();
        self.ends.clear();
    }

    /// How many routes are remembered.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    fn expire(&mut self, now_ms: u64) {
        while let Some((_, (namespace, name))) = self.ends.first().filter(|(ends, _)| *ends <= now_ms).cloned() {
            self.forget(&namespace, &name);
        }
    }
}

/// Of two routes for one name, the one that is larger here is newer.
fn order(route: &Route) -> (u64, u64) {
    (route.topic, route.epoch)
}

/// A record as an answer to a client, with how it was found.
pub fn route_of(found: &Verified, source: &str) -> Route {
    let record = found.route();
    Route {
        topic: record.topic,
        group: record.group,
        epoch: record.epoch,
        replicas: record.replicas.clone(),
        leader: record.leader,
        source: source.to_owned(),
    }
}

#[cfg(test)]
mod tests;
