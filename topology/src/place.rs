//! Which peers should hold a group's replicas.
//!
//! The policy, each line deciding only what the lines above leave open:
//! 1. a peer that is being emptied holds nothing, unless there is nobody else at all;
//! 2. the peers that someone pinned;
//! 3. peers with the labels that are asked for, then peers of the tier that is asked for;
//! 4. iot peers only where edge and cloud peers are too few, or where they are asked for: a sensor should not carry a
//!    log that others can carry;
//! 5. replicas spread over sites, as many and as evenly as there are;
//! 6. what stands stays, the leader most surely;
//! 7. the less loaded peer (see [`Candidate::load_class`]);
//! 8. the smaller hash of the group's seed and the peer, so that many groups spread over equal peers.
//!
//! Promises: no peer twice, never more than wanted, and fewer only when there are not enough candidates. The answer
//! depends on the set of candidates, not on their order. A candidate that comes moves one replica at most.

use std::collections::{BTreeMap, BTreeSet};

use canal_proto::PeerId;
use canal_proto::catalog::Placement;
use canal_proto::peer::Tier;

use crate::Candidate;

/// Where a group's replicas should be. What can't be had is done without: the number of replicas comes first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objective {
    /// Peers of this tier.
    pub tier: Option<Tier>,
    /// Peers with all these labels.
    pub labels: BTreeMap<String, String>,
    /// These peers before any other.
    pub pinned: BTreeSet<PeerId>,
}

impl Objective {
    /// How far a candidate is from what is asked for; smaller is nearer.
    fn misses(&self, candidate: &Candidate) -> Misses {
        if self.pinned.contains(&candidate.peer) {
            return (false, false, false, false);
        }
        let labels = self.labels.iter().any(|(key, value)| candidate.labels.get(key) != Some(value));
        let tier = self.tier.is_some_and(|tier| tier != candidate.tier);
        let sensor = candidate.tier == Tier::Iot && self.tier != Some(Tier::Iot);
        (true, labels, tier, sensor)
    }
}

impl From<&Placement> for Objective {
    /// What this version does not know of is left out: a wish that can't be read must not keep a group from its
    /// replicas.
    fn from(placement: &Placement) -> Self {
        Self {
            tier: placement.tier.and_then(|tier| Tier::try_from(tier).ok()),
            labels: placement.labels.iter().map(|label| (label.key.clone(), label.value.clone())).collect(),
            pinned: placement.pinned.iter().filter_map(|peer| PeerId::from_slice(peer).ok()).collect(),
        }
    }
}

/// Not pinned, not the labels, not the tier, a sensor that nobody asked for.
type Misses = (bool, bool, bool, bool);

/// How good a candidate is within its class and site; smaller is better. It ends in the peer, so no two are equal.
type Rank = (usize, u32, [u8; 32], PeerId);

/// Chooses the peers for `wanted` replicas of the group with this `seed`, best first.
///
/// `candidates` are all peers that are there, those in `held` included; a peer in `held` that is not among them
/// counts as gone, and its replica is placed anew. Of those in `held`, the first named stays most surely. Where a peer is
/// named twice, its first description counts.
pub fn choose(
    seed: u64,
    wanted: usize,
    held: &[PeerId],
    objective: &Objective,
    candidates: &[Candidate],
) -> Vec<PeerId> {
    let stays = candidates.iter().any(|candidate| !candidate.draining);
    // a group whose last peers are all being emptied keeps one replica: nothing is given up for a drain
    let wanted = if stays { wanted } else { wanted.min(1) };
    let mut seen = BTreeSet::new();
    let mut classes: BTreeMap<Misses, BTreeMap<&str, Vec<Rank>>> = BTreeMap::new();
    for candidate in candidates.iter().filter(|candidate| seen.insert(candidate.peer)) {
        if candidate.draining && stays {
            continue;
        }
        let stands = held.iter().position(|peer| *peer == candidate.peer).unwrap_or(usize::MAX);
        let rank = (stands, candidate.load_class(), tie_break(seed, candidate.peer), candidate.peer);
        classes.entry(objective.misses(candidate)).or_default().entry(&candidate.site).or_default().push(rank);
    }
    let mut counts = BTreeMap::new();
    let mut chosen = Vec::new();
    for sites in classes.values_mut() {
        for ranks in sites.values_mut() {
            // last in each list is the best, so that it can be popped
            ranks.sort_unstable_by(|a, b| b.cmp(a));
        }
        fill(wanted, sites, &mut counts, &mut chosen);
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
