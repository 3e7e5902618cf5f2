#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use proptest::prelude::*;

use super::*;

fn peer(n: u8) -> PeerId {
    PeerId::from_public_key([n; 32])
}

fn candidate(n: u8, tier: Tier, site: &str) -> Candidate {
    Candidate { peer: peer(n), tier, site: site.into(), cpus: 4, memory: 8 << 30, replicas: 0, labels: BTreeMap::new() }
}

fn set(peers: &[PeerId]) -> BTreeSet<PeerId> {
    peers.iter().copied().collect()
}

#[test]
fn sites_come_before_what_stands_and_what_stands_before_load() {
    let mut all = vec![
        candidate(1, Tier::Cloud, "a"),
        candidate(2, Tier::Cloud, "a"),
        candidate(3, Tier::Edge, "b"),
        candidate(4, Tier::Edge, "b"),
        candidate(5, Tier::Edge, "c"),
    ];
    // 1 and 3 stand but are busy: they stay; the third goes to the site that has none
    all[0].replicas = 1000;
    all[2].replicas = 1000;
    assert_eq!(set(&choose(7, 3, &[peer(1), peer(3)], &all)), set(&[peer(1), peer(3), peer(5)]));
    // two stand in one site while another has none: one of them moves
    let chosen = choose(7, 3, &[peer(1), peer(2), peer(3)], &all);
    assert_eq!(set(&chosen), set(&[peer(2), peer(3), peer(5)]));
    // nothing stands: the idle ones
    assert_eq!(set(&choose(7, 3, &[], &all)), set(&[peer(2), peer(4), peer(5)]));
    // a peer that is gone is replaced
    assert_eq!(set(&choose(7, 2, &[peer(9), peer(3)], &all[..3])), set(&[peer(2), peer(3)]));
}

#[test]
fn sensors_come_last() {
    let all = [
        candidate(1, Tier::Iot, "a"),
        candidate(2, Tier::Iot, "b"),
        candidate(3, Tier::Edge, "c"),
        candidate(4, Tier::Cloud, "c"),
    ];
    // even when one holds a replica, and even though its site has none
    assert_eq!(set(&choose(7, 2, &[peer(1)], &all)), set(&[peer(3), peer(4)]));
    // but they do when there is nobody else, and then the one that stands
    assert_eq!(set(&choose(7, 3, &[peer(1)], &all)), set(&[peer(1), peer(3), peer(4)]));
    assert_eq!(set(&choose(7, 3, &[peer(2)], &all)), set(&[peer(2), peer(3), peer(4)]));
}

#[test]
fn the_choice_is_pinned() {
    let all: Vec<Candidate> = (1..=6).map(|n| candidate(n, Tier::Edge, "a")).collect();
    let numbers: Vec<u8> = choose(1, 3, &[], &all).iter().map(|id| id.public_key()[0]).collect();
    assert_eq!(numbers, PINNED);
    assert_eq!(choose(1, 0, &[peer(1)], &all), []);
    assert_eq!(choose(1, 3, &[], &[]), []);
}

/// The order of the hashes for seed 1: peers that disagree on it would move replicas to and fro.
const PINNED: [u8; 3] = [1, 4, 6];

#[test]
fn many_groups_spread_over_equal_peers_without_news_of_each_other() {
    let all: Vec<Candidate> = (0..10).map(|n| candidate(n, Tier::Edge, &format!("s{}", n % 5))).collect();
    let mut held = [0u32; 10];
    for seed in 0..1000 {
        for peer in choose(seed, 3, &[], &all) {
            held[usize::from(peer.public_key()[0])] += 1;
        }
    }
    assert_eq!(held.iter().sum::<u32>(), 3000);
    // the mean is 300; four standard deviations of a fair draw are 58
    assert!(held.iter().all(|count| (242..=358).contains(count)), "{held:?}");
}

#[test]
fn groups_that_know_the_load_fill_by_capacity() {
    let mut all: Vec<Candidate> = (0..8).map(|n| candidate(n, Tier::Edge, &format!("s{n}"))).collect();
    for big in &mut all[..4] {
        big.cpus = 16;
        big.memory = 32 << 30;
    }
    for seed in 0..400 {
        let chosen = set(&choose(seed, 3, &[], &all));
        all.iter_mut().filter(|c| chosen.contains(&c.peer)).for_each(|c| c.replicas += 1);
    }
    let held: Vec<u32> = all.iter().map(|c| c.replicas).collect();
    // a fair share is 60 for a small peer and 240 for a big one; a class spans a third to a half
    assert!(held[..4].iter().all(|count| (200..=280).contains(count)), "{held:?}");
    assert!(held[4..].iter().all(|count| (40..=90).contains(count)), "{held:?}");
}

prop_compose! {
    fn any_candidate()(
        n in 0u8..40,
        tier in prop_oneof![Just(Tier::Iot), Just(Tier::Edge), Just(Tier::Cloud)],
        site in 0u8..6,
        cpus in 0u32..64,
        memory in 0u64..(64 << 30),
        replicas in 0u32..200,
    ) -> Candidate {
        Candidate { cpus, memory, replicas, ..candidate(n, tier, &format!("s{site}")) }
    }
}

