//! libp2p's record store over [`Routes`]: records are validated where they are stored, whoever puts them.
//!
//! kad asks [`RecordStore::put`] for each record that a peer sends. A refused one is counted and goes no further, but
//! kad is told that all is well: it would reset the request's stream, and libp2p-kad 0.49 forgets to wake the stream
//! that it resets. The sender would wait for its timeout, and each refusal would keep one of the connection's 32
//! streams for good; a leader that was deposed without knowing it would soon be cut off from the DHT.
//!
//! The end of a record's life is the signed one; what the sender says of it (kad's `ttl`) is not signed and does not
//! count. Provider records are not used, and refused.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{ProviderRecord, Record, RecordKey};

use crate::core::record::Verified;
use crate::routes::Routes;

/// The record store of a peer.
#[derive(Debug, Clone)]
pub struct RouteStore {
    local: libp2p::PeerId,
    routes: Routes,
}

impl RouteStore {
    pub(crate) fn new(local: libp2p::PeerId, routes: Routes) -> Self {
        Self { local, routes }
    }

    /// The peer whose store this is; kad knows it, but does not tell.
    pub(crate) fn local(&self) -> libp2p::PeerId {
        self.local
    }
}

/// A record as kad sends it.
pub(crate) fn to_kad(record: &Verified, now_ms: u64) -> Record {
    let left = Duration::from_millis(record.expires_ms().saturating_sub(now_ms));
    Record {
        key: RecordKey::new(&record.key()),
        value: record.bytes().to_vec(),
        // a record that names a publisher is not stored by that publisher; ours are stored by whoever is near
        publisher: None,
        expires: Instant::now().checked_add(left),
    }
}

impl RecordStore for RouteStore {
    type RecordsIter<'a> = std::vec::IntoIter<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        let now_ms = self.routes.now_ms();
        let table = self.routes.table();
        table.get(key.as_ref(), now_ms).map(|record| Cow::Owned(to_kad(record, now_ms)))
    }

    fn put(&mut self, record: Record) -> Result<()> {
        if let Err(refused) = self.routes.put(record.key.as_ref(), &record.value) {
            tracing::debug!(%refused, "route record refused");
        }
        Ok(())
    }

    fn remove(&mut self, key: &RecordKey) {
        self.routes.table().remove(key.as_ref());
    }

    fn records(&self) -> Self::RecordsIter<'_> {
        let now_ms = self.routes.now_ms();
        let table = self.routes.table();
        let all: Vec<_> = table.records().map(|record| Cow::Owned(to_kad(record, now_ms))).collect();
        all.into_iter()
    }

    fn add_provider(&mut self, _: ProviderRecord) -> Result<()> {
        Err(Error::MaxProvidedKeys)
    }

    fn providers(&self, _: &RecordKey) -> Vec<ProviderRecord> {
        Vec::new()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, _: &RecordKey, _: &libp2p::PeerId) {}
}
