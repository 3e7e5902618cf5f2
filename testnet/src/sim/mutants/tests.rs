//! Each bug is caught, by an invariant, within its bound.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use super::{ALL, BOUND, hunt};
use crate::sim::invariants;

#[test]
fn every_bug_is_caught() {
    let pairs = ALL.iter().flat_map(|bug| bug.by.iter().map(move |by| (bug, *by)));
    let missed: Vec<_> =
        pairs.filter(|(bug, by)| hunt(bug, by, BOUND).caught.is_none()).map(|(bug, by)| (bug.name, by)).collect();
    assert!(missed.is_empty(), "bugs that an invariant does not notice within {BOUND} seeds: {missed:?}");
}

#[test]
fn every_invariant_catches_a_bug() {
    let idle: Vec<_> = invariants::all().iter().map(|invariant| invariant.name()).collect();
    let idle: Vec<_> = idle.into_iter().filter(|name| !ALL.iter().any(|bug| bug.by.contains(name))).collect();
    assert!(idle.is_empty(), "nothing shows that these notice anything: {idle:?}");
}

#[test]
fn a_bug_ends_with_its_run() {
    let of_driver = ALL.iter().find(|bug| bug.name == "cursor-apart").unwrap();
    let active = of_driver.activate();
    assert!(super::is(super::Mutant::CursorApart));
    drop(active);
    assert!(!super::is(super::Mutant::CursorApart));
}
