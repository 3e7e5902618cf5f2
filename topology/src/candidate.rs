//! What a peer offers, as placement sees it.
//!
//! Made from a peer's description of itself; one that can't be understood is refused, so that no replica is placed
//! by a guess.

use std::collections::BTreeMap;

use canal_proto::PeerId;
use canal_proto::peer::{Coordinate, PeerInfo, Tier};

/// Load units of one logical processor; memory is converted at [`MEMORY_PER_CPU`] a processor.
const UNITS_PER_CPU: u64 = 1024;
/// Memory that keeps one processor busy with replicas: what small cloud machines are sold with.
const MEMORY_PER_CPU: u64 = 2 << 30;
/// A peer counts as at least this much (a sixteenth of a processor), so that an unknown size is not infinite load.
const MIN_UNITS: u64 = UNITS_PER_CPU / 16;
/// A peer counts as at most this much (256 processors): beyond it, disks and network are the limit.
const MAX_UNITS: u64 = UNITS_PER_CPU * 256;

/// Why a peer's description can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The public key is not one.
    #[error("a peer's description holds no public key of 32 bytes; ask the peer for a new one")]
    BadPeer,
    /// A tier that this version does not know.
    #[error("{0} is a tier that this version does not know; update this peer")]
    UnknownTier(i32),
}

/// A peer that may hold a replica.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The peer.
    pub peer: PeerId,
    /// Where it stands between sensors and datacentre.
    pub tier: Tier,
    /// Its failure and latency domain. Peers that name none share the empty one.
    pub site: String,
    /// Logical processors; 0 when unknown.
    pub cpus: u32,
    /// Memory of the machine in bytes; 0 when unknown.
    pub memory: u64,
    /// Replicas held, of all groups.
    pub replicas: u32,
    /// What else it offers.
    pub labels: BTreeMap<String, String>,
    /// It is being emptied.
    pub draining: bool,
    /// Where it stands in the space of round trips, when known.
    pub coordinate: Option<Coordinate>,
}

impl Candidate {
    /// How loaded the peer is once it holds one more replica: replicas per capacity, in steps of a third to a half,
    /// so that peers of about the same load tie and many groups spread over them by hash.
    pub fn load_class(&self) -> u32 {
        let by_cpu = u64::from(self.cpus).saturating_mul(UNITS_PER_CPU);
        let by_memory = self.memory / (MEMORY_PER_CPU / UNITS_PER_CPU);
        let units = by_cpu.min(by_memory).clamp(MIN_UNITS, MAX_UNITS);
        let load = (u64::from(self.replicas) + 1) * MAX_UNITS / units;
        // the position of the highest bit, and the bit below it: 1, 2, 3, 4, 6, 8, 12, 16 … begin a class each
        let top = load.max(1).ilog2();
        let half = if top == 0 { 0 } else { (load >> (top - 1)) & 1 };
        top * 2 + u32::from(half == 1)
    }
}

impl TryFrom<&PeerInfo> for Candidate {
    type Error = Error;

    fn try_from(info: &PeerInfo) -> Result<Self, Error> {
        Ok(Self {
            peer: PeerId::from_slice(&info.peer).map_err(|_| Error::BadPeer)?,
            tier: Tier::try_from(info.tier).map_err(|_| Error::UnknownTier(info.tier))?,
            site: info.site.clone(),
            cpus: info.cpus,
            memory: info.memory,
            replicas: info.replicas,
            labels: info.labels.iter().map(|label| (label.key.clone(), label.value.clone())).collect(),
            draining: info.draining,
            coordinate: info.coordinate,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

    use canal_proto::peer::Label;

    use super::*;

    fn sized(cpus: u32, memory: u64, replicas: u32) -> Candidate {
        Candidate {
            peer: PeerId::from_public_key([1; 32]),
            tier: Tier::Edge,
            site: String::new(),
            cpus,
            memory,
            replicas,
            labels: BTreeMap::new(),
            draining: false,
            coordinate: None,
        }
    }

    #[test]
    fn a_description_becomes_a_candidate() {
        let info = PeerInfo {
            peer: vec![1; 32],
            tier: Tier::Edge.into(),
            site: "berlin".into(),
            labels: vec![Label { key: "gpu".into(), value: "1".into() }],
            cpus: 4,
            memory: 8 << 30,
            replicas: 3,
            draining: true,
            coordinate: Some(Coordinate { x: 1.0, y: 2.0, height: 3.0, error: 0.5 }),
            ..PeerInfo::default()
        };
        let expected = Candidate {
            site: "berlin".into(),
            labels: BTreeMap::from([("gpu".to_owned(), "1".to_owned())]),
            draining: true,
            coordinate: info.coordinate,
            ..sized(4, 8 << 30, 3)
        };
        assert_eq!(Candidate::try_from(&info), Ok(expected));
        assert_eq!(Candidate::try_from(&PeerInfo { tier: 9, ..info.clone() }), Err(Error::UnknownTier(9)));
        assert_eq!(Candidate::try_from(&PeerInfo { peer: vec![1], ..info }), Err(Error::BadPeer));
    }

    #[test]
    fn load_grows_with_replicas_and_falls_with_capacity() {
        // one processor: 256 a replica
        let classes: Vec<u32> = (0..9).map(|held| sized(1, 2 << 30, held).load_class()).collect();
        assert_eq!(classes, [16, 18, 19, 20, 20, 21, 21, 22, 22]);
        assert_eq!(sized(4, 8 << 30, 3).load_class(), sized(1, 2 << 30, 0).load_class());
        assert_eq!(sized(4, 2 << 30, 0), Candidate { cpus: 4, ..sized(1, 2 << 30, 0) });
        // the scarcer of processors and memory counts
        assert_eq!(sized(64, 2 << 30, 0).load_class(), 16);
        // an unknown size is a small one; the largest numbers do not overflow
        assert_eq!(sized(0, 0, 0).load_class(), 24);
        assert_eq!(sized(0, 0, u32::MAX).load_class(), 88);
        assert_eq!(sized(u32::MAX, u64::MAX, 0).load_class(), 0);
    }
}
