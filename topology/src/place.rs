//! Which peers should hold a group's replicas.
//!
//! The policy, each line deciding only what the lines above leave open:
//! 1. iot peers only where edge and cloud peers are too few: a sensor should not carry a log that others can carry;
//! 2. replicas spread over sites, as many and as evenly as there are;
//! 3. what stands stays;
//! 4. the less loaded peer (see [`Candidate::load_class`]);
//! 5. the smaller hash of the group's seed and the peer, so that many groups spread over equal peers.
//!
//! Promises: no peer twice, never more than wanted, and fewer only when there are not enough candidates. The answer
//! depends on the set of candidates, not on their order. A candidate that comes moves one replica at most.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use canal_proto::PeerId;
use canal_proto::peer::Tier;

use crate::Candidate;

/// How good a candidate is within its site; smaller is better. It ends in the peer, so no two are equal.
type Rank = (Reverse<bool>, u32, [u8; 32], PeerId);

/// Chooses the peers for `wanted` replicas of the group with this `seed`, best first.
///
/// `candidates` are all peers that are there, those in `held` included; a peer in `held` that is not among them
/// counts as gone, and its replica is placed anew. Where a peer is named twice, its first description counts.
pub fn choose(seed: u64, wanted: usize, held: &[PeerId], candidates: &[Candidate]) -> Vec<PeerId> {
    let held: BTreeSet<PeerId> = held.iter().copied().collect();
    let mut seen = BTreeSet::new();
    // last in each list is the best, so that it can be popped
    let mut first: BTreeMap<&str, Vec<Rank>> = BTreeMap::new();
    let mut last: BTreeMap<&str, Vec<Rank>> = BTreeMap::new();
    for candidate in candidates.iter().filter(|candidate| seen.insert(candidate.peer)) {
        let class = if candidate.tier == Tier::Iot { &mut last } else { &mut first };
        let stands = held.contains(&candidate.peer);
        let rank = (Reverse(stands), candidate.load_class(), tie_break(seed, candidate.peer), candidate.peer);
        class.entry(&candidate.site).or_default().push(rank);
    }
    let mut counts = BTreeMap::new();
    let mut chosen = Vec::new();
    for mut sites in [first, last] {
        for ranks in sites.values_mut() {
            ranks.sort_unstable_by(|a, b| b.cmp(a));
        }
        fill(wanted, &mut sites, &mut counts, &mut chosen);
    }
    chosen
}

/// Takes from `sites` until `wanted` are chosen: always from the site with the fewest replicas, among those from the
/// one whose best candidate is best. This fills sites evenly, and where the last round does not reach all sites, it
/// goes to those where a replica stands already: no other even spread keeps more of what stands.
fn fill<'a>(
    wanted: usize,
    sites: &mut BTreeMap<&'a str, Vec<Rank>>,
    counts: &mut BTreeMap<&'a str, usize>,
    chosen: &mut Vec<PeerId>,
) {
    while chosen.len() < wanted {
        let next = sites
            .iter_mut()
            .filter(|(_, ranks)| !ranks.is_empty())
            .min_by_key(|(site, ranks)| (counts.get(*site).copied().unwrap_or(0), ranks.last().copied()));
        let Some((site, ranks)) = next else { return };
        if let Some((_, _, _, peer)) = ranks.pop() {
            *counts.entry(site).or_default() += 1;
            chosen.push(peer);
        }
    }
}

fn tie_break(seed: u64, peer: PeerId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("canal 2026 placement");
    hasher.update(&seed.to_le_bytes());
    hasher.update(peer.public_key());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests;
