//! The lookups that are under way.
//!
//! A lookup ends with the newest of the valid records that came in, not with the first: when enough peers have
//! answered with one, or a short while after the first answer, or when all peers near the key were asked. So a peer
//! that is slow or dead costs the short while, and one with an old record does not decide.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use canal_proto::MeshId;
use libp2p::kad::{self, GetRecordError, GetRecordOk, PeerRecord, QueryId, RecordKey};
use tokio::sync::oneshot;

use super::handle::LookupAsk;
use super::{Error, QUERY_TIMEOUT};
use crate::core::record::{self, Verified};
use crate::routes::Routes;
use crate::store::RouteStore;

/// Other peers whose valid records end a lookup: a stale one alone does not decide, and two may be down.
const ENOUGH_ANSWERS: usize = 3;
/// How long to wait for more after the first valid record: two round trips over a continent.
const SETTLE: Duration = Duration::from_millis(200);
/// Lookups of different names at once: each is a query that kad polls whenever it wakes.
const MAX_LOOKUPS: usize = 256;
/// Callers that share one lookup.
const MAX_WAITERS: usize = 1024;

type Reply = oneshot::Sender<Result<Verified, Error>>;

#[derive(Debug)]
struct Lookup {
    mesh: MeshId,
    query: QueryId,
    waiters: Vec<Reply>,
    best: Option<Verified>,
    /// Valid records from other peers.
    answers: usize,
    due: Instant,
}

/// The lookups that are under way.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    by_key: BTreeMap<[u8; 32], Lookup>,
    by_query: HashMap<QueryId, [u8; 32]>,
}

impl Lookups {
    /// Starts a lookup, or joins the one that runs for the same key.
    pub fn start(&mut self, kad: &mut kad::Behaviour<RouteStore>, ask: LookupAsk, now: Instant) {
        let LookupAsk { mesh, key, reply } = ask;
        if let Some(lookup) = self.by_key.get_mut(&key) {
            lookup.waiters.retain(|waiter| !waiter.is_closed());
            if lookup.waiters.len() < MAX_WAITERS {
                lookup.waiters.push(reply);
            } else {
                answer(reply, Err(Error::Busy));
            }
            return;
        }
        if self.by_key.len() >= MAX_LOOKUPS {
            answer(reply, Err(Error::Busy));
            return;
        }
        let query = kad.get_record(RecordKey::new(&key));
        self.by_query.insert(query, key);
        let waiters = vec![reply];
        self.by_key.insert(key, Lookup { mesh, query, waiters, best: None, answers: 0, due: now + QUERY_TIMEOUT });
    }

    /// Takes a step of a query.
    pub fn progress(
        &mut self,
        kad: &mut kad::Behaviour<RouteStore>,
        routes: &Routes,
        query: QueryId,
        result: Result<GetRecordOk, GetRecordError>,
        last: bool,
        now: Instant,
    ) {
        let Some(key) = self.by_query.get(&query).copied() else {
            return;
        };
        let otherwise = match result {
            Ok(GetRecordOk::FoundRecord(found)) => {
                if let Some(lookup) = self.by_key.get_mut(&key) {
                    lookup.take(&key, &found, routes.now_ms(), now);
                }
                Error::NotFound
            }
            Err(GetRecordError::Timeout { .. }) => Error::Timeout,
            _ => Error::NotFound,
        };
        let enough = self.by_key.get(&key).is_some_and(|lookup| lookup.answers >= ENOUGH_ANSWERS);
        if last || enough {
            self.finish(kad, routes, &key, otherwise);
        }
    }

    /// When the next lookup is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.by_key.values().map(|lookup| lookup.due).min()
    }

    /// Ends the lookups that are due.
    pub fn due(&mut self, kad: &mut kad::Behaviour<RouteStore>, routes: &Routes, now: Instant) {
        let due: Vec<[u8; 32]> =
            self.by_key.iter().filter(|(_, lookup)| lookup.due <= now).map(|(key, _)| *key).collect();
        for key in due {
            self.finish(kad, routes, &key, Error::Timeout);
        }
    }

    fn finish(&mut self, kad: &mut kad::Behaviour<RouteStore>, routes: &Routes, key: &[u8; 32], otherwise: Error) {
        let Some(lookup) = self.by_key.remove(key) else {
            return;
        };
        self.by_query.remove(&lookup.query);
        if let Some(mut query) = kad.query_mut(&lookup.query) {
            query.finish();
        }
        if let Some(best) = &lookup.best {
            routes.learn(best);
        }
        let result = lookup.best.ok_or(otherwise);
        for waiter in lookup.waiters {
            answer(waiter, result.clone());
        }
    }
}

impl Lookup {
    /// Takes a record that a peer, or this one's own store, has answered with.
    fn take(&mut self, key: &[u8; 32], found: &PeerRecord, now_ms: u64, now: Instant) {
        let verified = match record::open_at(key, &found.record.value, self.mesh, now_ms) {
            Ok(verified) => verified,
            Err(error) => {
                tracing::debug!(peer = ?found.peer, %error, "a peer answered with a bad route record");
                return;
            }
        };
        let left = found.record.expires.map(|ends| ends.saturating_duration_since(now));
        let left = left.and_then(|left| u64::try_from(left.as_millis()).ok()).unwrap_or(u64::MAX);
        let verified = verified.until(now_ms.saturating_add(left));
        self.answers += usize::from(found.peer.is_some());
        self.best = record::newest(self.best.take().into_iter().chain([verified]));
        self.due = self.due.min(now + SETTLE);
    }
}

/// Answers a caller; one that has gone away needs none.
fn answer<T>(reply: oneshot::Sender<T>, result: T) {
    let _ = reply.send(result);
}
