//! What one peer knows of the others: a bounded, changing sample of the mesh's descriptions.
//!
//! Newscast (Jelasity, Kowalczyk, van Steen, 2003) with views of [`MAX_KNOWN_PEERS`] of which an exchange carries
//! [`MAX_GOSSIP`]: whoever is known is exchanged with, fresh descriptions push out old ones, and so a peer that is gone
//! fades from all views while the rest stays one well-mixed graph. In a mesh that fits, everybody knows everybody; so that
//! nobody is left out by chance for long, who asks says which versions it has, and is told what it lacks (van Renesse,
//! Dumitriu, Gough, Thomas, "Efficient reconciliation and flow control for anti-entropy protocols", 2008).
//!
//! Promises: of two descriptions of a peer the newer stands (by start, then by revision), whoever brings it and in
//! whatever order; ages only grow until a newer description comes; never more than the bound, and peers that share
//! groups with this one are the last to make room.
//!
//! Clock readings are milliseconds of any monotonic clock of this peer's; ages travel, times do not. Random numbers are
//! passed in.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use canal_proto::PeerId;
use canal_proto::limits::{MAX_ADDRESSES, MAX_GOSSIP, MAX_KNOWN_PEERS};
use canal_proto::peer::PeerInfo;
use canal_proto::request::Version;

/// A peer whose description was not renewed for this long is no candidate for replicas: it is gone, or far.
pub const LOST_MS: u64 = 10_000;
/// After this long it is forgotten.
pub const FORGET_MS: u64 = 300_000;
/// Labels that one description may have, and bytes of all its texts: 256 descriptions are below a MiB.
pub const MAX_LABELS: usize = 64;
/// Bytes of all texts of a description.
pub const MAX_TEXT: usize = 3072;
/// One in so many exchanges is tried with a peer that was not heard of for a while: it may have come back, and two
/// halves of a mesh that was cut find each other again.
const TRY_LOST: u64 = 8;
/// Of a sample, so many are the freshest; the others are picked at random, so that no description stands still.
const FRESHEST: usize = MAX_GOSSIP / 2;

/// Why a description is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The public key is not one.
    #[error("a description holds no public key of 32 bytes; update the peer that sent it")]
    BadPeer,
    /// It is larger than a description may be.
    #[error(
        "a description has more than {MAX_LABELS} labels, {MAX_ADDRESSES} addresses or {MAX_TEXT} bytes of text; give the peer fewer labels"
    )]
    TooLarge,
}

#[derive(Debug, Clone)]
struct Entry {
    info: PeerInfo,
    /// When the description was made, by this peer's clock, as far as the ages that came with it tell; later by
    /// [`FORGET_MS`], so that what was made before the clock's zero has its place.
    made: u64,
}

impl Entry {
    fn age(&self, now: u64) -> u64 {
        (now + FORGET_MS).saturating_sub(self.made)
    }

    fn aged(&self, now: u64) -> PeerInfo {
        PeerInfo { heard_ms_ago: self.age(now), ..self.info.clone() }
    }
}

/// What came of an exchange.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merged {
    /// Peers that were not known before.
    pub new: Vec<PeerId>,
    /// Peers of which something newer is known now.
    pub renewed: usize,
    /// Descriptions that were refused.
    pub refused: usize,
    /// Somebody has a newer description of this peer than it has given: its disk or its clock of starts went back.
    pub ahead_of_us: Option<u64>,
}

/// The peers that one peer knows, itself included.
#[derive(Debug, Clone)]
pub struct Known {
    us: PeerId,
    own: PeerInfo,
    capacity: usize,
    peers: BTreeMap<PeerId, Entry>,
    shared: BTreeSet<PeerId>,
}

impl Known {
    /// Knows only the peer itself.
    pub fn new(us: PeerId) -> Self {
        Self::with_capacity(us, MAX_KNOWN_PEERS)
    }

    /// The same with another bound.
    pub fn with_capacity(us: PeerId, capacity: usize) -> Self {
        let own = PeerInfo { peer: us.to_vec(), ..PeerInfo::default() };
        Self { us, own, capacity, peers: BTreeMap::new(), shared: BTreeSet::new() }
    }

    /// This peer as it describes itself from now on. Its revision has to grow.
    pub fn describe(&mut self, own: PeerInfo) {
        self.own = PeerInfo { peer: self.us.to_vec(), heard_ms_ago: 0, ..own };
    }

