//! Making, signing and checking route records.
//!
//! [`sign`] makes the bytes that the DHT stores; [`open`] is the only way to a [`Verified`] record, so whoever holds
//! one knows that its size, mesh, name, group, replicas, life, key and signature were checked. Whether it is newer
//! than another is the caller's question: [`Verified::order`].
//!
//! Refused here: whatever a member of the group can't have made. Not refused: a member that lies (peers of a mesh
//! are trusted not to), and a clock that is wrong, since a record's life begins when it is received.

use std::collections::BTreeSet;

use bytes::Bytes;
use canal_proto::limits::{MAX_ADDRESSES, MAX_REPLICAS, MAX_ROUTE_RECORD};
use canal_proto::peer::Replica;
use canal_proto::route::{self, RouteRecord, SignedRoute};
use canal_proto::{GroupId, MeshId, PeerId, TopicName, name};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use prost::Message;

/// A record is believed for ten minutes at most: as long as a dead group's route may mislead.
pub const MAX_LIFE_MS: u64 = 10 * 60 * 1000;
/// One multiaddress of a replica, in characters: one through a relay has about 200.
pub const MAX_ADDRESS: usize = 255;

/// Why bytes are no route record, or a route record can't be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// More than [`MAX_ROUTE_RECORD`] bytes. Checked before anything is parsed.
    #[error("a route record has at most {MAX_ROUTE_RECORD} bytes; announce fewer addresses")]
    TooLarge,
    /// Not a [`SignedRoute`] that holds a [`RouteRecord`].
    #[error("the bytes are not a route record; the sender may speak another version")]
    Malformed,
    /// No signer or no signature.
    #[error("the route record is not signed; the group's leader has to sign it")]
    Unsigned,
    /// The signature is not the signer's.
    #[error("the signature of the route record is not its signer's; look the route up elsewhere")]
    Forged,
    /// The record of another mesh.
    #[error("the route record belongs to another mesh; check which mesh the peers have joined")]
    OtherMesh,
    /// The namespace or the name can't be one.
    #[error("the route record's namespace or name is not valid; use the name of a topic, `$catalog` or a group")]
    BadName,
    /// The topic or group id does not go with the name.
    #[error("the route record's topic or group does not go with its name; look the route up again")]
    BadIds,
    /// No replica, too many, one twice, no leader among them, or an address that can't be one.
    #[error(
        "a route record names 1 to {MAX_REPLICAS} distinct replicas, its leader among them, \
         with at most {MAX_ADDRESSES} addresses each"
    )]
    BadReplicas,
    /// No life, or one of more than [`MAX_LIFE_MS`].
    #[error("a route record lives 1 to {MAX_LIFE_MS} ms; choose a shorter life and publish again in time")]
    BadLife,
    /// The signer is not one of the record's replicas.
    #[error("the route record's signer holds no replica of the group; only a replica may publish its route")]
    NotMember,
    /// It stands under a key that is not its own.
    #[error("the route record does not belong under this key; use the key of its namespace and name")]
    WrongKey,
}

/// A route record that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    route: RouteRecord,
    signer: PeerId,
    key: [u8; 32],
    bytes: Bytes,
    expires_ms: u64,
}

impl Verified {
    /// The record.
    pub fn route(&self) -> &RouteRecord {
        &self.route
    }

    /// Who signed it.
    pub fn signer(&self) -> PeerId {
        self.signer
    }

    /// The key under which the DHT stores it.
    pub fn key(&self) -> [u8; 32] {
        self.key
    }

    /// The encoded [`SignedRoute`].
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// When it ends, by the clock of the peer that received it.
    pub fn expires_ms(&self) -> u64 {
        self.expires_ms
    }

    /// The same record, as it came in at another time.
    #[must_use]
    pub fn received(mut self, now_ms: u64) -> Self {
        self.expires_ms = now_ms.saturating_add(self.route.life_ms);
        self
    }

    /// The record, if it belongs under this key.
    ///
    /// # Errors
    /// [`Error::WrongKey`].
    pub fn under(self, key: &[u8]) -> Result<Self, Error> {
        if self.key.as_slice() == key { Ok(self) } else { Err(Error::WrongKey) }
    }

    /// Ends it sooner: a record that another peer has held for a while has only the rest of its life.
    #[must_use]
    pub fn until(mut self, expires_ms: u64) -> Self {
        self.expires_ms = self.expires_ms.min(expires_ms);
        self
    }

    /// Topic id, epoch and time of issue: of two records for one name, the one that is larger here is newer.
    pub fn order(&self) -> (u64, u64, u64) {
        (self.route.topic, self.route.epoch, self.route.issued_ms)
    }

    /// Whether a peer holds a replica of the group, as this record has it.
    pub fn has_member(&self, peer: PeerId) -> bool {
        is_member(&self.route, peer)
    }
}

/// The newest of several records. Of two that are equally new, the one with the larger bytes, so that all peers
/// agree.
pub fn newest(found: impl IntoIterator<Item = Verified>) -> Option<Verified> {
    found.into_iter().max_by(|a, b| (a.order(), a.bytes()).cmp(&(b.order(), b.bytes())))
}

/// Signs a record with the ed25519 key that this seed makes.
///
/// A record that no peer would store is not signed: the error says what is wrong with it.
pub fn sign(record: &RouteRecord, seed: &[u8; 32]) -> Result<SignedRoute, Error> {
    let key = SigningKey::from_bytes(seed);
    let signer = PeerId::from_public_key(key.verifying_key().to_bytes());
    sign_by(record, signer, &|bytes| key.sign(bytes).to_bytes())
}

