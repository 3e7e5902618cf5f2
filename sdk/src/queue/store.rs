//! A queue's file: redb, whose commits are atomic and synced. Blocking; one thread owns it.
//!
//! Three tables: `meta` (the version of what is in the others), `topics` (name → [`TopicRow`]), `events` ((name,
//! sequence) → the event as it will be published, and nothing else). A directory is locked for as long as its queue is
//! open. A new file gets its name when everything in it is synced, so that a crash in between leaves no half queue.
//!
//! redb panics on some of the damage that it finds in a file; that becomes an error here like any other.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use canal_proto::{Code, Event};
use prost::Message;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use super::rows::{Ledger, TopicRow};
use crate::Error;

/// What is in the tables, as docs/format.md says it.
const VERSION: u64 = 1;
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const TOPICS: TableDefinition<&str, &[u8]> = TableDefinition::new("topics");
const EVENTS: TableDefinition<(&str, u64), &[u8]> = TableDefinition::new("events");
const VERSION_KEY: &str = "version";

const FILE: &str = "queue.redb";
const NEW_FILE: &str = "queue.redb.new";
const LOCK_FILE: &str = "queue.lock";
/// Bytes of a process's number, with the end of its line.
const MAX_PID: u64 = 16;
/// Memory for pages: a few of the largest events. Devices are small, and what is handed over is read once.
const CACHE: usize = 8 << 20;
/// A file smaller than this is not worth shrinking: an empty one has a megabyte.
const SMALL_FILE: u64 = 8 << 20;
/// A file that has more than this many times what waits is shrunk when it is opened.
const MAX_SLACK: u64 = 4;

/// A change of the store.
pub(super) enum Op {
    /// Events with consecutive sequences, encoded.
    Insert { topic: String, first: u64, events: Vec<Vec<u8>> },
    /// Events that have receipts.
    Remove { topic: String, sequences: Range<u64> },
    /// Events of a topic that is forgotten.
    Discard { topic: String, sequences: Range<u64> },
    /// Only the topic's row has changed.
    Touch { topic: String },
}

pub(super) struct Store {
    database: Database,
    what: String,
    _lock: Option<File>,
}

