#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use canal_proto::peer::Label;
use proptest::prelude::*;

use super::*;

fn id(n: u32) -> PeerId {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&n.to_be_bytes());
    PeerId::from_public_key(key)
}

fn info(n: u32, boot: u64, revision: u64, age: u64) -> PeerInfo {
    PeerInfo {
        peer: id(n).to_vec(),
        addresses: vec![format!("/at/{n}")],
        boot,
        revision,
        heard_ms_ago: age,
        ..PeerInfo::default()
    }
}

fn versions(known: &Known) -> Vec<(u64, u64, u64)> {
    known.all(1000).into_iter().map(|info| (info.boot, info.revision, info.heard_ms_ago)).collect()
}

#[test]
fn the_newer_start_and_then_the_newer_revision_stands() {
    let mut known = Known::new(id(0));
    known.describe(info(0, 1, 1, 0));
    let merged = known.merge(vec![info(1, 2, 5, 100)], 1000);
    assert_eq!(merged, Merged { new: vec![id(1)], renewed: 1, ..Merged::default() });
    // an older revision, an older start, and the same with a younger age: nothing new
    for old in [info(1, 2, 4, 0), info(1, 1, 99, 0), info(1, 2, 5, 0)] {
        assert_eq!(known.merge(vec![old], 1000), Merged::default());
    }
    assert_eq!(versions(&known), [(1, 1, 0), (2, 5, 100)]);
    assert_eq!(known.merge(vec![info(1, 2, 6, 900)], 1000).renewed, 1);
    assert_eq!(known.merge(vec![info(1, 3, 1, 50)], 1000).renewed, 1);
    assert_eq!(versions(&known), [(1, 1, 0), (3, 1, 50)]);
    // what is too old is not worth the place
    assert_eq!(known.merge(vec![info(2, 1, 1, FORGET_MS)], 1000), Merged::default());
}

#[test]
fn others_do_not_describe_this_peer_but_tell_it_that_it_went_back() {
    let mut known = Known::new(id(0));
    known.describe(PeerInfo { site: "here".into(), ..info(0, 2, 7, 0) });
    assert_eq!(known.merge(vec![info(0, 2, 7, 0), info(0, 2, 6, 0)], 0).ahead_of_us, None);
    assert_eq!(known.merge(vec![info(0, 4, 1, 0), info(0, 2, 8, 0)], 0).ahead_of_us, Some(4));
    assert_eq!(known.get(id(0), 0).unwrap().site, "here");
    assert_eq!(known.count(), 1);
}

#[test]
fn who_is_not_heard_of_is_no_candidate_and_then_forgotten() {
    let mut known = Known::new(id(5));
    known.merge(vec![info(1, 1, 1, 0), info(9, 1, 1, LOST_MS - 1)], 0);
    let live = |known: &Known, now| known.live(now).into_iter().map(|info| info.peer).collect::<Vec<_>>();
    assert_eq!(live(&known, 0), [id(1).to_vec(), id(5).to_vec(), id(9).to_vec()]);
    assert_eq!(live(&known, 1), [id(1).to_vec(), id(5).to_vec()]);
    assert_eq!(live(&known, LOST_MS), [id(5).to_vec()]);
    known.expire(FORGET_MS - LOST_MS + 1);
    assert_eq!(known.count(), 2);
    known.expire(FORGET_MS);
    assert_eq!(known.count(), 1);
}

#[test]
fn who_says_what_it_has_is_told_what_it_lacks() {
    let mut known = Known::new(id(0));
    known.describe(info(0, 1, 3, 0));
    known.merge(vec![info(1, 1, 5, 10), info(2, 1, 5, 20), info(3, 1, 5, 30), info(4, 2, 1, 40), info(5, 1, 1, 50)], 0);
    known.merge(vec![info(6, 1, 9, 0)], 0);
    let theirs: Vec<Version> =
        [info(1, 1, 5, 0), info(2, 2, 1, 0), info(3, 1, 4, 0), info(4, 1, 9, 0), info(6, 1, 1, 0)]
            .iter()
            .map(|info| version(PeerId::from_slice(&info.peer).unwrap(), info))
            .collect();
    let told: BTreeMap<_, _> =
        known.lacking(&theirs, 1000).into_iter().map(|info| (info.peer, (info.revision, info.heard_ms_ago))).collect();
    let expected = [(0, (3, 0)), (3, (5, 1030)), (4, (1, 1040)), (5, (1, 1050)), (6, (9, 1000))];
    assert_eq!(told, expected.map(|(n, told)| (id(n).to_vec(), told)).into());
    assert_eq!(known.lacking(&known.versions(), 1000).len(), 1);
    assert_eq!(known.sample(0, 1000).len(), 7);
}

