//! A group's applied state as files: what a snapshot hands over, and how it is taken over.
//!
//! The rows are written in the order of their keys, without the group's id, as [`canal_proto::peer::Rows`] of about a
//! MiB each. The same rows make the same pieces, so a dump that is made again costs no room and nothing of it travels
//! twice.

use bytes::Bytes;
use canal_proto::log::Segment;
use canal_proto::peer::{Manifest, Piece, Row, Rows};
use canal_proto::{ContentHash, GroupId, TopicId};
use prost::Message as _;

use crate::core::keys::{Keys, Locals, Table, end_of, tail_number};
use crate::core::kv::{Kv, KvError, WriteBatch};
use crate::core::rows::Topic;
use crate::core::txn::decode;
use crate::files::{self, Files};
use crate::log_store::LogStore;
use crate::state_store::StateStore;
use crate::view::{self, Content, OnDisk, Source};

/// Why a group's state could not be written to files, or taken over from them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The state failed.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// Events that are not in segments could not be read.
    #[error(transparent)]
    Events(#[from] view::Error),
    /// The files failed.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// Not the content that was expected.
    #[error("the snapshot of group {0} can't be used: {1}")]
    Unusable(GroupId, &'static str),
}

/// Rows are read and removed this many at a time: the largest values fill 32 MiB.
const BATCH: usize = 64;
/// A piece ends with the row that makes it this large. The largest row is little over a MiB, so a piece has two at most,
/// fits one atomic batch of rows, and is fetched with two or three requests.
const PIECE: usize = 1 << 20;
/// Events that are read at a time.
const EVENTS: usize = 1024;
/// Bytes of them, about.
const EVENT_BYTES: usize = 1 << 20;

/// Writes a group's rows to files, as of when they were frozen ([`StateStore::freeze`]). Rows that are the replica's own
/// are left out, and the events that are not in segments come as rows, because whoever takes over the state has no log of
/// them. The manifest has no peer yet.
///
/// Memory holds a piece and a batch of rows. The log must not be cut meanwhile beyond what was sealed when the rows were
/// frozen.
///
/// # Errors
/// When a store fails; [`files::Error::Missing`] when a segment is not here yet, [`view::Error::Lacking`] when
/// an event is not.
pub fn write(group: GroupId, frozen: &dyn Kv, log: &LogStore, files: &Files) -> Result<Manifest, Error> {
    write_to(group, frozen, &OnDisk { log, files }, &mut |bytes| files.put(bytes))
}

/// The same, from any content; `put` stores a piece.
///
/// # Errors
/// As [`write()`], and those of `put`.
pub fn write_to(
    group: GroupId,
    frozen: &dyn Kv,
    content: &dyn Content,
    put: &mut dyn FnMut(&[u8]) -> Result<Piece, files::Error>,
) -> Result<Manifest, Error> {
    let locals = Locals::load(frozen, group)?;
    let prefix = group.0.to_be_bytes();
    let source = Source { group, kv: frozen, content };
    let mut pieces = Pieces { put, rows: Vec::new(), bytes: Vec::new() };
    let mut segments = Vec::new();
    // all tables in the order of their keys, with what the log has in its place
    let inline = Keys(group).one(Table::Inline);
    each(frozen, &prefix, &inline, |key, value| {
        if key.get(prefix.len()) == Some(&(Table::Segments as u8)) && !locals.is_local(&key) {
            segments.push(segment(content, &key, value.clone())?);
        }
        if locals.is_local(&key) { Ok(()) } else { pieces.put(&key, value) }
    })?;
    unsealed(&source, &mut pieces)?;
    each(frozen, &end_of(&inline), &end_of(&prefix), |key, value| {
        if locals.is_local(&key) { Ok(()) } else { pieces.put(&key, value) }
    })?;
    pieces.end()?;
    Ok(Manifest { rows: pieces.rows, segments, peer: Bytes::new() })
}

/// Calls `then` for each row between two keys.
fn each(
    kv: &dyn Kv,
    start: &[u8],
    end: &[u8],
    mut then: impl FnMut(Bytes, Bytes) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut start = start.to_vec();
    loop {
        let rows = kv.scan(&start, end, BATCH, false)?;
        let whole = rows.len() == BATCH;
        for (key, value) in rows {
            // the first key behind it
            start = [&key[..], &[0]].concat();
            then(key, value)?;
        }
        if !whole {
            return Ok(());
        }
    }
}

fn segment(content: &dyn Content, key: &[u8], value: Bytes) -> Result<Piece, Error> {
    let segment: Segment = decode(key, value)?;
    let hash = ContentHash::from_slice(&segment.hash)
        .map_err(|e| KvError(format!("the row at key {key:02x?} is damaged: {e}")))?;
    if !content.contains(&hash) {
        return Err(files::Error::Missing(hash).into());
    }
    Ok(Piece { hash: segment.hash, size: segment.size })
}

/// The events that are not in segments, as rows.
fn unsealed(source: &Source<'_>, pieces: &mut Pieces<'_>) -> Result<(), Error> {
    let keys = Keys(source.group);
    let topics = keys.one(Table::Topics);
    each(source.kv, &topics, &end_of(&topics), |key, value| {
        let topic: Topic = decode(&key, value)?;
        let id = TopicId(tail_number(&key));
        let mut next = topic.sealed.max(topic.oldest);
        while next < topic.next {
            for stored in source.events(id, next, EVENTS, EVENT_BYTES)? {
                next = stored.offset + 1;
                pieces.put(&keys.topic(Table::Inline, id, stored.offset), stored.encode_to_vec().into())?;
            }
        }
        Ok(())
    })
}

/// Rows on their way into pieces.
struct Pieces<'a> {
    put: &'a mut dyn FnMut(&[u8]) -> Result<Piece, files::Error>,
    rows: Vec<Piece>,
    bytes: Vec<u8>,
}