    /// The peers that share groups with this one.
    pub fn share(&mut self, peers: BTreeSet<PeerId>) {
        self.shared = peers;
    }

    /// Takes descriptions that another peer knows, each with its age.
    pub fn merge(&mut self, heard: Vec<PeerInfo>, now: u64) -> Merged {
        let mut merged = Merged::default();
        for info in heard {
            let peer = match check(&info) {
                Ok(peer) => peer,
                Err(_) => {
                    merged.refused += 1;
                    continue;
                }
            };
            if peer == self.us {
                if order(&info) > order(&self.own) {
                    merged.ahead_of_us = merged.ahead_of_us.max(Some(info.boot));
                }
                continue;
            }
            if info.heard_ms_ago >= FORGET_MS {
                continue;
            }
            // an equal one keeps its age: ages lack the time that they were on their way, and would stand still where
            // two peers told each other of a third that is gone
            let known = self.peers.get(&peer);
            if known.is_some_and(|known| order(&known.info) >= order(&info)) {
                continue;
            }
            if known.is_none() {
                merged.new.push(peer);
            }
            merged.renewed += 1;
            let made = (now + FORGET_MS).saturating_sub(info.heard_ms_ago);
            self.peers.insert(peer, Entry { info, made });
        }
        self.make_room();
        merged.new.retain(|peer| self.peers.contains_key(peer));
        merged
    }

    /// Lets the oldest go until the bound is kept; those that share groups last.
    fn make_room(&mut self) {
        let limit = self.capacity.saturating_sub(1);
        if self.peers.len() <= limit {
            return;
        }
        let mut by_age: Vec<(bool, u64, PeerId)> =
            self.peers.iter().map(|(peer, entry)| (self.shared.contains(peer), entry.made, *peer)).collect();
        let excess = self.peers.len() - limit;
        by_age.select_nth_unstable(excess - 1);
        for (_, _, peer) in by_age.into_iter().take(excess) {
            self.peers.remove(&peer);
        }
    }

    /// Forgets who was not heard of for [`FORGET_MS`].
    pub fn expire(&mut self, now: u64) {
        self.peers.retain(|_, entry| entry.age(now) < FORGET_MS);
    }

    /// Which descriptions this peer has.
    pub fn versions(&self) -> Vec<Version> {
        self.peers.iter().map(|(peer, entry)| version(*peer, &entry.info)).collect()
    }

    /// What to tell a peer of which it is not known what it knows: this peer, then the freshest and some at random.
    pub fn sample(&self, random: u64, now: u64) -> Vec<PeerInfo> {
        let mut first: Vec<_> = self.peers.iter().map(|(peer, entry)| (Reverse(entry.made), *peer, entry)).collect();
        let rest = split_smallest(&mut first, FRESHEST, |(made, peer, _)| (*made, *peer));
        first.extend(pick(rest, MAX_GOSSIP.saturating_sub(1 + FRESHEST), random));
        self.told(first.into_iter().map(|(_, _, entry)| entry), now)
    }

    /// What to tell a peer that knows of `theirs`: this peer, then those that it does not know, the freshest of them
    /// first, then those of which it is furthest behind.
    pub fn lacking(&self, theirs: &[Version], now: u64) -> Vec<PeerInfo> {
        let theirs: BTreeMap<u64, (u64, u64)> =
            theirs.iter().map(|theirs| (theirs.peer, (theirs.boot, theirs.revision))).collect();
        let rank = |(peer, entry): (&PeerId, &'_ Entry)| {
            let ours = version(*peer, &entry.info);
            let behind = match theirs.get(&ours.peer) {
                None => u64::MAX,
                Some((boot, _)) if *boot < ours.boot => u64::MAX - 1,
                Some((boot, revision)) if *boot == ours.boot => ours.revision.saturating_sub(*revision),
                Some(_) => 0,
            };
            (behind > 0).then_some((Reverse(behind), Reverse(entry.made), *peer))
        };
        let mut first: Vec<_> = self.peers.iter().filter_map(rank).collect();
        split_smallest(&mut first, MAX_GOSSIP - 1, |rank| *rank);
        self.told(first.iter().filter_map(|(_, _, peer)| self.peers.get(peer)), now)
    }