/// Candidates with distinct peers: what a peer's list of the others is.
fn any_mesh() -> impl Strategy<Value = Vec<Candidate>> {
    prop::collection::vec(any_candidate(), 0..20).prop_map(|mut all| {
        let mut seen = BTreeSet::new();
        all.retain(|c| seen.insert(c.peer));
        all
    })
}

/// The most sites that any choice by this policy can reach: all of the preferred class when it is too small, and
/// then one site more for each sensor that can add one.
fn reachable_sites(wanted: usize, all: &[Candidate]) -> usize {
    let sites = |iot: bool| -> BTreeSet<&str> {
        all.iter().filter(|c| (c.tier == Tier::Iot) == iot).map(|c| c.site.as_str()).collect()
    };
    let preferred = all.iter().filter(|c| c.tier != Tier::Iot).count();
    if preferred >= wanted {
        return sites(false).len().min(wanted);
    }
    let more = sites(true).difference(&sites(false)).count();
    sites(false).len() + more.min(wanted - preferred)
}

proptest! {
    #[test]
    fn a_choice_keeps_the_policy(
        seed: u64,
        wanted in 0usize..10,
        all in prop::collection::vec(any_candidate(), 0..20),
        held in prop::collection::vec((0u8..40).prop_map(peer), 0..9),
    ) {
        let chosen = choose(seed, wanted, &held, &all);
        let distinct = set(&chosen);
        let mut mesh: BTreeMap<PeerId, &Candidate> = BTreeMap::new();
        for c in &all {
            mesh.entry(c.peer).or_insert(c);
        }
        let mesh: Vec<Candidate> = mesh.into_values().cloned().collect();
        prop_assert_eq!(distinct.len(), chosen.len(), "a peer twice");
        prop_assert_eq!(chosen.len(), wanted.min(mesh.len()));
        let taken: Vec<&Candidate> = mesh.iter().filter(|c| distinct.contains(&c.peer)).collect();
        prop_assert_eq!(taken.len(), chosen.len(), "a peer that is not there");

        let sites: BTreeSet<&str> = taken.iter().map(|c| c.site.as_str()).collect();
        prop_assert_eq!(sites.len(), reachable_sites(wanted, &mesh));

        let sensors = taken.iter().filter(|c| c.tier == Tier::Iot).count();
        let others = mesh.iter().filter(|c| c.tier != Tier::Iot).count();
        prop_assert_eq!(sensors, chosen.len().saturating_sub(others));
    }

    #[test]
    fn the_order_of_candidates_does_not_matter(seed: u64, all in any_mesh()) {
        let mut turned = all.clone();
        turned.reverse();
        prop_assert_eq!(choose(seed, 5, &[], &all), choose(seed, 5, &[], &turned));
    }

    #[test]
    fn what_was_chosen_stays_chosen(seed: u64, other: u64, wanted in 0usize..10, mut all in any_mesh()) {
        let before = choose(seed, wanted, &[], &all);
        // load changes, and even another seed, move nothing
        all.iter_mut().for_each(|c| c.replicas = c.replicas.wrapping_mul(31) % 500);
        prop_assert_eq!(set(&choose(other, wanted, &before, &all)), set(&before));
    }

    #[test]
    fn a_newcomer_moves_one_replica_at_most(
        seed: u64,
        wanted in 0usize..10,
        all in any_mesh(),
        newcomer in any_candidate(),
    ) {
        let before = choose(seed, wanted, &[], &all);
        let mut more = all.clone();
        more.push(Candidate { peer: peer(200), ..newcomer });
        let after = set(&choose(seed, wanted, &before, &more));
        let gone: Vec<_> = before.iter().filter(|peer| !after.contains(peer)).collect();
        prop_assert!(gone.len() <= 1, "{gone:?}");
        // and it moves only to the newcomer
        let came: Vec<_> = after.iter().filter(|peer| !before.contains(peer)).collect();
        prop_assert!(came.iter().all(|id| **id == peer(200)), "{came:?}");
    }

    #[test]
    fn a_peer_that_leaves_moves_its_own_replica_and_at_most_one_more(
        seed: u64,
        wanted in 1usize..10,
        all in any_mesh(),
        which: prop::sample::Index,
    ) {
        prop_assume!(!all.is_empty());
        let before = choose(seed, wanted, &[], &all);
        let mut fewer = all.clone();
        let gone = fewer.remove(which.index(all.len())).peer;
        let after = set(&choose(seed, wanted, &before, &fewer));
        let moved = before.iter().filter(|peer| **peer != gone && !after.contains(peer)).count();
        prop_assert!(moved <= 1, "{moved} moved");
        if !before.contains(&gone) {
            prop_assert_eq!(set(&before), after);
        }
    }
}
