//! The driver over a behaviour that no swarm polls: what it starts is seen in kad, and what kad would say is made up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::num::NonZeroUsize;

use canal_proto::route::{self, RouteRecord, SignedRoute};
use futures::FutureExt;
use libp2p::kad::{GetRecordOk, PeerRecord, ProgressStep, QueryId, QueryStats, Record, RecordKey};
use prost::Message;
use tokio::task::JoinHandle;

use super::*;
use crate::core::record::tests::{LIFE, MESH, NOW, record, seed};
use crate::core::record::{Verified, sign};

struct Rig {
    driver: Driver,
    handle: Handle,
    kad: kad::Behaviour<RouteStore>,
    start: Instant,
}

impl Rig {
    fn new() -> Self {
        let routes = Routes::new(Some(MESH), || NOW);
        let kad = behaviour(libp2p::PeerId::random(), "test", routes.clone()).unwrap();
        let (driver, handle) = Driver::new(routes);
        Self { driver, handle, kad, start: Instant::now() }
    }

    /// Lets the tasks run, and hands the commands that they sent to the driver, until there are no more.
    async fn turn(&mut self) {
        // tokio runs 61 tasks between two turns of this one, and has a receiver pause after 128 messages
        for _ in 0..16 {
            tokio::task::yield_now().await;
            while let Some(command) = self.driver.next_command().now_or_never() {
                self.driver.handle_command(&mut self.kad, command, self.start);
            }
        }
    }

    fn due(&mut self, after: Duration) {
        let now = self.start + after;
        self.driver.handle_command(&mut self.kad, Command(Kind::Due), now);
    }

    fn find(&self, name: &'static str) -> JoinHandle<Result<Verified, Error>> {
        let handle = self.handle.clone();
        tokio::spawn(async move { handle.find("default", name).await })
    }

    fn publish(&self, record: SignedRoute) -> JoinHandle<Result<Published, Error>> {
        let handle = self.handle.clone();
        tokio::spawn(async move { handle.publish(&record).await })
    }

    fn queries(&self) -> Vec<QueryId> {
        let mut ids: Vec<QueryId> = self.kad.iter_queries().map(|query| query.id()).collect();
        // in the order in which they began
        ids.sort_by_key(|id| id.to_string().parse::<u64>().unwrap());
        ids
    }

    /// kad says that some peer has answered a query with this record.
    fn found(&mut self, id: QueryId, key: [u8; 32], value: Vec<u8>, left: Option<Duration>) {
        let expires = left.map(|left| self.start + left);
        let record = Record { key: RecordKey::new(&key), value, publisher: None, expires };
        let found = GetRecordOk::FoundRecord(PeerRecord { peer: Some(libp2p::PeerId::random()), record });
        self.event(id, QueryResult::GetRecord(Ok(found)), false);
    }

    fn event(&mut self, id: QueryId, result: QueryResult, last: bool) {
        let step = ProgressStep { count: NonZeroUsize::MIN, last };
        let event = kad::Event::OutboundQueryProgressed { id, result, stats: QueryStats::empty(), step };
        self.driver.handle_event(&mut self.kad, event, self.start);
    }
}

/// What a task comes to; one that nobody answers is a failure, not a test that hangs.
async fn done<T>(task: JoinHandle<T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), task).await.expect("nobody answered").unwrap()
}

fn key(name: &str) -> [u8; 32] {
    route::key(MESH, "default", name)
}

fn epoch(epoch: u64) -> Vec<u8> {
    sign(&RouteRecord { epoch, ..record("a") }, &seed(1)).unwrap().encode_to_vec()
}

#[tokio::test]
async fn lookups_of_one_name_share_a_query() {
    let mut rig = Rig::new();
    let waiting = [rig.find("a"), rig.find("a"), rig.find("b")];
    rig.turn().await;
    assert_eq!(rig.queries().len(), 2);
    let id = rig.queries()[0];
    for n in [3, 4, 5] {
        rig.found(id, key("a"), epoch(n), None);
    }
    let [first, second, other] = waiting;
    assert_eq!(done(first).await.unwrap().route().epoch, 5);
    assert_eq!(done(second).await.unwrap().route().epoch, 5);
    assert_eq!(rig.queries().len(), 1, "three answers are enough, so kad need not go on");
    rig.due(QUERY_TIMEOUT);
    assert_eq!(done(other).await, Err(Error::Timeout));
    assert_eq!(rig.queries(), []);
}

