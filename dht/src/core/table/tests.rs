#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use canal_proto::route::{self, RouteRecord};

use super::*;
use crate::core::record::tests::{LIFE, MESH, NOW, encode, record, replica, seed, sign_anything};
use crate::core::record::{Error, sign};

fn key(name: &str) -> [u8; 32] {
    route::key(MESH, "default", name)
}

/// Puts a record, signed by a member, under its own key.
fn put(table: &mut Table, record: &RouteRecord, signer: u8, now_ms: u64) -> Result<Accepted, Refused> {
    let signed = encode(&sign(record, &seed(signer)).unwrap());
    table.put(&key(&record.name), &signed, now_ms)
}

fn table() -> Table {
    Table::new(Some(MESH))
}

fn refused(table: &Table) -> Vec<(Refused, u64)> {
    table.refused().iter().map(|(reason, count)| (*reason, *count)).collect()
}

#[test]
fn a_newer_record_replaces_and_an_older_one_is_stale() {
    let mut table = table();
    let at = |epoch, issued_ms| RouteRecord { epoch, issued_ms, ..record("a") };
    assert_eq!(put(&mut table, &at(3, 10), 1, NOW), Ok(Accepted::New));
    assert_eq!(put(&mut table, &at(3, 9), 1, NOW), Err(Refused::Stale));
    assert_eq!(put(&mut table, &at(2, 99), 1, NOW), Err(Refused::Stale));
    // of the same age, but another record: what stands stays
    assert_eq!(put(&mut table, &at(3, 10), 2, NOW), Err(Refused::Stale));
    assert_eq!(put(&mut table, &at(3, 11), 1, NOW), Ok(Accepted::Newer));
    // a new leader whose clock is behind
    assert_eq!(put(&mut table, &at(4, 1), 2, NOW), Ok(Accepted::Newer));
    assert_eq!(table.get(&key("a"), NOW).unwrap().order(), (5, 4, 1));
    assert_eq!(table.len(), 1);
    assert_eq!(refused(&table), [(Refused::Stale, 3)]);
}

#[test]
fn the_same_bytes_again_change_nothing() {
    let mut table = table();
    assert_eq!(put(&mut table, &record("a"), 1, NOW), Ok(Accepted::New));
    assert_eq!(put(&mut table, &record("a"), 1, NOW + LIFE - 1), Ok(Accepted::Known));
    // it did not get a longer life by it
    assert!(table.get(&key("a"), NOW + LIFE - 1).is_some());
    assert_eq!(table.get(&key("a"), NOW + LIFE), None);
    assert_eq!(refused(&table), []);
}

#[test]
fn a_successor_was_a_member_before() {
    let mut table = table();
    assert_eq!(put(&mut table, &record("a"), 1, NOW), Ok(Accepted::New));
    // 4 makes itself a member of the group
    let taken = RouteRecord { epoch: 9, replicas: vec![replica(4), replica(1)], ..record("a") };
    assert_eq!(put(&mut table, &taken, 4, NOW), Err(Refused::NotSuccessor));
    // 1 lets it in; then it may go on without 1
    let joined = RouteRecord { epoch: 9, replicas: vec![replica(1), replica(4)], ..record("a") };
    assert_eq!(put(&mut table, &joined, 1, NOW), Ok(Accepted::Newer));
    let moved = RouteRecord { epoch: 10, replicas: vec![replica(4)], leader: 4, ..record("a") };
    assert_eq!(put(&mut table, &moved, 4, NOW), Ok(Accepted::Newer));
    assert_eq!(refused(&table), [(Refused::NotSuccessor, 1)]);
}

#[test]
fn a_successor_need_not_have_been_a_member_of_what_has_ended() {
    let mut table = table();
    put(&mut table, &record("a"), 1, NOW).unwrap();
    let others = RouteRecord { epoch: 9, replicas: vec![replica(4)], leader: 4, ..record("a") };
    assert_eq!(put(&mut table, &others, 4, NOW + LIFE - 1), Err(Refused::NotSuccessor));
    assert_eq!(put(&mut table, &others, 4, NOW + LIFE), Ok(Accepted::New));
}

#[test]
fn a_topic_created_again_starts_anew_and_the_old_one_is_stale() {
    let mut table = table();
    put(&mut table, &record("a"), 1, NOW).unwrap();
    let other_group = RouteRecord { group: 10, epoch: 9, ..record("a") };
    assert_eq!(put(&mut table, &other_group, 1, NOW), Err(Refused::OtherGroup));
    let again = RouteRecord { topic: 6, group: 10, epoch: 1, replicas: vec![replica(4)], leader: 4, ..record("a") };
    assert_eq!(put(&mut table, &again, 4, NOW), Ok(Accepted::Newer));
    assert_eq!(put(&mut table, &RouteRecord { epoch: 99, ..record("a") }, 1, NOW), Err(Refused::Stale));
    assert_eq!(table.get(&key("a"), NOW).unwrap().route().group, 10);
}

