//! The publications that are under way.
//!
//! A record is put at once to the few known peers that are nearest to its key, and to the others near it when they
//! are found. Each gets a query of its own: kad's `put_record` puts nothing anywhere before the slowest peer
//! near the key has answered or timed out, so that one dead peer would keep a new leader's record from all others.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use libp2p::kad::{self, KBucketKey, QueryId, Quorum, Record};
use tokio::sync::oneshot;

use super::handle::PublishAsk;
use super::{Error, Published, QUERY_TIMEOUT, REPLICATION};
use crate::core::record;
use crate::core::table::Refused;
use crate::routes::Routes;
use crate::store::{RouteStore, to_kad};

/// Other peers that have taken a record when its publication is answered: one of them may be lost, and one slow.
const ENOUGH_PEERS: usize = 3;
/// Known peers that are told before the nearest ones are found: all of a small mesh, and no burden in a large one.
const EAGER: usize = 8;
/// How long to wait for more once the first has: two round trips over a continent.
const SETTLE: Duration = Duration::from_millis(200);
/// Publications at once: with one query to each of 20 peers, kad polls 340 queries at most for them.
const MAX_RUNNING: usize = 16;
/// Publications that wait: with a usual record of half a KiB, half a MiB, and never more than 8 MiB.
const MAX_WAITING: usize = 1024;

type Reply = oneshot::Sender<Result<Published, Error>>;

#[derive(Debug)]
struct Publication {
    record: Record,
    /// The query for the peers closest to the key, while it runs.
    closest: Option<QueryId>,
    /// The queries that put the record to one peer each, while they run.
    puts: HashSet<QueryId>,
    asked: HashSet<libp2p::PeerId>,
    peers: usize,
    reply: Option<Reply>,
    /// When it is answered with what has been reached by then, and when it ends.
    answer_at: Instant,
    end_at: Instant,
}

impl Publication {
    fn due(&self) -> Instant {
        if self.reply.is_some() { self.answer_at.min(self.end_at) } else { self.end_at }
    }
}

/// The publications that are under way or wait.
#[derive(Debug, Default)]
pub(super) struct Publications {
    next: u64,
    running: BTreeMap<u64, Publication>,
    by_query: HashMap<QueryId, u64>,
    waiting: VecDeque<(Record, Reply)>,
}

impl Publications {
    /// Stores a record here, and starts to put it to others, or has it wait.
    pub fn start(&mut self, kad: &mut kad::Behaviour<RouteStore>, routes: &Routes, ask: PublishAsk, now: Instant) {
        let PublishAsk { bytes, reply } = ask;
        let stored = store(routes, &bytes);
        match stored {
            Err(error) => answer(Some(reply), Err(error)),
            Ok(record) if self.running.len() < MAX_RUNNING => self.run(kad, record, reply, now),
            Ok(record) if self.waiting.len() < MAX_WAITING => self.waiting.push_back((record, reply)),
            Ok(_) => answer(Some(reply), Err(Error::Busy)),
        }
    }

    fn run(&mut self, kad: &mut kad::Behaviour<RouteStore>, record: Record, reply: Reply, now: Instant) {
        let id = self.next;
        self.next += 1;
        let target = KBucketKey::new(record.key.clone());
        let local = kad.store_mut().local();
        let known: Vec<libp2p::PeerId> =
            kad.find_closest_local_peers(&target, &local).map(|peer| peer.node_id).take(EAGER).collect();
        let closest = kad.get_n_closest_peers(record.key.to_vec(), REPLICATION);
        self.by_query.insert(closest, id);
        let publication = Publication {
            record,
            closest: Some(closest),
            puts: HashSet::new(),
            asked: HashSet::new(),
            peers: 0,
            reply: Some(reply),
            answer_at: now + QUERY_TIMEOUT,
            end_at: now + QUERY_TIMEOUT,
        };
        self.running.insert(id, publication);
        self.put_to(kad, id, known);
    }