impl Pieces<'_> {
    fn put(&mut self, key: &Bytes, value: Bytes) -> Result<(), Error> {
        let key = key.slice(size_of::<u64>().min(key.len())..);
        // one row after the other makes the same bytes as all of them in a `Rows`
        prost::encoding::message::encode(1, &Row { key, value }, &mut self.bytes);
        if self.bytes.len() >= PIECE { self.end() } else { Ok(()) }
    }

    fn end(&mut self) -> Result<(), Error> {
        if !self.bytes.is_empty() {
            self.rows.push((self.put)(&self.bytes)?);
            self.bytes.clear();
        }
        Ok(())
    }
}

/// Replaces all rows of a group by those of a manifest, and flushes them. Its pieces must be here. It is not atomic: a
/// crash or an error leaves anything, and it is done again from the beginning.
///
/// # Errors
/// When a store fails, or a piece is not here, damaged, or has no rows in it.
pub fn install(group: GroupId, manifest: &Manifest, files: &Files, kv: &dyn StateStore) -> Result<(), Error> {
    install_from(group, manifest, files, kv, &mut |batch| kv.write(batch))?;
    Ok(kv.flush()?)
}

/// Files that are read as a whole.
pub trait Whole {
    /// Whether a file is here.
    fn contains(&self, hash: &ContentHash) -> bool;

    /// As [`Files::whole`].
    ///
    /// # Errors
    /// As there.
    fn whole(&self, hash: &ContentHash) -> Result<Option<Bytes>, files::Error>;
}

impl Whole for Files {
    fn contains(&self, hash: &ContentHash) -> bool {
        Files::contains(self, hash)
    }

    fn whole(&self, hash: &ContentHash) -> Result<Option<Bytes>, files::Error> {
        Files::whole(self, hash)
    }
}

/// The same without the flush, from pieces and to rows wherever they are.
///
/// # Errors
/// As [`install`].
pub fn install_from(
    group: GroupId,
    manifest: &Manifest,
    pieces: &dyn Whole,
    kv: &dyn Kv,
    write: &mut dyn FnMut(&WriteBatch) -> Result<(), KvError>,
) -> Result<(), Error> {
    let prefix = group.0.to_be_bytes();
    let mut hashes = Vec::with_capacity(manifest.rows.len());
    for piece in &manifest.rows {
        let hash = ContentHash::from_slice(&piece.hash)
            .map_err(|_| Error::Unusable(group, "a piece has no hash of 32 bytes"))?;
        if !pieces.contains(&hash) {
            return Err(files::Error::Missing(hash).into());
        }
        hashes.push(hash);
    }
    let mut batch = WriteBatch::default();
    each(kv, &prefix, &end_of(&prefix), |key, _| {
        batch.ops.insert(key, None);
        if batch.ops.len() >= BATCH {
            write(&std::mem::take(&mut batch))?;
        }
        Ok(())
    })?;
    write(&batch)?;
    for hash in hashes {
        let Some(bytes) = pieces.whole(&hash)? else { return Err(files::Error::Missing(hash).into()) };
        let rows = Rows::decode(bytes).map_err(|_| Error::Unusable(group, "a piece has no rows in it"))?;
        let row = |row: Row| ([&prefix[..], &row.key].concat().into(), Some(row.value));
        write(&WriteBatch { ops: rows.rows.into_iter().map(row).collect() })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
