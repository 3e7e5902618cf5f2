//! A snapshot on its way into a replica: what has to be remembered of it, so that a crash in between does no harm.
//!
//! The steps, in this order: its record is synced in the log store; the group's rows are replaced and flushed; then one
//! synced batch of the log store empties the log, sets where it begins, and takes the record away. Only then is the
//! leader answered. A record that is found at start means that the steps behind it are done again.

use bytes::Bytes;
use canal_proto::GroupId;
use canal_proto::peer::Seed;
use prost::Message as _;
use raft::eraftpb::HardState;

use super::guard::is_configuration;
use super::{conf_state, first_configuration};
use crate::core::keys::{Keys, Table};
use crate::core::kv::{Kv, KvError};
use crate::core::log::Compacted;
use crate::core::rows::{Applied, Configuration};
use crate::core::txn;

/// A snapshot that is being installed: the record of it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Install {
    /// Index of the last entry in it.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// Its term.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// What it consists of, as the leader's [`Input::SnapshotReady`](super::Input::SnapshotReady) had it.
    #[prost(bytes = "bytes", tag = "3")]
    pub data: Bytes,
    /// Term of the replica.
    #[prost(uint64, tag = "4")]
    pub own_term: u64,
    /// Its vote in that term.
    #[prost(uint64, tag = "5")]
    pub vote: u64,
}

impl Install {
    /// The record's bytes.
    pub fn record(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    /// Reads a record.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn from_record(record: Bytes) -> Result<Self, KvError> {
        Self::decode(record).map_err(|e| {
            KvError(format!(
                "the record of a snapshot that is being installed is damaged: {e}; restore the data directory"
            ))
        })
    }

    /// What the last step writes: where the log begins, and the hard state. `kv` has the snapshot's rows.
    ///
    /// # Errors
    /// When `kv` fails, or has other rows.
    pub fn finish(&self, seed: &Seed, kv: &dyn Kv) -> Result<(Compacted, HardState), KvError> {
        let group = GroupId(seed.group);
        let keys = Keys(group);
        let read = |table| -> Result<(Bytes, Option<Bytes>), KvError> {
            let key = keys.one(table);
            let row = kv.get(&key)?;
            Ok((key, row))
        };
        let (key, row) = read(Table::Applied)?;
        let applied: Applied = txn::decode(&key, row.unwrap_or_default())?;
        let (key, row) = read(Table::Configuration)?;
        let wrong = |what: String| KvError(format!("group {group}: the snapshot at entry {} {what}", self.index));
        if (applied.index, applied.term) != (self.index, self.term) {
            return Err(wrong(format!("has rows as of entry {} of term {}", applied.index, applied.term)));
        }
        let configuration: Configuration = match row {
            Some(row) => txn::decode(&key, row)?,
            None => first_configuration(seed),
        };
        if !is_configuration(&conf_state(&configuration)) {
            return Err(wrong("names a configuration that no group can have".into()));
        }
        let hard_state = HardState { term: self.own_term, vote: self.vote, commit: self.index, ..HardState::default() };
        Ok((Compacted { index: self.index, term: self.term, configuration }, hard_state))
    }
}
