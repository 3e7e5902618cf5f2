#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use canal_proto::route::RouteRecord;

use super::*;
use crate::core::record::tests::{LIFE, MESH, NOW, encode, record, replica, seed};
use crate::core::record::{open, sign};

fn found(record: &RouteRecord) -> Verified {
    open(&encode(&sign(record, &seed(1)).unwrap()), MESH, NOW).unwrap()
}

fn route(epoch: u64, leader: u64) -> Route {
    Route { topic: 5, group: 9, epoch, replicas: vec![replica(1)], leader, source: "catalog".into() }
}

#[test]
fn what_was_found_is_remembered_for_its_life() {
    let mut cache = Cache::default();
    cache.learn(&found(&record("a")), NOW);
    let expected = Route {
        topic: 5,
        group: 9,
        epoch: 3,
        replicas: vec![replica(1), replica(2), replica(3)],
        leader: 1,
        source: "cache".into(),
    };
    assert_eq!(cache.get("default", "a", NOW + LIFE - 1), Some(&expected));
    assert_eq!(cache.get("default", "a", NOW + LIFE), None);
    assert_eq!(cache.get("default", "b", NOW), None);
    assert_eq!(cache.get("other", "a", NOW), None);
}

#[test]
fn a_redirect_corrects_and_nothing_older_undoes_it() {
    let mut cache = Cache::default();
    cache.learn(&found(&record("a")), NOW);
    cache.correct("default", "a", route(4, 2), NOW, NOW + 10);
    let leader = |cache: &Cache, now| cache.get("default", "a", now).map(|route| (route.epoch, route.leader));
    assert_eq!(leader(&cache, NOW), Some((4, 2)));
    cache.learn(&found(&record("a")), NOW);
    cache.correct("default", "a", route(3, 3), NOW, NOW + 10);
    assert_eq!(leader(&cache, NOW), Some((4, 2)));
    // of the same epoch, the later word counts
    cache.correct("default", "a", route(4, 3), NOW, NOW + 10);
    assert_eq!(leader(&cache, NOW), Some((4, 3)));
    // and once it has ended, anything does
    cache.correct("default", "a", route(3, 1), NOW + 10, NOW + 20);
    assert_eq!(leader(&cache, NOW + 10), Some((3, 1)));
    assert_eq!((cache.len(), cache.ends.len()), (1, 1));
}

#[test]
fn forgotten_is_forgotten() {
    let mut cache = Cache::default();
    cache.correct("default", "a", route(4, 2), NOW, NOW + 10);
    cache.correct("default", "b", route(4, 2), NOW, NOW + 10);
    cache.forget("default", "a");
    cache.forget("default", "a");
    assert_eq!(cache.get("default", "a", NOW), None);
    assert_eq!((cache.len(), cache.ends.len()), (1, 1));
    cache.clear();
    assert!(cache.is_empty() && cache.ends.is_empty());
}

#[test]
fn a_full_cache_gives_up_what_ends_soonest() {
    let mut cache = Cache::with_bound(2);
    cache.correct("n", "a", route(1, 1), NOW, NOW + 30);
    cache.correct("n", "b", route(1, 1), NOW, NOW + 20);
    cache.correct("n", "a", route(2, 1), NOW, NOW + 30);
    assert!(cache.get("n", "b", NOW).is_some(), "a correction in place pushes nothing out");
    cache.correct("n", "c", route(1, 1), NOW, NOW + 40);
    let known = ["a", "b", "c"].map(|name| cache.get("n", name, NOW).is_some());
    assert_eq!((known, cache.len()), ([true, false, true], 2));
}
