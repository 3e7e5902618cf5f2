//! Applied state on disk: ordered rows, changed by atomic batches, behind a narrow trait.
//!
//! The trait promises, and one suite checks of each backend: rows in the order of their keys; a batch visible to
//! every reader at one instant; a batch whole or absent after a crash; and the state after a crash a prefix of what
//! was written, which holds everything that [`StateStore::flush`] has returned for. Nothing is synced on the way,
//! so a crash may take the last batches: the log keeps what was not flushed, and replays it.
//!
//! A directory belongs to one backend for good. Its name is in the file `BACKEND`, and another is refused, because
//! it would find no rows and answer as if there had never been any.
//!
//! Rows under a prefix can be frozen ([`StateStore::freeze`]) and read later as they were.
//!
//! Keys are 1 to [`MAX_KEY`] bytes; a batch with any other is refused as a whole.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

use crate::core::keys::end_of;
use crate::core::kv::{Kv, KvError, MemoryKv, WriteBatch};

#[cfg(test)]
mod conformance;
mod fjall;
mod sled;

/// Bytes of a key at most. Four times the longest key that the state machine makes (a state key in its bucket), and
/// far below what any backend takes.
pub const MAX_KEY: usize = 4 << 10;

/// The file that names the directory's backend.
const BACKEND_FILE: &str = "BACKEND";
/// The same while it is written.
const UNFINISHED_FILE: &str = "BACKEND.new";
/// The file that says that a backend has failed while it ran: the next opening reads all rows before it trusts them. (A
/// backend reads most of its files only when a row is asked for; one that is damaged would fail the peer at every start.)
const SUSPECT_FILE: &str = "SUSPECT";
/// Rows that are read at a time when all of them are: the largest values fill some hundred MiB.
const CHECKED: usize = 256;

/// The backend of a data directory that has none yet.
///
/// sled holds 15 times its live data on disk under overwrites, and five times its cache in memory with a million
/// rows; fjall's disk has a floor of tens of MiB, and grows slowly from there (`examples/measure`).
pub const DEFAULT_BACKEND: Backend = Backend::Fjall;

/// What keeps the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backend {
    /// sled 0.34: a B-tree over a log.
    Sled,
    /// fjall 3: a log-structured merge tree.
    Fjall,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Sled, Self::Fjall];

    /// The name that configurations and `BACKEND` files use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sled => "sled",
            Self::Fjall => "fjall",
        }
    }
}

impl Default for Backend {
    fn default() -> Self {
        DEFAULT_BACKEND
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let backend = Self::ALL.into_iter().find(|backend| backend.name() == text);
        backend.ok_or_else(|| format!("`{text}` is not a state backend; use sled or fjall"))
    }
}

/// Rows on disk.
pub trait StateStore: Kv + Send + Sync + 'static {
    /// Makes the changes of a batch, all at one instant. Not synced.
    fn write(&self, batch: &WriteBatch) -> Result<(), KvError>;

    /// Returns when everything that was written before the call is on disk.
    fn flush(&self) -> Result<(), KvError>;

    /// The rows whose keys begin with `prefix`, as of now; whatever is written later does not show in them. No other
    /// rows are seen through it.
    ///
    /// fjall keeps what has been replaced since as long as this is held. The others copy the rows to memory.
    fn freeze(&self, prefix: &[u8]) -> Result<Box<dyn Kv + Send>, KvError>;

    /// The backend's name.
    fn name(&self) -> &'static str;

    /// Bytes that the store has allocated on disk.
    fn size_on_disk(&self) -> u64;
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another backend wrote the directory.
    #[error(
        "the state in `{}` was written by {found:?}, not by {wanted}; configure that backend, or move the peer's data \
         directory aside and let its groups rebuild its replicas",
        dir.display()
    )]
    OtherBackend {
        /// The directory.
        dir: PathBuf,
        /// What its `BACKEND` file says, shortened.
        found: String,
        /// The backend that was asked for.
        wanted: &'static str,
    },
    /// The directory holds files, but no `BACKEND` file.
    #[error("`{}` holds files, but no state of this program; give it a directory of its own", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory could not be read or written.
    #[error("cannot open the state in `{}`: {source}; check the path, its permissions and the free space", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The backend cannot open its files: they are in use, or damaged.
    #[error(
        "{backend} cannot open the state in `{}`: {reason}; stop any other peer on it, check the disk, and if it is \
         damaged, move the peer's data directory aside and let its groups rebuild its replicas",
        dir.display()
    )]
    Open {
        /// The directory.
        dir: PathBuf,
        /// The backend.
        backend: &'static str,
        /// What it says.
        reason: String,
    },
}

