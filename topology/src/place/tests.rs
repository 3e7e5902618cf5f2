#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use proptest::prelude::*;

use super::*;

fn peer(n: u8) -> PeerId {
    PeerId::from_public_key([n; 32])
}

fn candidate(n: u8, tier: Tier, site: &str) -> Candidate {
    Candidate {
        peer: peer(n),
        tier,
        site: site.into(),
        cpus: 4,
        memory: 8 << 30,
        replicas: 0,
        labels: BTreeMap::new(),
        draining: false,
        coordinate: None,
    }
}

/// A choice of a group that has no wishes.
fn choose(seed: u64, wanted: usize, held: &[PeerId], candidates: &[Candidate]) -> Vec<PeerId> {
    super::choose(seed, wanted, held, &Objective::default(), candidates)
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
    // two stand in one site while another has none: one of them moves, and not the one that was named first
    let chosen = choose(7, 3, &[peer(1), peer(2), peer(3)], &all);
    assert_eq!(set(&chosen), set(&[peer(1), peer(3), peer(5)]));
    let chosen = choose(7, 3, &[peer(2), peer(1), peer(3)], &all);
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
fn wishes_are_met_where_they_can_be() {
    let mut all = vec![
        candidate(1, Tier::Edge, "a"),
        candidate(2, Tier::Edge, "b"),
        candidate(3, Tier::Cloud, "a"),
        candidate(4, Tier::Cloud, "a"),
        candidate(5, Tier::Iot, "d"),
    ];
    all[0].labels.insert("disk".into(), "fast".into());
    all[4].labels.insert("disk".into(), "fast".into());
    let choose = |wanted, held: &[PeerId], objective: &Objective| set(&super::choose(1, wanted, held, objective, &all));
    let cloud = Objective { tier: Some(Tier::Cloud), ..Objective::default() };
    // even though they share a site, and others stand
    assert_eq!(choose(2, &[peer(1), peer(2)], &cloud), set(&[peer(3), peer(4)]));
    // and one of another tier where they are too few: it is not the sensor
    assert_eq!(choose(3, &[], &cloud), set(&[peer(3), peer(4), peer(2)]));
    let sensors = Objective { tier: Some(Tier::Iot), ..Objective::default() };
    assert_eq!(choose(1, &[peer(1)], &sensors), set(&[peer(5)]));
    let fast = Objective { labels: all[0].labels.clone(), ..Objective::default() };
    assert_eq!(choose(1, &[peer(2)], &fast), set(&[peer(1)]));
    assert_eq!(choose(2, &[peer(2)], &fast), set(&[peer(1), peer(5)]));
    assert_eq!(choose(3, &[peer(2)], &fast), set(&[peer(1), peer(5), peer(2)]));
    // what is pinned comes before all of that, while it is there
    let pinned = Objective { pinned: set(&[peer(5), peer(9)]), ..cloud };
    assert_eq!(choose(2, &[peer(3), peer(4)], &pinned), set(&[peer(5), peer(3)]));
    let pinned = Objective { pinned: set(&[peer(1), peer(2), peer(5)]), ..Objective::default() };
    assert_eq!(choose(2, &[peer(5), peer(3), peer(1)], &pinned), set(&[peer(5), peer(1)]));
}

#[test]
fn a_peer_that_is_emptied_holds_nothing_unless_it_is_the_last() {
    let mut all: Vec<Candidate> = (1..=3).map(|n| candidate(n, Tier::Edge, "a")).collect();
    all[0].draining = true;
    let held = [peer(1), peer(2), peer(3)];
    assert_eq!(set(&choose(1, 3, &held, &all)), set(&[peer(2), peer(3)]));
    let pinned = Objective { pinned: set(&[peer(1)]), ..Objective::default() };
    assert_eq!(set(&super::choose(1, 3, &held, &pinned, &all)), set(&[peer(2), peer(3)]));
    all.iter_mut().for_each(|c| c.draining = true);
    assert_eq!(choose(1, 3, &held, &all), [peer(1)]);
}

#[test]
fn wishes_are_read_from_the_catalog() {
    let placement = Placement {
        tier: Some(Tier::Cloud.into()),
        labels: vec![canal_proto::peer::Label { key: "k".into(), value: "v".into() }],
        pinned: vec![vec![4; 32].into(), vec![1].into()],
    };
    let objective = Objective {
        tier: Some(Tier::Cloud),
        labels: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        pinned: set(&[peer(4)]),
    };
    assert_eq!(Objective::from(&placement), objective);
    assert_eq!(Objective::from(&Placement { tier: Some(9), ..Placement::default() }), Objective::default());
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
fn over_many_groups_a_peer_that_comes_or_goes_moves_few_replicas() {
    let all: Vec<Candidate> = (0..12).map(|n| candidate(n, Tier::Edge, &format!("s{}", n % 4))).collect();
    let placed: Vec<Vec<PeerId>> = (0..600).map(|seed| choose(seed, 3, &[], &all)).collect();
    let groups = || (0u64..).zip(&placed);
    // a newcomer in a site that there is: nothing is better for it, so nothing moves
    let mut more = all.clone();
    more.push(candidate(20, Tier::Edge, "s0"));
    assert!(groups().all(|(seed, held)| set(&choose(seed, 3, held, &more)) == set(held)));
    // one that goes: each of its groups moves one replica, no other moves any, and the rest take them evenly
    let fewer: Vec<Candidate> = all.iter().filter(|c| c.peer != peer(5)).cloned().collect();
    let mut took = BTreeMap::<PeerId, u32>::new();
    for (seed, held) in groups() {
        let after = set(&choose(seed, 3, held, &fewer));
        let came: Vec<PeerId> = after.difference(&set(held)).copied().collect();
        assert_eq!(came.len(), usize::from(held.contains(&peer(5))), "group {seed}");
        came.into_iter().for_each(|peer| *took.entry(peer).or_default() += 1);
    }
    let moved: u32 = took.values().sum();
    assert_eq!(moved as usize, placed.iter().filter(|held| held.contains(&peer(5))).count());
    // 11 peers share some 150; a site whose others stand already takes more, none takes a third of them
    assert!(took.len() == 11 && took.values().all(|count| *count * 3 < moved), "{took:?}");
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

prop_compose! {
    fn any_objective()(
        tier in prop::option::of(prop_oneof![Just(Tier::Iot), Just(Tier::Edge), Just(Tier::Cloud)]),
        label in any::<bool>(),
        pinned in prop::collection::btree_set((0u8..40).prop_map(peer), 0..4),
    ) -> Objective {
        let labels = if label { BTreeMap::from([("even".to_owned(), "1".to_owned())]) } else { BTreeMap::new() };
        Objective { tier, labels, pinned }
    }
}

/// Every other peer has the label that some objectives ask for; every seventh is being emptied.
fn with_traits(mut all: Vec<Candidate>) -> Vec<Candidate> {
    for c in &mut all {
        let number = c.peer.public_key()[0];
        if number % 2 == 0 {
            c.labels.insert("even".into(), "1".into());
        }
        c.draining = number % 7 == 0;
    }
    all
}

proptest! {
    #[test]
    fn wishes_come_before_spread_and_what_stands(
        seed: u64,
        wanted in 0usize..10,
        objective in any_objective(),
        all in any_mesh().prop_map(with_traits),
        held in prop::collection::vec((0u8..40).prop_map(peer), 0..9),
    ) {
        let chosen = super::choose(seed, wanted, &held, &objective, &all);
        let there: Vec<&Candidate> = all.iter().filter(|c| !c.draining).collect();
        if there.is_empty() {
            prop_assert_eq!(chosen.len(), wanted.min(all.len()).min(1));
            return Ok(());
        }
        prop_assert_eq!(chosen.len(), wanted.min(there.len()));
        let taken: Vec<&&Candidate> = there.iter().filter(|c| chosen.contains(&c.peer)).collect();
        prop_assert_eq!(taken.len(), chosen.len(), "a peer that is emptied, or not there");
        // nobody who was left out is nearer to the wishes than one who was taken
        let worst = taken.iter().map(|c| objective.misses(c)).max();
        let best = there.iter().filter(|c| !chosen.contains(&c.peer)).map(|c| objective.misses(c)).min();
        if let (Some(worst), Some(best)) = (worst, best) {
            prop_assert!(worst <= best, "{worst:?} before {best:?}");
        }
        // and what was chosen stays chosen, in any order
        let mut again = chosen.clone();
        again.reverse();
        prop_assert_eq!(set(&super::choose(seed, wanted, &again, &objective, &all)), set(&chosen));
    }

    #[test]
    fn a_newcomer_moves_one_replica_at_most_whatever_is_wished(
        seed: u64,
        wanted in 0usize..10,
        objective in any_objective(),
        all in any_mesh().prop_map(with_traits),
        newcomer in any_candidate(),
    ) {
        prop_assume!(all.iter().any(|c| !c.draining));
        let before = super::choose(seed, wanted, &[], &objective, &all);
        let mut more = all.clone();
        more.push(Candidate { peer: peer(200), ..newcomer });
        let after = set(&super::choose(seed, wanted, &before, &objective, &more));
        let gone: Vec<_> = before.iter().filter(|peer| !after.contains(peer)).collect();
        prop_assert!(gone.len() <= 1, "{gone:?}");
        let came: Vec<_> = after.iter().filter(|peer| !before.contains(peer)).collect();
        prop_assert!(came.iter().all(|id| **id == peer(200)), "{came:?}");
    }

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