impl Store {
    /// Opens the queue in this directory; makes both if they are not there.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        guarded(&dir.display().to_string(), || Self::try_open(dir))
    }

    fn try_open(dir: &Path) -> Result<Self, Error> {
        let what = dir.display().to_string();
        std::fs::create_dir_all(dir).map_err(|error| broken(&what, error))?;
        let lock = lock(dir, &what)?;
        let (path, new) = (dir.join(FILE), dir.join(NEW_FILE));
        if !path.try_exists().map_err(|error| broken(&what, error))? {
            match std::fs::remove_file(&new) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(broken(&what, error)),
                _ => {}
            }
            drop(Self::prepare(builder().create(&new), &what)?);
            let named = std::fs::rename(&new, &path).and_then(|()| File::open(dir)?.sync_all());
            named.map_err(|error| broken(&what, error))?;
            if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                // the directory itself may be as new
                File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| broken(&what, error))?;
            }
        }
        let mut store = Self::prepare(builder().open(&path), &what)?;
        store._lock = Some(lock);
        store.shrink(&path)?;
        Ok(store)
    }

    /// Whether there is a queue in this directory.
    pub(super) fn exists(dir: &Path) -> bool {
        dir.join(FILE).is_file()
    }

    /// The process that has the queue in this directory open, if one does.
    pub(super) fn owner(dir: &Path) -> Option<u32> {
        let file = File::open(dir.join(LOCK_FILE)).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => written_by(dir),
            _ => None,
        }
    }

    /// The same over another medium than a file.
    #[cfg(test)]
    pub(super) fn over(backend: impl redb::StorageBackend) -> Result<Self, Error> {
        Self::prepare(builder().create_with_backend(backend), "memory")
    }

    fn prepare(opened: Result<Database, DatabaseError>, what: &str) -> Result<Self, Error> {
        let database = opened.map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => in_use(what, None),
            error => broken(what, error),
        })?;
        let store = Self { database, what: what.to_owned(), _lock: None };
        let version = store.version()?;
        if version.is_some_and(|version| version != VERSION) {
            let message = format!(
                "the queue in {what} was written by another version of this program: let that one hand its events over"
            );
            return Err(Error::new(Code::Incompatible, message));
        }
        if version.is_none() {
            store.try_create().map_err(|error| broken(what, error))?;
        }
        Ok(store)
    }

    fn version(&self) -> Result<Option<u64>, Error> {
        let read = || -> Result<Option<u64>, redb::Error> {
            let transaction = self.database.begin_read()?;
            match transaction.open_table(META) {
                Ok(meta) => Ok(meta.get(VERSION_KEY)?.map(|version| version.value())),
                Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        read().map_err(|error| broken(&self.what, error))
    }

    fn try_create(&self) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        transaction.open_table(TOPICS)?;
        transaction.open_table(EVENTS)?;
        transaction.open_table(META)?.insert(VERSION_KEY, VERSION)?;
        Ok(transaction.commit()?)
    }

    /// Gives space back that events took which are gone.
    fn shrink(&mut self, path: &Path) -> Result<(), Error> {
        let length = std::fs::metadata(path).map_err(|error| broken(&self.what, error))?.len();
        if length > SMALL_FILE && length / MAX_SLACK > self.load()?.totals().1 {
            let shrunk = self.database.compact();
            tracing::debug!(queue = self.what, length, ?shrunk, "the queue's file is larger than it has to be");
        }
        Ok(())
    }

    /// All topics.
    pub(super) fn load(&self) -> Result<Ledger, Error> {
        let read = || -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
            let topics = self.database.begin_read()?.open_table(TOPICS)?;
            let rows = topics.iter()?.map(|row| row.map(|(name, row)| (name.value().to_owned(), row.value().to_vec())));
            Ok(rows.collect::<Result<_, _>>()?)
        };
        let rows = guarded(&self.what, || read().map_err(|error| broken(&self.what, error)))?;
        let parsed = rows.into_iter().map(|(name, row)| {
            let row = TopicRow::decode(row.as_slice()).map_err(|error| broken(&self.what, error))?;
            Ok((name, row))
        });
        Ok(Ledger { topics: parsed.collect::<Result<_, Error>>()? })
    }

    /// Does all of these, and writes the rows of their topics: durable when it returns. `ledger` has everything but
    /// the sizes of what is removed, which is counted here.
    pub(super) fn apply(&self, ops: &[Op], ledger: &mut Ledger) -> Result<(), Error> {
        guarded(&self.what, || self.try_apply(ops, ledger).map_err(|error| broken(&self.what, error)))
    }

    fn try_apply(&self, ops: &[Op], ledger: &mut Ledger) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(EVENTS)?;
            let mut touched = BTreeSet::new();
            for op in ops {
                match op {
                    Op::Insert { topic, first, events } => {
                        for (sequence, event) in (*first..).zip(events) {
                            table.insert((topic.as_str(), sequence), event.as_slice())?;
                        }
                        touched.insert(topic);
                    }
                    Op::Remove { topic, sequences } => {
                        let mut sizes = Vec::new();
                        for sequence in sequences.clone() {
                            let event = table.remove((topic.as_str(), sequence))?;
                            sizes.extend(event.map(|event| event.value().len() as u64));
                        }
                        ledger.release(topic, sizes);
                        touched.insert(topic);
                    }
                    Op::Discard { topic, sequences } => {
                        for sequence in sequences.clone() {
                            table.remove((topic.as_str(), sequence))?;
                        }
                        touched.insert(topic);
                    }
                    Op::Touch { topic } => drop(touched.insert(topic)),
                }
            }
            let mut topics = transaction.open_table(TOPICS)?;
            for topic in touched {
                match ledger.topics.get(topic) {
                    Some(row) => drop(topics.insert(topic.as_str(), row.encode_to_vec().as_slice())?),
                    None => drop(topics.remove(topic.as_str())?),
                }
            }
        }
        Ok(transaction.commit()?)
    }

    /// Events of a topic from a sequence on, while they are fewer than `max` and have fewer bytes than `max_bytes`;
    /// at least one, if there is one.
    pub(super) fn read(
        &self,
        topic: &str,
        sequences: Range<u64>,
        max: usize,
        max_bytes: usize,
    ) -> Result<Vec<Event>, Error> {
        let read = || -> Result<Vec<(u64, Vec<u8>)>, redb::Error> {
            let events = self.database.begin_read()?.open_table(EVENTS)?;
            let mut found = Vec::new();
            let mut bytes = 0;
            for row in events.range((topic, sequences.start)..(topic, sequences.end))? {
                let (key, event) = row?;
                bytes += event.value().len();
                if !found.is_empty() && (found.len() >= max || bytes > max_bytes) {
                    break;
                }
                found.push((key.value().1, event.value().to_vec()));
            }
            Ok(found)
        };
        let found = guarded(&self.what, || read().map_err(|error| broken(&self.what, error)))?;
        let mut events = Vec::with_capacity(found.len());
        for (expected, (sequence, event)) in (sequences.start..).zip(found) {
            if sequence != expected {
                return Err(broken(&self.what, format!("event {expected} of `{topic}` is missing")));
            }
            events.push(Event::decode(event.as_slice()).map_err(|error| broken(&self.what, error))?);
        }
        Ok(events)
    }
}

/// A panic in between is damage that was found.
fn guarded<T>(what: &str, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(broken(what, "its file is damaged")))
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    builder
}

fn lock(dir: &Path, what: &str) -> Result<File, Error> {
    let file = File::options().create(true).truncate(false).write(true).open(dir.join(LOCK_FILE));
    let file = file.map_err(|error| broken(what, error))?;
    match file.try_lock() {
        Ok(()) => {
            // it only helps people: the lock is what counts
            let named = file.set_len(0).and_then(|()| writeln!(&file, "{}", std::process::id()));
            if let Err(error) = named {
                tracing::debug!(%error, queue = what, "the owner of the queue can't be noted");
            }
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => Err(in_use(what, written_by(dir))),
        Err(TryLockError::Error(error)) => Err(broken(what, error)),
    }
}

/// The process that had the lock last.
fn written_by(dir: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(dir.join(LOCK_FILE)).ok()?.take(MAX_PID).read_to_string(&mut text).ok()?;
    text.trim_end().parse().ok()
}

fn in_use(what: &str, owner: Option<u32>) -> Error {
    let who = match owner {
        Some(own) if own == std::process::id() => "in this process already".to_owned(),
        Some(other) => format!("in another process ({other})"),
        None => "in another process".to_owned(),
    };
    let message = format!(
        "the queue in {what} is open {who}, and only one may have it: that one hands it over if it can, and has to end \
         before anybody else does; `canal queue ls` shows what waits meanwhile"
    );
    Error::new(Code::InUse, message)
}

fn broken(what: &str, why: impl std::fmt::Display) -> Error {
    Error::new(
        Code::Internal,
        format!("the queue in {what} can't be used ({why}): see whether the disk is full or damaged"),
    )
}

#[cfg(test)]
#[path = "store/tests.rs"]
pub(super) mod tests;