/// Opens the state in `dir`, which is created if it does not exist. The backend is given some `cache_bytes` of memory
/// for rows; what it needs beside them is its own.
pub fn open(dir: &Path, backend: Backend, cache_bytes: u64) -> Result<Arc<dyn StateStore>, Error> {
    claim(dir, backend)?;
    let path = dir.join(backend.name());
    let failed = |reason| Error::Open { dir: dir.to_owned(), backend: backend.name(), reason };
    // Both backends panic on some of the damage that they find.
    let opened = catch_unwind(AssertUnwindSafe(|| -> Result<Arc<dyn StateStore>, String> {
        Ok(match backend {
            Backend::Sled => Arc::new(sled::Rows::open(&path, cache_bytes)?),
            Backend::Fjall => Arc::new(fjall::Rows::open(&path, cache_bytes)?),
        })
    }));
    let store =
        opened.unwrap_or_else(|_| Err("it panicked, as it does on damaged files".to_owned())).map_err(failed)?;
    let suspect = dir.join(SUSPECT_FILE);
    if suspect.exists() {
        tracing::warn!(dir = %dir.display(), "the state has failed before; all of it is read to see whether it is damaged");
        check_all(store.as_ref()).map_err(|error| Error::Open {
            dir: dir.to_owned(),
            backend: backend.name(),
            reason: format!("it failed while it ran, and still does: {error}"),
        })?;
        fs::remove_file(&suspect).map_err(|source| Error::Io { dir: dir.to_owned(), source })?;
    }
    for dir in [&path, dir] {
        sync_dir(dir).map_err(|source| Error::Io { dir: dir.to_owned(), source })?;
    }
    Ok(store)
}

/// Reads all rows.
fn check_all(store: &dyn StateStore) -> Result<(), String> {
    let read = || -> Result<(), KvError> {
        let mut start = Vec::new();
        loop {
            let rows = store.scan(&start, &[], CHECKED, false)?;
            let Some((last, _)) = rows.last().filter(|_| rows.len() == CHECKED) else { return Ok(()) };
            start = [&last[..], &[0]].concat();
        }
    };
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(_) => Err("it panicked".to_owned()),
    }
}