    fn put_to(&mut self, kad: &mut kad::Behaviour<RouteStore>, id: u64, peers: Vec<libp2p::PeerId>) {
        let Some(publication) = self.running.get_mut(&id) else {
            return;
        };
        for peer in peers {
            if publication.asked.insert(peer) {
                let query = kad.put_record_to(publication.record.clone(), std::iter::once(peer), Quorum::One);
                publication.puts.insert(query);
                self.by_query.insert(query, id);
            }
        }
    }

    /// The peers closest to a key were found.
    pub fn closest(
        &mut self,
        kad: &mut kad::Behaviour<RouteStore>,
        query: QueryId,
        peers: Vec<libp2p::PeerId>,
        now: Instant,
    ) {
        let Some(id) = self.by_query.remove(&query) else {
            return;
        };
        if let Some(publication) = self.running.get_mut(&id) {
            publication.closest = None;
        }
        self.put_to(kad, id, peers);
        self.settle(kad, id, now);
    }

    /// A peer has taken a record, or could not be reached.
    pub fn stored(&mut self, kad: &mut kad::Behaviour<RouteStore>, query: QueryId, stored: bool, now: Instant) {
        let Some(id) = self.by_query.remove(&query) else {
            return;
        };
        if let Some(publication) = self.running.get_mut(&id) {
            publication.puts.remove(&query);
            if stored {
                publication.peers += 1;
                publication.answer_at = publication.answer_at.min(now + SETTLE);
            }
        }
        self.settle(kad, id, now);
    }

    /// Answers a publication that has enough peers, and ends one that has nobody left to ask.
    fn settle(&mut self, kad: &mut kad::Behaviour<RouteStore>, id: u64, now: Instant) {
        let Some(publication) = self.running.get_mut(&id) else {
            return;
        };
        if publication.peers >= ENOUGH_PEERS || (publication.peers > 0 && publication.answer_at <= now) {
            answer(publication.reply.take(), Ok(Published { peers: publication.peers }));
        }
        let done = publication.closest.is_none() && publication.puts.is_empty();
        if done || publication.end_at <= now {
            self.finish(kad, id);
            self.next_waiting(kad, now);
        }
    }

    fn finish(&mut self, kad: &mut kad::Behaviour<RouteStore>, id: u64) {
        let Some(publication) = self.running.remove(&id) else {
            return;
        };
        for query in publication.puts.iter().chain(&publication.closest) {
            self.by_query.remove(query);
            if let Some(mut query) = kad.query_mut(query) {
                query.finish();
            }
        }
        let alone = publication.asked.is_empty() && kad.kbuckets().next().is_none();
        let result = match publication.peers {
            0 if !alone => Err(Error::Unreached),
            peers => Ok(Published { peers }),
        };
        answer(publication.reply, result);
    }

    fn next_waiting(&mut self, kad: &mut kad::Behaviour<RouteStore>, now: Instant) {
        while self.running.len() < MAX_RUNNING {
            let Some((record, reply)) = self.waiting.pop_front() else {
                return;
            };
            self.run(kad, record, reply, now);
        }
    }

    /// When the next publication is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.running.values().map(Publication::due).min()
    }

    /// Answers and ends the publications that are due.
    pub fn due(&mut self, kad: &mut kad::Behaviour<RouteStore>, now: Instant) {
        let due: Vec<u64> =
            self.running.iter().filter(|(_, publication)| publication.due() <= now).map(|(id, _)| *id).collect();
        for id in due {
            self.settle(kad, id, now);
        }
    }
}

/// Checks a record and stores it here. A full table is no reason not to tell the peers that are closer to the key.
fn store(routes: &Routes, bytes: &[u8]) -> Result<Record, Error> {
    let mesh = routes.mesh().ok_or(Error::NoMesh)?;
    let now_ms = routes.now_ms();
    let verified = record::open(bytes, mesh, now_ms).map_err(Refused::Invalid)?;
    match routes.put(&verified.key(), bytes) {
        Ok(_) | Err(Refused::Full) => Ok(to_kad(&verified, now_ms)),
        Err(refused) => Err(refused.into()),
    }
}

/// Answers a caller that still waits.
fn answer(reply: Option<Reply>, result: Result<Published, Error>) {
    if let Some(reply) = reply {
        let _ = reply.send(result);
    }
}
