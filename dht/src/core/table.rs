//! The route records that a peer stores for the DHT.
//!
//! A record is stored if [`record::open_at`] verifies it and it may replace what stands: it must be newer by
//! ([topic, epoch, time of issue](Verified::order)), of the same group, and signed by a member of the record that it
//! replaces. A record whose life is over stands no longer, and a topic created again (a larger topic id) starts
//! anew, since its group may be another. Everything else is refused with its reason, and counted by reason.
//!
//! The same bytes again are accepted and change nothing: repeating an old record does not make it live longer.

use std::collections::{BTreeMap, BTreeSet};

use canal_proto::MeshId;
use canal_proto::limits::MAX_ROUTE_RECORD;

use super::record::{self, Verified};

/// Records stored at once. Each name's record lies with the k = 20 peers closest to it, so this serves a mesh of
/// some 3,000 names times its number of peers.
pub const MAX_RECORDS: usize = 65_536;
/// Encoded bytes of all records together: a usual one has 0.5 KiB, and a device has little memory to spare.
pub const MAX_BYTES: usize = 32 << 20;

const _: () = assert!(MAX_BYTES >= MAX_ROUTE_RECORD, "one record always fits");

/// What became of a record that was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// None stood under its key.
    New,
    /// It replaced an older one.
    Newer,
    /// It is the one that stood.
    Known,
}

/// Why a record was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// It is none, or not a valid one.
    #[error(transparent)]
    Invalid(#[from] record::Error),
    /// This peer has joined no mesh yet, so it can't tell whose records it may store.
    #[error("this peer has joined no mesh yet; try again when it has")]
    NoMesh,
    /// One that is as new or newer stands.
    #[error("a newer route record stands; look the route up again")]
    Stale,
    /// The name belongs to another group.
    #[error("the name's topic is in another group; look the route up again")]
    OtherGroup,
    /// Its signer is not a member of the group as it stood.
    #[error(
        "the route record's signer was no replica before; let the group's leader publish, or wait for the end of the one that stands"
    )]
    NotSuccessor,
    /// The table is full of records that still live.
    #[error("this peer stores as many route records as it may; others near the key may have room")]
    Full,
}

/// The records, at most one a key.
#[derive(Debug)]
pub struct Table {
    mesh: Option<MeshId>,
    max_records: usize,
    max_bytes: usize,
    records: BTreeMap<[u8; 32], Verified>,
    /// The same by end of life, soonest first.
    ends: BTreeSet<(u64, [u8; 32])>,
    bytes: usize,
    refused: BTreeMap<Refused, u64>,
}

impl Table {
    /// An empty table of a mesh; of none, when the peer has yet to join one.
    pub fn new(mesh: Option<MeshId>) -> Self {
        Self::with_bounds(mesh, MAX_RECORDS, MAX_BYTES)
    }

    /// An empty table with other bounds than [`MAX_RECORDS`] and [`MAX_BYTES`].
    pub fn with_bounds(mesh: Option<MeshId>, max_records: usize, max_bytes: usize) -> Self {
        Self {
            mesh,
            max_records,
            max_bytes,
            records: BTreeMap::new(),
            ends: BTreeSet::new(),
            bytes: 0,
            refused: BTreeMap::new(),
        }
    }

    /// The mesh whose records are stored.
    pub fn mesh(&self) -> Option<MeshId> {
        self.mesh
    }

    /// Joins a mesh. Records of another one go.
    pub fn join(&mut self, mesh: MeshId) {
        if self.mesh != Some(mesh) {
            self.mesh = Some(mesh);
            self.records.clear();
            self.ends.clear();
            self.bytes = 0;
        }
    }

    /// Stores a record that came in at `now_ms`, or says why not.
    pub fn put(&mut self, key: &[u8], bytes: &[u8], now_ms: u64) -> Result<Accepted, Refused> {
        self.put_opened(key, bytes, now_ms, &mut |mesh| record::open(bytes, mesh, now_ms))
    }

    /// The same, where `open` checks the bytes as [`record::open`] does: for a simulation, in which all peers may share what
    /// one of them has verified.
    pub fn put_opened(
        &mut self,
        key: &[u8],
        bytes: &[u8],
        now_ms: u64,
        open: &mut dyn FnMut(MeshId) -> Result<Verified, record::Error>,
    ) -> Result<Accepted, Refused> {
        let result = self.try_put(key, bytes, now_ms, open);
        if let Err(reason) = result {
            let count = self.refused.entry(reason).or_default();
            *count = count.saturating_add(1);
        }
        result
    }

    fn try_put(
        &mut self,
        key: &[u8],
        bytes: &[u8],
        now_ms: u64,
        open: &mut dyn FnMut(MeshId) -> Result<Verified, record::Error>,
    ) -> Result<Accepted, Refused> {
        let mesh = self.mesh.ok_or(Refused::NoMesh)?;
        self.expire(now_ms);
        // what is known is not verified again: republication to many peers repeats records
        if self.records.get(key).is_some_and(|stands| stands.bytes() == bytes) {
            return Ok(Accepted::Known);
        }
        let new = open(mesh)?.under(key)?;
        let stands = self.records.get(&new.key());
        let accepted = match stands {
            Some(stands) => may_replace(stands, &new).map(|()| Accepted::Newer)?,
            None => Accepted::New,
        };
        let freed = stands.map_or(0, |stands| stands.bytes().len());
        let full = stands.is_none() && self.records.len() >= self.max_records;
        if full || self.bytes - freed + bytes.len() > self.max_bytes {
            return Err(Refused::Full);
        }
        self.remove(&new.key());
        self.ends.insert((new.expires_ms(), new.key()));
        self.bytes += bytes.len();
        self.records.insert(new.key(), new);
        Ok(accepted)
    }

    /// The record under a key, if it lives at `now_ms`.
    pub fn get(&self, key: &[u8], now_ms: u64) -> Option<&Verified> {
        self.records.get(key).filter(|record| record.expires_ms() > now_ms)
    }

    /// Takes a record away.
    pub fn remove(&mut self, key: &[u8]) {
        if let Some(gone) = self.records.remove(key) {
            self.ends.remove(&(gone.expires_ms(), gone.key()));
            self.bytes -= gone.bytes().len();
        }
    }

    /// Takes the records away whose life is over.
    pub fn expire(&mut self, now_ms: u64) {
        while let Some((ends, key)) = self.ends.first().copied() {
            if ends > now_ms {
                break;
            }
            self.remove(&key);
        }
    }

    /// All records, by key, those included whose life has ended since the last change.
    pub fn records(&self) -> impl Iterator<Item = &Verified> {
        self.records.values()
    }

    /// How many records are stored.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether none is stored.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// How many records were refused since the start, by reason.
    pub fn refused(&self) -> &BTreeMap<Refused, u64> {
        &self.refused
    }
}

fn may_replace(stands: &Verified, new: &Verified) -> Result<(), Refused> {
    #[cfg(feature = "mutants")]
    if crate::mutants::is(crate::mutants::Mutant::StaleRoute) && new.route().group == stands.route().group {
        return Ok(());
    }
    if new.order() <= stands.order() {
        return Err(Refused::Stale);
    }
    if new.route().topic > stands.route().topic {
        return Ok(());
    }
    if new.route().group != stands.route().group {
        return Err(Refused::OtherGroup);
    }
    if !stands.has_member(new.signer()) {
        return Err(Refused::NotSuccessor);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
