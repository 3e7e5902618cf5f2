//! What one peer knows of routes: the records that it stores for the DHT, and those that it has looked up.
//!
//! Shared by the Kademlia behaviour, the driver and its handles; cheap to clone. Each lock is held for one operation
//! on memory, and never while another is taken.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use canal_proto::MeshId;
use canal_proto::error::WireError;
use canal_proto::request::Route;

use crate::core::cache::{CORRECTED_LIFE_MS, Cache, route_of};
use crate::core::record::Verified;
use crate::core::table::{Accepted, Refused, Table};

/// The routes that one peer knows.
#[derive(Clone)]
pub struct Routes(Arc<Shared>);

struct Shared {
    table: Mutex<Table>,
    cache: Mutex<Cache>,
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routes").field("records", &self.records()).finish_non_exhaustive()
    }
}

impl Routes {
    /// No routes yet. `mesh` is the mesh whose records are stored, [`None`] as long as the peer has joined none;
    /// `clock` tells milliseconds since 1970-01-01 UTC.
    pub fn new(mesh: Option<MeshId>, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self::with_table(Table::new(mesh), clock)
    }

    /// No routes yet, with a table that has other bounds.
    pub fn with_table(table: Table, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let shared = Shared { table: Mutex::new(table), cache: Mutex::default(), clock: Box::new(clock) };
        Self(Arc::new(shared))
    }

    /// Joins a mesh. What is known of another one goes.
    pub fn join(&self, mesh: MeshId) {
        let moved = self.mesh() != Some(mesh);
        self.table().join(mesh);
        if moved {
            self.cache().clear();
        }
    }

    /// The mesh whose records are stored.
    pub fn mesh(&self) -> Option<MeshId> {
        self.table().mesh()
    }

    /// How many records are stored for the DHT.
    pub fn records(&self) -> usize {
        let now_ms = self.now_ms();
        let mut table = self.table();
        table.expire(now_ms);
        table.len()
    }

    /// How many records were refused since the start, by reason.
    pub fn refused(&self) -> BTreeMap<Refused, u64> {
        self.table().refused().clone()
    }

    /// The newest route that is known here without asking anybody: `local` when this peer stores the record, else
    /// `cache`.
    pub fn known(&self, namespace: &str, name: &str) -> Option<Route> {
        let now_ms = self.now_ms();
        let stored = self.mesh().and_then(|mesh| {
            let key = canal_proto::route::key(mesh, namespace, name);
            self.table().get(&key, now_ms).map(|record| route_of(record, "local"))
        });
        let cached = self.cache().get(namespace, name, now_ms).cloned();
        match (stored, cached) {
            // a redirect is newer than the record of the same epoch that it corrects
            (Some(stored), Some(cached)) if (stored.topic, stored.epoch) > (cached.topic, cached.epoch) => Some(stored),
            (stored, cached) => cached.or(stored),
        }
    }

    /// Replaces the route of a name by what a peer of its group says.
    pub fn correct(&self, namespace: &str, name: &str, route: Route) {
        let now_ms = self.now_ms();
        let expires_ms = now_ms.saturating_add(CORRECTED_LIFE_MS);
        self.cache().correct(namespace, name, route, now_ms, expires_ms);
    }

    /// Follows a redirect (`NotLeader`, `NotHere`): the route of a name has the leader and the replicas that the
    /// error names. Says whether it helped; if not, look the name up afresh.
    pub fn redirect(&self, namespace: &str, name: &str, error: &WireError) -> bool {
        let Some(mut route) = self.known(namespace, name) else {
            return false;
        };
        if error.leader.is_none() && error.replicas.is_empty() {
            return false;
        }
        if !error.replicas.is_empty() {
            route.replicas.clone_from(&error.replicas);
        }
        route.leader = 0;
        if let Some(leader) = &error.leader {
            route.leader = leader.id;
            if !route.replicas.iter().any(|replica| replica.id == leader.id) {
                route.replicas.push(leader.clone());
            }
        }
        self.correct(namespace, name, route);
        true
    }

    /// Forgets what was looked up of a name: it led nowhere.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.cache().forget(namespace, name);
    }

    pub(crate) fn learn(&self, found: &Verified) {
        let now_ms = self.now_ms();
        self.cache().learn(found, now_ms);
    }

    pub(crate) fn put(&self, key: &[u8], bytes: &[u8]) -> Result<Accepted, Refused> {
        let now_ms = self.now_ms();
        self.table().put(key, bytes, now_ms)
    }

    pub(crate) fn now_ms(&self) -> u64 {
        (self.0.clock)()
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        // both maps are whole between any two statements that can panic, so a poisoned lock is as good as another
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.0.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
