//! Route records: what the DHT says of a topic. A hint; the group's own configuration is the truth.

use bytes::Bytes;

use crate::id::{GroupId, MeshId};
use crate::peer::Replica;

/// Name under which a catalog is routed.
pub const CATALOG: &str = "$catalog";

/// Name under which a group is routed, beside its topics.
pub fn group_name(group: GroupId) -> String {
    format!("$group/{group}")
}

/// The DHT key of a name in a namespace of a mesh: 32 bytes.
pub fn key(mesh: MeshId, namespace: &str, name: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("canal 2026 route key");
    for part in [mesh.0.as_slice(), namespace.as_bytes(), name.as_bytes()] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// Name → group → replicas with addresses, at an epoch.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RouteRecord {
    /// The mesh, 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub mesh: Bytes,
    /// The namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// A topic's name, [`CATALOG`], or a [`group_name`].
    #[prost(string, tag = "3")]
    pub name: String,
    /// Topic id; 0 for a catalog or group. A topic created again under the same name has a larger one.
    #[prost(uint64, tag = "4")]
    pub topic: u64,
    /// The group.
    #[prost(uint64, tag = "5")]
    pub group: u64,
    /// Within one group only growing: index of the entry with which the current leader's term began, or of the
    /// last change of the configuration, whichever is later. Both are committed when a record is made of them.
    #[prost(uint64, tag = "6")]
    pub epoch: u64,
    /// The group's voters and learners.
    #[prost(message, repeated, tag = "7")]
    pub replicas: Vec<Replica>,
    /// Replica id of the leader that made the record.
    #[prost(uint64, tag = "8")]
    pub leader: u64,
    /// When it was made, in milliseconds since 1970-01-01 UTC, by the leader's clock.
    #[prost(uint64, tag = "9")]
    pub issued_ms: u64,
    /// How long it may be believed after it was received, in milliseconds.
    #[prost(uint64, tag = "10")]
    pub life_ms: u64,
}

/// A route record as it is stored: its bytes, and who vouches for them.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SignedRoute {
    /// An encoded [`RouteRecord`].
    #[prost(bytes = "bytes", tag = "1")]
    pub record: Bytes,
    /// ed25519 public key of the signer, 32 bytes: one of the record's replicas.
    #[prost(bytes = "bytes", tag = "2")]
    pub signer: Bytes,
    /// ed25519 signature over [`signed_bytes`], 64 bytes.
    #[prost(bytes = "bytes", tag = "3")]
    pub signature: Bytes,
}

/// What the signature of a route record covers: a fixed text, so that the key signs nothing else by accident, and
/// the record.
pub fn signed_bytes(record: &[u8]) -> Vec<u8> {
    [b"canal route record 1\0".as_slice(), record].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_pinned_and_parts_do_not_run_together() {
        let mesh = MeshId([7; 16]);
        let hex: String = key(mesh, "default", "a/b").iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "55181be3fad5ba672996fb179e550a64d0a3cb1ee96e22f57b5995c98e6eb4a6");
        assert_ne!(key(mesh, "ab", "c"), key(mesh, "a", "bc"));
        assert_eq!(group_name(GroupId(10)), "$group/000000000000000a");
    }
}
