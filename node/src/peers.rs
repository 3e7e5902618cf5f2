//! What this peer knows of the others, by a clock: [`canal_topology::Known`] behind a lock, with this peer's own
//! description always in it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use canal_proto::PeerId;
use canal_proto::peer::{Coordinate, PeerInfo};
use canal_proto::request::{Peers, Version};
use canal_topology::Vivaldi;
use canal_topology::known::{Known, Merged};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The peers that this peer knows.
pub struct PeerTable {
    known: Mutex<Known>,
    place: Mutex<Vivaldi>,
    began: Instant,
    /// How many times this peer has started, as its descriptions say.
    boot: AtomicU64,
    revision: AtomicU64,
    /// When this peer last looked at itself.
    looked: Mutex<Option<Instant>>,
    /// Something that others should know soon.
    news: Notify,
}

impl PeerTable {
    /// Knows this peer only, which has started so many times.
    pub fn new(us: PeerId, boot: u64) -> Self {
        Self {
            known: Mutex::new(Known::new(us)),
            place: Mutex::default(),
            began: Instant::now(),
            boot: AtomicU64::new(boot),
            revision: AtomicU64::new(0),
            looked: Mutex::default(),
            news: Notify::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// How long this peer has been finding out about others.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Whether this peer has looked at itself so lately; if not, it is to do so now.
    pub fn looked_within(&self, span: Duration) -> bool {
        let mut looked = self.looked.lock();
        let lately = looked.is_some_and(|at| at.elapsed() < span);
        if !lately {
            *looked = Some(Instant::now());
        }
        lately
    }

    /// Takes what this peer is now; start, revision and coordinate are filled in here.
    pub fn describe(&self, own: PeerInfo) {
        let revision = self.revision.fetch_add(1, Ordering::Relaxed) + 1;
        let own = PeerInfo {
            boot: self.boot.load(Ordering::Relaxed),
            revision,
            coordinate: Some(self.place.lock().coordinate()),
            ..own
        };
        self.known.lock().describe(own);
    }

    /// Says which peers share groups with this one: their descriptions are kept and renewed before others.
    pub fn share(&self, peers: BTreeSet<PeerId>) {
        self.known.lock().share(peers);
    }

    /// Takes what another peer has told.
    pub fn heard(&self, told: Vec<PeerInfo>) -> Merged {
        let merged = self.known.lock().merge(told, self.now());
        // somebody has a newer description of this peer than this start of it has given: the count of starts on its disk
        // went back. Others would not believe it for as long as they remember; so it counts on from there, in descriptions.
        // (Whether its log may be trusted is another question: see `starts`.)
        if let Some(boot) = merged.ahead_of_us {
            self.boot.fetch_max(boot + 1, Ordering::Relaxed);
        }
        merged
    }

    /// What to begin an exchange with.
    pub fn sample(&self, random: u64) -> Peers {
        let known = self.known.lock();
        Peers { peers: known.sample(random, self.now()), known: known.versions() }
    }

    /// What to answer in an exchange.
    pub fn lacking(&self, theirs: &[Version]) -> Peers {
        Peers { peers: self.known.lock().lacking(theirs, self.now()), known: Vec::new() }
    }

    /// With whom to exchange next.
    pub fn partner(&self, random: u64) -> Option<(PeerId, Vec<String>)> {
        self.known.lock().partner(random, self.now())
    }

    /// A peer that shares groups with this one, of which there was no news for so long.
    pub fn stale_partner(&self, patience: Duration) -> Option<(PeerId, Vec<String>)> {
        let patience = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        self.known.lock().stale_partner(patience, self.now())
    }

    /// Forgets who was not heard of for long.
    pub fn expire(&self) {
        self.known.lock().expire(self.now());
    }

    /// Takes in a measured round trip.
    pub fn measured(&self, round_trip: Duration, other: Option<&Coordinate>, random: u64) {
        if let Some(other) = other {
            self.place.lock().observe(round_trip.as_secs_f64() * 1000.0, other, random);
        }
    }

    /// All that are known, by id, with how long ago each was heard of; this peer included.
    pub fn all(&self) -> Vec<PeerInfo> {
        self.known.lock().all(self.now())
    }

    /// Those that were heard of lately, by id; this peer included.
    pub fn live(&self) -> Vec<PeerInfo> {
        self.known.lock().live(self.now())
    }

    /// What is known of one peer.
    pub fn get(&self, peer: PeerId) -> Option<PeerInfo> {
        self.known.lock().get(peer, self.now())
    }

    /// Where a peer says that it can be reached.
    pub fn addresses(&self, peer: PeerId) -> Option<Vec<String>> {
        self.get(peer).map(|info| info.addresses).filter(|addresses| !addresses.is_empty())
    }

    /// Whether there may be more peers than are known here.
    pub fn is_full(&self) -> bool {
        self.known.lock().is_full()
    }

    /// Others should know soon what has changed here.
    pub fn tell(&self) {
        self.news.notify_one();
    }

    /// Returns when others should know something soon.
    pub async fn news(&self) {
        self.news.notified().await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    fn id(n: u8) -> PeerId {
        PeerId::from_public_key([n; 32])
    }

    #[test]
    fn a_peer_is_in_its_own_table_and_is_believed_after_its_count_went_back() {
        let (a, b) = (PeerTable::new(id(1), 7), PeerTable::new(id(2), 1));
        a.describe(PeerInfo { site: "x".into(), ..PeerInfo::default() });
        b.heard(a.sample(0).peers);
        assert_eq!(b.live().len(), 2);
        // the same peer with a fresh disk
        let again = PeerTable::new(id(1), 1);
        again.describe(PeerInfo { site: "y".into(), ..PeerInfo::default() });
        let ask = again.sample(0);
        assert_eq!(b.heard(ask.peers).renewed, 0);
        again.heard(b.lacking(&[]).peers);
        again.describe(PeerInfo { site: "y".into(), ..PeerInfo::default() });
        assert_eq!(b.heard(again.sample(0).peers).renewed, 1);
        assert_eq!(b.get(id(1)).map(|info| (info.site, info.boot)), Some(("y".into(), 8)));
        assert_eq!(again.live()[0].boot, 8);
    }

    #[test]
    fn a_round_trip_moves_the_coordinate_that_is_told() {
        let table = PeerTable::new(id(1), 1);
        table.describe(PeerInfo::default());
        let before = table.live()[0].coordinate.unwrap();
        let other = Coordinate { x: 0.0, y: 0.0, height: 0.1, error: 0.5 };
        table.measured(Duration::from_millis(20), Some(&other), 3);
        table.describe(PeerInfo::default());
        let after = table.live()[0].coordinate.unwrap();
        assert!((after.x - before.x).hypot(after.y - before.y) > 1.0, "{before:?} {after:?}");
    }
}