#[test]
fn the_unknown_comes_before_the_outdated() {
    let mut known = Known::new(id(0));
    known.merge((1..=60).map(|n| info(n, 1, 100 + u64::from(n), 0)).collect(), 0);
    let theirs: Vec<Version> = (11..=60).map(|n| version(id(n), &info(n, 1, 100, 0))).collect();
    let told: BTreeSet<_> = known.lacking(&theirs, 0).into_iter().map(|info| info.peer).collect();
    // ten that they lack, and the 21 of which they are furthest behind
    assert_eq!(told, (0..=10).chain(40..=60).map(|n| id(n).to_vec()).collect());
}

#[test]
fn a_large_sample_has_the_freshest_and_others_at_random() {
    let mut known = Known::new(id(0));
    known.merge((1..=200).map(|n| info(n, 1, 1, u64::from(n) * 10)).collect(), 10_000);
    let mut seen = BTreeSet::new();
    for random in 0..200 {
        let told = known.sample(random, 10_000);
        assert_eq!(told.len(), MAX_GOSSIP);
        assert_eq!(told[0].peer, id(0).to_vec());
        let freshest: BTreeSet<_> = (1..=FRESHEST as u32).map(|n| id(n).to_vec()).collect();
        assert_eq!(told[1..=FRESHEST].iter().map(|info| info.peer.clone()).collect::<BTreeSet<_>>(), freshest);
        let all: BTreeSet<_> = told.into_iter().map(|info| info.peer).collect();
        assert_eq!(all.len(), MAX_GOSSIP, "nobody twice");
        seen.extend(all);
    }
    assert_eq!(seen.len(), 201, "everybody is told of at some time");
}

#[test]
fn the_bound_is_kept_and_who_shares_groups_stays() {
    let mut known = Known::with_capacity(id(0), 5);
    known.share([id(1), id(2)].into());
    known.merge((1..=9).map(|n| info(n, 1, 1, 100 - u64::from(n))).collect(), 1000);
    let peers: Vec<_> = known.all(1000).into_iter().map(|info| info.peer).collect();
    assert_eq!(peers, [0, 1, 2, 8, 9].map(|n| id(n).to_vec()));
    assert!(known.is_full());
}

#[test]
fn partners_are_those_who_are_there_and_now_and_then_one_who_is_not() {
    let mut known = Known::new(id(0));
    assert_eq!(known.partner(3, 0), None);
    known.merge(vec![info(1, 1, 1, 0), info(2, 1, 1, 0), info(3, 1, 1, LOST_MS)], 0);
    let mut counts = BTreeMap::new();
    for random in 0..800 {
        *counts.entry(known.partner(random, 0).unwrap().0).or_insert(0) += 1;
    }
    assert_eq!(counts, BTreeMap::from([(id(1), 350), (id(2), 350), (id(3), 100)]));
    // when all are lost they are all that is left
    assert!(known.partner(1, FORGET_MS).is_some());
    known.share([id(2), id(3)].into());
    assert_eq!(known.stale_partner(4000, 3999), None);
    assert_eq!(known.stale_partner(4000, 4000), Some((id(2), vec!["/at/2".into()])));
    assert_eq!(known.stale_partner(4000, LOST_MS), None);
}

