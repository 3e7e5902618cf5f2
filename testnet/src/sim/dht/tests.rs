#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;

use super::*;
use crate::sim::setup::{GroupPlan, Wish};

const NOW: u64 = 1_700_000_000_000;

/// Peers that are cut off.
struct Cut(BTreeSet<Machine>);

impl Net for Cut {
    fn reaches(&self, from: Machine, to: Machine) -> bool {
        from == to || !(self.0.contains(&from) || self.0.contains(&to))
    }

    fn now_ms(&self, peer: Machine) -> u64 {
        NOW + peer as u64
    }
}

fn begin() -> (Rc<Identities>, Dht) {
    let identities = Rc::new(Identities::new(5));
    let wish = Wish { replicas: 3, pinned: Vec::new() };
    let plan = GroupPlan { id: setup::OUT, name: "out".into(), first: vec![3, 4], wish };
    let dht = Dht::new(identities.clone(), Rc::new(Catalog::new(&[plan])));
    (identities, dht)
}

fn record(identities: &Identities, leader: Machine, epoch: u64) -> Bytes {
    let replicas = (0..3).map(|peer| identities.replica(peer as u64 + 1, peer)).collect();
    let record = route::RouteRecord {
        mesh: identities.mesh().to_vec().into(),
        namespace: NAMESPACE.into(),
        name: "out/a".into(),
        topic: setup::OUT_A.0,
        group: setup::OUT.0,
        epoch,
        replicas,
        leader: leader as u64 + 1,
        issued_ms: NOW,
        life_ms: 60_000,
    };
    signed(identities, leader, &record).unwrap()
}

fn route(dht: &mut Dht, at: Machine, fresh: bool, cut: &[Machine]) -> Route {
    let cut = Cut(cut.iter().copied().collect());
    match dht.route(at, "out/a", fresh, None, &cut) {
        Ok(Answer::Route(route)) => route,
        other => panic!("no route: {other:?}"),
    }
}

#[test]
fn the_newest_record_is_found_and_remembered() {
    let (identities, mut dht) = begin();
    let old = record(&identities, 0, 5);
    let new = record(&identities, 1, 8);
    let (answer, seen) = dht.store(1, &old, NOW);
    assert!(matches!(answer, Answer::Yes));
    assert!(matches!(seen, Some(Seen::Routed { peer: 1, epoch: 5, .. })));
    assert!(matches!(dht.store(1, &old, NOW), (Answer::Yes, None)), "it is known");
    dht.store(2, &new, NOW);
    let found = route(&mut dht, 4, false, &[]);
    assert_eq!((found.epoch, found.leader, found.source.as_str()), (8, 2, "dht"));
    assert_eq!(route(&mut dht, 4, false, &[0, 1, 2]).source, "cache");
    dht.restart(4);
    assert_eq!(route(&mut dht, 4, false, &[2]).epoch, 5, "the newest that is reached");
    assert_eq!(route(&mut dht, 4, true, &[]).epoch, 8);
    assert_eq!(route(&mut dht, 2, false, &[]).source, "local");
}

#[test]
fn a_late_record_and_a_forged_one_are_refused() {
    let (identities, mut dht) = begin();
    let (old, new) = (record(&identities, 0, 5), record(&identities, 1, 8));
    dht.store(0, &new, NOW);
    let (answer, seen) = dht.store(0, &old, NOW + 500);
    assert!(matches!((answer, seen), (Answer::No, Some(Seen::RouteRefused { peer: 0, epoch: 5, .. }))));
    let mut forged = record(&identities, 0, 9).to_vec();
    *forged.last_mut().unwrap() ^= 1;
    assert!(matches!(dht.store(0, &forged, NOW).0, Answer::No));
    assert!(matches!(dht.store(0, b"nothing", NOW), (Answer::No, None)));
    // by another's key, although that one is a member
    assert!(
        canal_dht::sign_by(&route::RouteRecord::default(), identities.id(0), &|bytes| identities.sign(1, bytes))
            .is_err()
    );
}

#[test]
fn without_a_record_the_catalog_knows_where_a_group_began() {
    let (identities, mut dht) = begin();
    let found = route(&mut dht, 0, false, &[]);
    assert_eq!((found.leader, found.source.as_str()), (0, "catalog"));
    assert_eq!(found.replicas, [identities.replica(1, 3), identities.replica(2, 4)]);
    let none = dht.route(0, "none", false, None, &Cut(BTreeSet::new()));
    assert!(matches!(none, Err(Failed::Error(_))));
    // a replica here that has a leader is believed, one without only if nothing newer is known
    let here = Route { epoch: 6, group: setup::OUT.0, source: "local".into(), ..Route::default() };
    dht.store(1, &record(&identities, 0, 8), NOW);
    let mut ask = |here: Route, fresh| match dht.route(0, "out/a", fresh, Some(here), &Cut(BTreeSet::new())) {
        Ok(Answer::Route(route)) => route.epoch,
        other => panic!("no route: {other:?}"),
    };
    assert_eq!(ask(here.clone(), true), 8);
    assert_eq!(ask(Route { leader: 1, ..here.clone() }, true), 6);
    assert_eq!(ask(Route { epoch: 9, ..here }, true), 9);
}