#[tokio::test]
async fn the_newest_valid_record_wins_not_the_first_nor_the_loudest() {
    let mut rig = Rig::new();
    let answer = rig.find("a");
    rig.turn().await;
    let id = rig.queries()[0];
    let mut forged = sign(&RouteRecord { epoch: 9, ..record("a") }, &seed(1)).unwrap();
    forged.signature = vec![1; 64].into();
    rig.found(id, key("a"), forged.encode_to_vec(), None);
    assert_eq!(rig.driver.lookups.next_due(), Some(rig.start + QUERY_TIMEOUT), "a forged one starts no countdown");
    rig.found(id, key("a"), epoch(3), None);
    rig.found(id, key("a"), epoch(4), None);
    let elsewhere = sign(&RouteRecord { epoch: 9, ..record("b") }, &seed(1)).unwrap();
    rig.found(id, key("a"), elsewhere.encode_to_vec(), None);
    let settle = Duration::from_millis(200);
    assert_eq!(rig.driver.lookups.next_due(), Some(rig.start + settle));
    rig.due(settle);
    assert_eq!(done(answer).await.unwrap().route().epoch, 4);
    // it is remembered
    let route = rig.handle.lookup("default", "a", false).await.unwrap();
    assert_eq!((route.epoch, route.source.as_str()), (4, "cache"));
}

#[tokio::test]
async fn a_record_that_a_peer_has_held_lives_only_on() {
    let mut rig = Rig::new();
    let answer = rig.find("a");
    rig.turn().await;
    let id = rig.queries()[0];
    rig.found(id, key("a"), epoch(3), Some(Duration::from_secs(7)));
    rig.event(id, QueryResult::GetRecord(Err(kad::GetRecordError::Timeout { key: RecordKey::new(&key("a")) })), true);
    let found = done(answer).await.unwrap();
    assert_eq!(found.expires_ms(), NOW + 7_000);
    const { assert!(7_000 < LIFE) };
}

#[tokio::test]
async fn nobody_has_it_and_not_all_answered_are_told_apart() {
    let mut rig = Rig::new();
    let (nobody, slow) = (rig.find("a"), rig.find("b"));
    rig.turn().await;
    let ids = rig.queries();
    let not_found = kad::GetRecordError::NotFound { key: RecordKey::new(&key("a")), closest_peers: vec![] };
    rig.event(ids[0], QueryResult::GetRecord(Err(not_found)), true);
    let timeout = kad::GetRecordError::Timeout { key: RecordKey::new(&key("b")) };
    rig.event(ids[1], QueryResult::GetRecord(Err(timeout)), true);
    let mut answers = [done(nobody).await.unwrap_err(), done(slow).await.unwrap_err()];
    answers.sort_by_key(|error| *error == Error::Timeout);
    assert_eq!(answers, [Error::NotFound, Error::Timeout]);
}

#[tokio::test]
async fn a_publication_is_stored_here_first_and_a_stale_one_goes_nowhere() {
    let mut rig = Rig::new();
    let good = sign(&RouteRecord { epoch: 4, ..record("a") }, &seed(1)).unwrap();
    let published = rig.publish(good.clone());
    rig.turn().await;
    assert_eq!(rig.handle.lookup("default", "a", false).await.unwrap().source, "local");
    let ids = rig.queries();
    assert_eq!(ids.len(), 1, "it asks who is near");
    let alone = kad::GetClosestPeersOk { key: key("a").to_vec(), peers: vec![] };
    rig.event(ids[0], QueryResult::GetClosestPeers(Ok(alone)), true);
    assert_eq!(done(published).await, Ok(Published { peers: 0 }));

    let stale = rig.publish(sign(&record("a"), &seed(1)).unwrap());
    let forged = rig.publish(SignedRoute { signature: vec![1; 64].into(), ..good });
    rig.turn().await;
    assert_eq!(done(stale).await, Err(Error::Refused(Refused::Stale)));
    assert_eq!(done(forged).await, Err(Error::Refused(Refused::Invalid(crate::core::record::Error::Forged))));
    assert_eq!(rig.queries(), ids, "nobody is asked for them");
}

#[tokio::test]
async fn a_publication_is_answered_soon_after_the_first_peer_and_ends_after_the_last() {
    let mut rig = Rig::new();
    let published = rig.publish(sign(&record("a"), &seed(1)).unwrap());
    rig.turn().await;
    let closest = rig.queries()[0];
    let near = (0..2).map(|_| kad::PeerInfo { peer_id: libp2p::PeerId::random(), addrs: vec![] }).collect();
    let near = kad::GetClosestPeersOk { key: key("a").to_vec(), peers: near };
    rig.event(closest, QueryResult::GetClosestPeers(Ok(near)), true);
    let puts: Vec<QueryId> = rig.queries().into_iter().filter(|id| *id != closest).collect();
    assert_eq!(puts.len(), 2, "a query to each");
    rig.event(puts[0], QueryResult::PutRecord(Ok(kad::PutRecordOk { key: RecordKey::new(&key("a")) })), true);
    assert_eq!(rig.driver.publications.next_due(), Some(rig.start + Duration::from_millis(200)));
    rig.due(Duration::from_millis(200));
    assert_eq!(done(published).await, Ok(Published { peers: 1 }));
    assert_eq!(rig.driver.publications.next_due(), Some(rig.start + QUERY_TIMEOUT), "the slow one is still told");
    rig.due(QUERY_TIMEOUT);
    assert_eq!(rig.driver.publications.next_due(), None);
}