#[test]
fn what_is_too_large_is_refused() {
    let mut known = Known::new(id(0));
    let label = |n: usize| Label { key: "k".repeat(n), value: String::new() };
    let refused = [
        PeerInfo { peer: vec![1], ..info(1, 1, 1, 0) },
        PeerInfo { labels: vec![label(1); MAX_LABELS + 1], ..info(1, 1, 1, 0) },
        PeerInfo { labels: vec![label(MAX_TEXT)], ..info(1, 1, 1, 0) },
        PeerInfo { addresses: vec![String::new(); MAX_ADDRESSES + 1], ..info(1, 1, 1, 0) },
    ];
    assert_eq!(known.merge(refused.into(), 0).refused, 4);
    assert_eq!(known.count(), 1);
    assert_eq!(check(&PeerInfo { labels: vec![label(MAX_TEXT - 5)], ..info(1, 1, 1, 0) }), Ok(id(1)));
}

proptest! {
    /// In whatever order and by whomever descriptions come, the newest of each peer stands and the bound is kept.
    #[test]
    fn the_newest_stands_whatever_the_order(
        heard in proptest::collection::vec((1u32..12, 1u64..4, 0u64..6, 0u64..20_000), 0..80),
        chunk in 1usize..9,
    ) {
        let mut known = Known::new(id(0));
        let mut newest = BTreeMap::new();
        for part in heard.chunks(chunk) {
            known.merge(part.iter().map(|(n, boot, revision, age)| info(*n, *boot, *revision, *age)).collect(), 50_000);
        }
        for (n, boot, revision, _) in heard {
            let at = newest.entry(id(n).to_vec()).or_insert((boot, revision));
            *at = (*at).max((boot, revision));
        }
        let all = known.all(50_000);
        let stands: BTreeMap<_, _> = all.into_iter().skip(1).map(|info| (info.peer, (info.boot, info.revision))).collect();
        prop_assert_eq!(stands, newest);
    }

    #[test]
    fn never_more_than_the_bound(heard in proptest::collection::vec((1u32..200, 0u64..9_000), 0..400), capacity in 1usize..40) {
        let mut known = Known::with_capacity(id(0), capacity);
        for (at, (n, age)) in heard.into_iter().enumerate() {
            known.merge(vec![info(n, 1, at as u64, age)], 10_000);
            prop_assert!(known.count() <= capacity);
            prop_assert!(known.sample(at as u64, 10_000).len() <= MAX_GOSSIP);
        }
    }
}

/// Peers that exchange every 2 s, each at its own time of it.
struct Mesh {
    peers: Vec<Known>,
    alive: Vec<bool>,
    now: u64,
    random: u64,
    revision: u64,
}

const ROUND: u64 = 2000;

impl Mesh {
    /// Everybody knows the first peer, as after joining by it.
    fn new(count: u32) -> Self {
        let mut mesh = Self { peers: Vec::new(), alive: vec![true; count as usize], now: 0, random: 7, revision: 0 };
        for n in 0..count {
            let mut known = Known::new(id(n));
            known.describe(info(n, 1, 0, 0));
            known.merge(vec![info(0, 1, 0, 0)], 0);
            mesh.peers.push(known);
        }
        mesh
    }

    fn next(&mut self) -> u64 {
        self.random = scramble(self.random);
        self.random
    }

    fn round(&mut self) {
        let count = self.peers.len() as u64;
        for n in 0..self.peers.len() {
            self.now += if n == 0 { ROUND - ROUND / count * (count - 1) } else { ROUND / count };
            if self.alive[n] {
                self.exchange(n);
            }
        }
    }

    fn exchange(&mut self, n: usize) {
        let (now, a, b) = (self.now, self.next(), self.next());
        self.peers[n].expire(now);
        let Some((to, _)) = self.peers[n].partner(b, now) else { return };
        let to = u32::from_be_bytes(to.public_key()[..4].try_into().unwrap()) as usize;
        if !self.alive[to] {
            return;
        }
        self.revision += 1;
        for at in [n, to] {
            self.peers[at].describe(info(at as u32, 1, self.revision, 0));
        }
        let told = self.peers[n].sample(a, now);
        let versions = self.peers[n].versions();
        assert_eq!(self.peers[to].merge(told, now).refused, 0);
        let answer = self.peers[to].lacking(&versions, now);
        self.peers[n].merge(answer, now);
    }