/// Makes the names in a directory durable.
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes `dir` the backend's, or checks that it is.
fn claim(dir: &Path, backend: Backend) -> Result<(), Error> {
    let failed = |source| Error::Io { dir: dir.to_owned(), source };
    fs::create_dir_all(dir).map_err(failed)?;
    let file = dir.join(BACKEND_FILE);
    match fs::read(&file) {
        Ok(bytes) if bytes == format!("{}\n", backend.name()).as_bytes() => Ok(()),
        // (that of the other backend is a choice; anything else is damage)
        Ok(bytes) if is_only(dir, backend) && !is_name(&bytes) => {
            tracing::error!(
                file = %file.display(),
                "the file that names the state's backend was damaged; it is written again. Check this peer's disk"
            );
            write_name(dir, backend).map_err(failed)
        }
        Ok(bytes) => {
            let found = String::from_utf8_lossy(&bytes).trim_end().chars().take(32).collect();
            Err(Error::OtherBackend { dir: dir.to_owned(), found, wanted: backend.name() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A crash may have left the unfinished file, but nothing else.
            let unfinished = dir.join(UNFINISHED_FILE);
            for entry in fs::read_dir(dir).map_err(failed)? {
                if entry.map_err(failed)?.path() != unfinished {
                    return Err(Error::Foreign { dir: dir.to_owned() });
                }
            }
            write_name(dir, backend).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

fn write_name(dir: &Path, backend: Backend) -> io::Result<()> {
    let unfinished = dir.join(UNFINISHED_FILE);
    let mut new = File::create(&unfinished)?;
    new.write_all(format!("{}\n", backend.name()).as_bytes())?;
    new.sync_all()?;
    fs::rename(&unfinished, dir.join(BACKEND_FILE))?;
    let dirs = [Some(dir), dir.parent()].into_iter().flatten();
    dirs.filter(|dir| !dir.as_os_str().is_empty()).try_for_each(sync_dir)
}

fn is_name(bytes: &[u8]) -> bool {
    Backend::ALL.iter().any(|backend| bytes == format!("{}\n", backend.name()).as_bytes())
}

/// Whether a directory holds rows of this backend, and of no other.
fn is_only(dir: &Path, backend: Backend) -> bool {
    Backend::ALL.into_iter().all(|other| dir.join(other.name()).is_dir() == (other == backend))
}

/// Refuses a batch with a key that not every backend takes.
fn check(batch: &WriteBatch) -> Result<(), KvError> {
    match batch.ops.keys().find(|key| key.is_empty() || key.len() > MAX_KEY) {
        Some(key) => Err(KvError(format!("a key has {} bytes; make it 1 to {MAX_KEY}", key.len()))),
        None => Ok(()),
    }
}

/// Whether a scan's bounds have room for a key; backends differ in what they do when they have none.
fn has_room(start: &[u8], end: &[u8]) -> bool {
    end.is_empty() || start < end
}

/// Rows that were copied.
fn copied(rows: Vec<(Bytes, Bytes)>) -> Box<dyn Kv + Send> {
    let copy = MemoryKv::default();
    copy.write(&WriteBatch { ops: rows.into_iter().map(|(key, value)| (key, Some(value))).collect() });
    Box::new(copy)
}

/// A backend's failure while it runs. It is noted beside `dir`, the backend's directory, for the next opening.
fn failure(doing: &str, dir: &Path, error: impl std::fmt::Display) -> KvError {
    if let Some(parent) = dir.parent() {
        // where that fails too, there is nothing left to do
        let _ = File::create(parent.join(SUSPECT_FILE)).and_then(|file| file.sync_all());
    }
    KvError(format!(
        "cannot {doing} the state in `{}`: {error}; check the disk and its free space, then restart the peer",
        dir.display()
    ))
}

/// Bytes allocated for a directory's files. What vanishes meanwhile, in a compaction, counts nothing.
fn allocated(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => allocated(&entry.path()),
        Ok(metadata) => bytes_of(&metadata),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// Blocks, not lengths: journals are longer than what is allocated for them.
#[cfg(unix)]
fn bytes_of(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(metadata).saturating_mul(512)
}

#[cfg(not(unix))]
fn bytes_of(metadata: &fs::Metadata) -> u64 {
    metadata.len()
}

impl StateStore for MemoryKv {
    fn write(&self, batch: &WriteBatch) -> Result<(), KvError> {
        check(batch)?;
        MemoryKv::write(self, batch);
        Ok(())
    }

    fn flush(&self) -> Result<(), KvError> {
        Ok(())
    }

    fn freeze(&self, prefix: &[u8]) -> Result<Box<dyn Kv + Send>, KvError> {
        Ok(copied(self.scan(prefix, &end_of(prefix), usize::MAX, false)?))
    }

    fn name(&self) -> &'static str {
        "memory"
    }

    fn size_on_disk(&self) -> u64 {
        0
    }
}