#[tokio::test]
async fn a_publication_that_reaches_nobody_says_so() {
    let mut rig = Rig::new();
    let published = rig.publish(sign(&record("a"), &seed(1)).unwrap());
    rig.turn().await;
    let closest = rig.queries()[0];
    let near = vec![kad::PeerInfo { peer_id: libp2p::PeerId::random(), addrs: vec![] }];
    let near = kad::GetClosestPeersError::Timeout { key: key("a").to_vec(), peers: near };
    rig.event(closest, QueryResult::GetClosestPeers(Err(near)), true);
    let put = rig.queries().into_iter().find(|id| *id != closest).unwrap();
    let refused = kad::PutRecordError::QuorumFailed {
        key: RecordKey::new(&key("a")),
        success: vec![],
        quorum: NonZeroUsize::MIN,
    };
    rig.event(put, QueryResult::PutRecord(Err(refused)), true);
    assert_eq!(done(published).await, Err(Error::Unreached));
}

#[tokio::test]
async fn too_much_at_once_is_busy() {
    let mut rig = Rig::new();
    let names: Vec<String> = (0..257).map(|n| format!("t{n}")).collect();
    let asks: Vec<_> = names
        .into_iter()
        .map(|name| {
            let handle = rig.handle.clone();
            tokio::spawn(async move { handle.find("default", &name).await })
        })
        .collect();
    rig.turn().await;
    assert_eq!(rig.queries().len(), 256);
    rig.due(QUERY_TIMEOUT);
    let mut busy = 0;
    for ask in asks {
        let error = done(ask).await.unwrap_err();
        assert!(matches!(error, Error::Busy | Error::Timeout), "{error:?}");
        busy += usize::from(error == Error::Busy);
    }
    assert_eq!(busy, 1);

    // the queue to a driver that does not run
    let asks: Vec<_> = (0..MAX_COMMANDS).map(|_| rig.find("a")).collect();
    while rig.handle.room() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.handle.find("default", "a").now_or_never(), Some(Err(Error::Busy)));
    drop(rig.driver);
    for ask in asks {
        assert_eq!(done(ask).await, Err(Error::Stopped));
    }
}

#[tokio::test]
async fn without_a_mesh_nothing_is_asked() {
    let routes = Routes::new(None, || NOW);
    let mut kad = behaviour(libp2p::PeerId::random(), "test", routes.clone()).unwrap();
    let (mut driver, handle) = Driver::new(routes.clone());
    assert_eq!(handle.lookup("default", "a", false).await, Err(Error::NoMesh));
    let publish = tokio::spawn(async move { handle.publish(&sign(&record("a"), &seed(1)).unwrap()).await });
    let command = driver.next_command().await;
    driver.handle_command(&mut kad, command, Instant::now());
    assert_eq!(done(publish).await, Err(Error::NoMesh));
    routes.join(MESH);
    assert_eq!(routes.mesh(), Some(MESH));
    assert_eq!(behaviour(libp2p::PeerId::random(), "a/b", routes).err(), Some(Error::BadMeshName));
}

#[tokio::test]
async fn redirects_change_what_is_known() {
    use canal_proto::error::{Code, WireError};

    use crate::core::record::tests::replica;

    let routes = Routes::new(Some(MESH), || NOW);
    let mut moved = WireError::new(Code::NotLeader, "not the leader");
    moved.leader = Some(replica(4));
    assert!(!routes.redirect("default", "a", &moved), "nothing is known that could be corrected");
    routes.put(&key("a"), &epoch(3)).unwrap();
    assert!(routes.redirect("default", "a", &moved));
    let known = routes.known("default", "a").unwrap();
    assert_eq!((known.leader, known.epoch, known.source.as_str()), (4, 3, "cache"));
    assert_eq!(known.replicas, [1, 2, 3, 4].map(replica));
    // a newer record that comes by counts more than the redirect
    routes.put(&key("a"), &epoch(4)).unwrap();
    assert_eq!(routes.known("default", "a").unwrap().source, "local");
    routes.forget("default", "a");
    assert!(!routes.redirect("default", "a", &WireError::new(Code::NotHere, "not here")), "it names nobody");
}