    fn living(&self) -> impl Iterator<Item = &Known> {
        self.peers.iter().zip(&self.alive).filter(|(_, alive)| **alive).map(|(known, _)| known)
    }

    /// Number of peers in the largest set in which each reaches each other over who knows whom.
    fn connected(&self) -> usize {
        let index = |peer: &[u8]| u32::from_be_bytes(peer[..4].try_into().unwrap()) as usize;
        let mut reached = vec![false; self.peers.len()];
        let start = self.alive.iter().position(|alive| *alive).unwrap();
        let mut stack = vec![start];
        reached[start] = true;
        while let Some(at) = stack.pop() {
            for info in self.peers[at].live(self.now) {
                let next = index(&info.peer);
                if self.alive[next] && !reached[next] {
                    reached[next] = true;
                    stack.push(next);
                }
            }
        }
        reached.into_iter().filter(|reached| *reached).count()
    }
}

#[test]
fn in_a_mesh_of_200_everybody_finds_out_about_everybody() {
    let mut mesh = Mesh::new(200);
    let rounds = (1..=40).find(|_| {
        mesh.round();
        mesh.peers.iter().all(|known| known.count() == 200)
    });
    assert!(rounds.is_some_and(|rounds| rounds <= 15), "{rounds:?} rounds");
    // and they stay: nobody is forgotten, and most are fresh enough for placement at any time
    let mut live = Vec::new();
    for _ in 0..40 {
        mesh.round();
        assert!(mesh.peers.iter().all(|known| known.count() == 200));
        live.extend(mesh.peers.iter().map(|known| known.live(mesh.now).len()));
    }
    let least = live.iter().min().unwrap();
    assert!(*least > 32, "{least} live");
    // who goes is no candidate soon, and forgotten in time
    for n in 0..100 {
        mesh.alive[n] = false;
    }
    for _ in 0..20 {
        mesh.round();
    }
    for known in mesh.living() {
        assert!(known.live(mesh.now).iter().all(|info| info.peer >= id(100).to_vec()), "a dead peer counts as there");
    }
    for _ in 0..150 {
        mesh.round();
    }
    assert!(mesh.living().all(|known| known.count() == 100));
}

#[test]
fn in_a_mesh_of_2000_samples_are_bounded_mixed_and_connected() {
    let mut mesh = Mesh::new(2000);
    for _ in 0..16 {
        mesh.round();
    }
    assert_eq!(mesh.connected(), 2000);
    let before: Vec<BTreeSet<Vec<u8>>> =
        mesh.peers.iter().map(|known| known.all(0).into_iter().map(|info| info.peer).collect()).collect();
    for _ in 0..16 {
        mesh.round();
    }
    assert_eq!(mesh.connected(), 2000);
    let mut known_by = vec![0; 2000];
    let mut stayed = 0;
    for (known, before) in mesh.peers.iter().zip(&before) {
        assert!(known.count() <= MAX_KNOWN_PEERS);
        assert!(known.live(mesh.now).len() > 32, "{} live", known.live(mesh.now).len());
        for info in known.all(mesh.now) {
            known_by[u32::from_be_bytes(info.peer[..4].try_into().unwrap()) as usize] += 1;
            stayed += usize::from(before.contains(&info.peer));
        }
    }
    // each is known by 256 on average; nobody by almost nobody, nobody by almost all
    let (least, most) = (known_by.iter().min().unwrap(), known_by.iter().max().unwrap());
    assert!(*least > 20 && *most < 1200, "known by {least} to {most}");
    // a sample of 256 drawn anew would share 33 with the one before
    assert!(stayed / 2000 < 100, "{} of 256 stayed", stayed / 2000);
    // the mesh survives losing half of itself at once
    for n in (0..2000).step_by(2) {
        mesh.alive[n] = false;
    }
    for _ in 0..16 {
        mesh.round();
    }
    assert_eq!(mesh.connected(), 1000);
}
