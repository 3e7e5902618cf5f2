//! Each bug is caught, by an invariant, within its bound.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use super::{ALL, BOUND, hunt};

#[test]
fn every_bug_is_caught() {
    let missed: Vec<&str> = ALL.iter().filter(|bug| hunt(bug, BOUND).caught.is_none()).map(|bug| bug.name).collect();
    assert!(missed.is_empty(), "no invariant notices {missed:?} within {BOUND} seeds");
}

#[test]
fn a_bug_ends_with_its_run() {
    let of_driver = ALL.iter().find(|bug| bug.name == "cursor-apart").unwrap();
    let active = of_driver.activate();
    assert!(super::is(super::Mutant::CursorApart));
    drop(active);
    assert!(!super::is(super::Mutant::CursorApart));
}