    fn told<'a>(&self, others: impl Iterator<Item = &'a Entry>, now: u64) -> Vec<PeerInfo> {
        std::iter::once(self.own.clone()).chain(others.map(|entry| entry.aged(now))).collect()
    }

    /// With whom to exchange next: anybody who is there, now and then somebody who may be there again. `None` when
    /// nobody is known.
    pub fn partner(&self, random: u64, now: u64) -> Option<(PeerId, Vec<String>)> {
        let (live, lost): (Vec<_>, Vec<_>) = self.peers.iter().partition(|(_, entry)| entry.age(now) < LOST_MS);
        let among = match (live.is_empty(), lost.is_empty()) {
            (true, _) => lost,
            (false, false) if random.is_multiple_of(TRY_LOST) => lost,
            (false, _) => live,
        };
        let at = usize::try_from((random / TRY_LOST) % (among.len().max(1) as u64)).unwrap_or(0);
        among.get(at).map(|(peer, entry)| (**peer, entry.info.addresses.clone()))
    }

    /// Of the peers that share groups with this one, the one of which there was no news for longest, if that is longer
    /// than `patience`.
    pub fn stale_partner(&self, patience: u64, now: u64) -> Option<(PeerId, Vec<String>)> {
        let shared = self.shared.iter().filter_map(|peer| Some((peer, self.peers.get(peer)?)));
        let stale = shared.filter(|(_, entry)| (patience..LOST_MS).contains(&entry.age(now)));
        stale.min_by_key(|(_, entry)| entry.made).map(|(peer, entry)| (*peer, entry.info.addresses.clone()))
    }

    /// All that are known, by id, with their ages; this peer included.
    pub fn all(&self, now: u64) -> Vec<PeerInfo> {
        let mut all: Vec<PeerInfo> = self.peers.values().map(|entry| entry.aged(now)).collect();
        let at = all.partition_point(|info| info.peer < self.own.peer);
        all.insert(at, self.own.clone());
        all
    }

    /// Those that were heard of lately, by id; this peer included.
    pub fn live(&self, now: u64) -> Vec<PeerInfo> {
        let mut live = self.all(now);
        live.retain(|info| info.heard_ms_ago < LOST_MS);
        live
    }

    /// What is known of one peer.
    pub fn get(&self, peer: PeerId, now: u64) -> Option<PeerInfo> {
        if peer == self.us {
            return Some(self.own.clone());
        }
        self.peers.get(&peer).map(|entry| entry.aged(now))
    }

    /// How many are known, this peer included.
    pub fn count(&self) -> usize {
        self.peers.len() + 1
    }

    /// Whether as many are known as can be: then there may be more.
    pub fn is_full(&self) -> bool {
        self.count() >= self.capacity
    }
}

/// The order of descriptions of one peer.
fn order(info: &PeerInfo) -> (u64, u64) {
    (info.boot, info.revision)
}

/// Whether a description can be taken, and whose it is.
///
/// # Errors
/// [`Refused`].
pub fn check(info: &PeerInfo) -> Result<PeerId, Refused> {
    let peer = PeerId::from_slice(&info.peer).map_err(|_| Refused::BadPeer)?;
    let labels: usize = info.labels.iter().map(|label| label.key.len() + label.value.len()).sum();
    let addresses: usize = info.addresses.iter().map(String::len).sum();
    let text = labels + addresses + info.site.len() + info.version.len();
    if info.labels.len() > MAX_LABELS || info.addresses.len() > MAX_ADDRESSES || text > MAX_TEXT {
        return Err(Refused::TooLarge);
    }
    Ok(peer)
}

fn version(peer: PeerId, info: &PeerInfo) -> Version {
    let mut first = [0; 8];
    first.iter_mut().zip(peer.public_key()).for_each(|(to, from)| *to = *from);
    Version { peer: u64::from_le_bytes(first), boot: info.boot, revision: info.revision }
}

/// Leaves the smallest so many in `from`, in any order, and returns the rest.
fn split_smallest<T, K: Ord>(from: &mut Vec<T>, count: usize, key: impl FnMut(&T) -> K) -> Vec<T> {
    if from.len() <= count {
        return Vec::new();
    }
    from.select_nth_unstable_by_key(count, key);
    from.split_off(count)
}

/// So many of these, each set as likely as any other (Fisher and Yates).
fn pick<T>(mut from: Vec<T>, count: usize, random: u64) -> Vec<T> {
    let count = count.min(from.len());
    let mut state = random;
    for at in 0..count {
        let left = (from.len() - at) as u64;
        state = scramble(state);
        from.swap(at, at + usize::try_from(state % left.max(1)).unwrap_or(0));
    }
    from.truncate(count);
    from
}

/// SplitMix64 (Steele, Lea, Flood, 2014): one random number makes many.
fn scramble(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