#[test]
fn invalid_records_are_refused_and_counted_by_reason() {
    let mut table = table();
    let good = encode(&sign(&record("a"), &seed(1)).unwrap());
    let mut unsigned = sign(&record("a"), &seed(1)).unwrap();
    unsigned.signature = bytes::Bytes::new();
    let mut forged = sign(&record("a"), &seed(1)).unwrap();
    forged.signature = vec![1; 64].into();
    let elsewhere = RouteRecord { mesh: vec![8; 16].into(), ..record("a") };
    let a = key("a");
    for (key, bytes, reason) in [
        (a, vec![0; MAX_ROUTE_RECORD + 1], Error::TooLarge),
        (a, vec![0xff; 9], Error::Malformed),
        (a, encode(&unsigned), Error::Unsigned),
        (a, encode(&forged), Error::Forged),
        (a, encode(&forged), Error::Forged),
        (a, encode(&sign_anything(&record("a"), 4)), Error::NotMember),
        (a, encode(&sign_anything(&elsewhere, 1)), Error::OtherMesh),
        (key("b"), good.clone(), Error::WrongKey),
    ] {
        assert_eq!(table.put(&key, &bytes, NOW), Err(Refused::Invalid(reason)));
    }
    assert_eq!(
        refused(&table),
        [
            (Refused::Invalid(Error::TooLarge), 1),
            (Refused::Invalid(Error::Malformed), 1),
            (Refused::Invalid(Error::Unsigned), 1),
            (Refused::Invalid(Error::Forged), 2),
            (Refused::Invalid(Error::OtherMesh), 1),
            (Refused::Invalid(Error::NotMember), 1),
            (Refused::Invalid(Error::WrongKey), 1),
        ]
    );
    assert!(table.is_empty());
}

#[test]
fn a_full_table_refuses_until_something_ends() {
    let mut table = Table::with_bounds(Some(MESH), 2, MAX_BYTES);
    put(&mut table, &RouteRecord { life_ms: 10, ..record("a") }, 1, NOW).unwrap();
    put(&mut table, &record("b"), 1, NOW).unwrap();
    assert_eq!(put(&mut table, &record("c"), 1, NOW + 9), Err(Refused::Full));
    // what stands is renewed all the same
    assert_eq!(put(&mut table, &RouteRecord { epoch: 4, ..record("b") }, 1, NOW + 9), Ok(Accepted::Newer));
    assert_eq!(put(&mut table, &record("c"), 1, NOW + 10), Ok(Accepted::New));
    let names: BTreeSet<&str> = table.records().map(|record| record.route().name.as_str()).collect();
    assert_eq!(names, BTreeSet::from(["b", "c"]));
    assert_eq!(refused(&table), [(Refused::Full, 1)]);
}

#[test]
fn bytes_are_bounded_too() {
    let one = encode(&sign(&record("a"), &seed(1)).unwrap()).len();
    let mut table = Table::with_bounds(Some(MESH), 9, 2 * one);
    put(&mut table, &record("a"), 1, NOW).unwrap();
    put(&mut table, &record("b"), 1, NOW).unwrap();
    assert_eq!(put(&mut table, &record("c"), 1, NOW), Err(Refused::Full));
    assert_eq!(put(&mut table, &RouteRecord { epoch: 4, ..record("a") }, 1, NOW), Ok(Accepted::Newer));
    // a larger one in place of a smaller one counts
    let mut larger = RouteRecord { epoch: 5, ..record("a") };
    larger.replicas[0].addresses.push("/ip4/127.0.0.1".into());
    assert_eq!(put(&mut table, &larger, 1, NOW), Err(Refused::Full));
    table.remove(&key("b"));
    assert_eq!(put(&mut table, &larger, 1, NOW), Ok(Accepted::Newer));
    table.expire(NOW + LIFE);
    assert_eq!((table.len(), table.bytes, table.ends.len()), (0, 0, 0));
}

#[test]
fn a_peer_without_a_mesh_stores_nothing_and_one_that_moves_keeps_nothing() {
    let mut table = Table::new(None);
    assert_eq!(put(&mut table, &record("a"), 1, NOW), Err(Refused::NoMesh));
    table.join(MESH);
    assert_eq!(put(&mut table, &record("a"), 1, NOW), Ok(Accepted::New));
    table.join(MESH);
    assert_eq!(table.len(), 1);
    table.join(MeshId([8; 16]));
    assert_eq!((table.len(), table.bytes, table.mesh()), (0, 0, Some(MeshId([8; 16]))));
    assert_eq!(put(&mut table, &record("a"), 1, NOW), Err(Refused::Invalid(Error::OtherMesh)));
}