/// Signs a record with a key that stays where it is: `signature` is given the bytes to sign.
pub fn sign_by(
    record: &RouteRecord,
    signer: PeerId,
    signature: &dyn Fn(&[u8]) -> [u8; 64],
) -> Result<SignedRoute, Error> {
    check(record)?;
    if !is_member(record, signer) {
        return Err(Error::NotMember);
    }
    let bytes = record.encode_to_vec();
    let signature = signature(&route::signed_bytes(&bytes));
    let signed = SignedRoute {
        record: bytes.into(),
        signer: Bytes::copy_from_slice(signer.public_key()),
        signature: Bytes::copy_from_slice(&signature),
    };
    if signed.encoded_len() > MAX_ROUTE_RECORD { Err(Error::TooLarge) } else { Ok(signed) }
}

/// Checks the bytes of a [`SignedRoute`] that came in at `now_ms`.
pub fn open(bytes: &[u8], mesh: MeshId, now_ms: u64) -> Result<Verified, Error> {
    if bytes.len() > MAX_ROUTE_RECORD {
        return Err(Error::TooLarge);
    }
    let signed = SignedRoute::decode(bytes).map_err(|_| Error::Malformed)?;
    let record = RouteRecord::decode(signed.record.as_ref()).map_err(|_| Error::Malformed)?;
    if record.mesh.as_ref() != mesh.0.as_slice() {
        return Err(Error::OtherMesh);
    }
    check(&record)?;
    if signed.signer.is_empty() || signed.signature.is_empty() {
        return Err(Error::Unsigned);
    }
    let signer = PeerId::from_slice(&signed.signer).map_err(|_| Error::Forged)?;
    if !is_member(&record, signer) {
        return Err(Error::NotMember);
    }
    // last, because it is by far the most work
    let signature = <[u8; 64]>::try_from(signed.signature.as_ref()).map_err(|_| Error::Forged)?;
    VerifyingKey::from_bytes(signer.public_key())
        .and_then(|key| key.verify_strict(&route::signed_bytes(&signed.record), &Signature::from_bytes(&signature)))
        .map_err(|_| Error::Forged)?;
    Ok(Verified {
        key: route::key(mesh, &record.namespace, &record.name),
        expires_ms: now_ms.saturating_add(record.life_ms),
        signer,
        bytes: Bytes::copy_from_slice(bytes),
        route: record,
    })
}

/// Checks the bytes of a [`SignedRoute`] that came in at `now_ms` under a key of the DHT.
pub fn open_at(key: &[u8], bytes: &[u8], mesh: MeshId, now_ms: u64) -> Result<Verified, Error> {
    open(bytes, mesh, now_ms)?.under(key)
}

fn is_member(record: &RouteRecord, peer: PeerId) -> bool {
    record.replicas.iter().any(|replica| replica.peer == peer.public_key().as_slice())
}

/// All that can be said of a record without its signature.
fn check(record: &RouteRecord) -> Result<(), Error> {
    let mesh = MeshId::from_slice(&record.mesh).map_err(|_| Error::OtherMesh)?;
    name::check_plain(&record.namespace).map_err(|_| Error::BadName)?;
    check_ids(record, mesh)?;
    check_replicas(record)?;
    if record.life_ms == 0 || record.life_ms > MAX_LIFE_MS {
        return Err(Error::BadLife);
    }
    Ok(())
}

/// The ids of a catalog and of a group follow from the name, so another group can't claim it.
fn check_ids(record: &RouteRecord, mesh: MeshId) -> Result<(), Error> {
    let group = GroupId(record.group);
    let fits = if record.name == route::CATALOG {
        record.topic == 0 && group == GroupId::of_catalog(mesh, &record.namespace)
    } else if record.name.starts_with(GROUP_PREFIX) {
        record.topic == 0 && record.name == route::group_name(group)
    } else {
        record.name.parse::<TopicName>().map_err(|_| Error::BadName)?;
        record.topic != 0
    };
    if fits { Ok(()) } else { Err(Error::BadIds) }
}

/// What every [`route::group_name`] starts with.
const GROUP_PREFIX: &str = "$group/";

fn check_replicas(record: &RouteRecord) -> Result<(), Error> {
    let replicas = &record.replicas;
    let distinct = |count: usize| count == replicas.len();
    let ids: BTreeSet<u64> = replicas.iter().map(|replica| replica.id).collect();
    let peers: BTreeSet<&[u8]> = replicas.iter().map(|replica| replica.peer.as_slice()).collect();
    let fits = (1..=MAX_REPLICAS).contains(&replicas.len())
        && distinct(ids.len())
        && distinct(peers.len())
        && ids.contains(&record.leader)
        && replicas.iter().all(is_sound);
    if fits { Ok(()) } else { Err(Error::BadReplicas) }
}

fn is_sound(replica: &Replica) -> bool {
    let address = |text: &String| text.starts_with('/') && text.len() <= MAX_ADDRESS;
    replica.id != 0
        && replica.peer_id().is_ok()
        && replica.addresses.len() <= MAX_ADDRESSES
        && replica.addresses.iter().all(address)
}

#[cfg(test)]
pub(crate) mod tests;
