//! Files that are named by their content: segments, and the pieces of snapshots.
//!
//! A file's name is the BLAKE3 of its bytes, in hexadecimal. It comes under that name only when all of it is on disk,
//! synced, and never changes after that; so two that have the same content are one, and what is here can be handed to
//! any peer that asks for it by its hash. Which files are needed is not known here: whoever stores a hash in a row
//! keeps the file, whoever removes the row removes the file.
//!
//! A file that is received stands beside the others as `HASH.part` until it is whole, across restarts. It is not
//! synced on the way, so a crash may leave anything in it: it is checked when it is whole, and begun anew if it is wrong.
//! Files that were being written here (`NUMBER.new`) are removed at the next opening.
//!
//! A file that is found damaged, or gone, counts as not here from then on, and stays under its name until a whole one takes its
//! place: it may be the only one there is, and most of it can be read.
//!
//! The names and sizes of all files are in memory, some 100 bytes each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use canal_proto::ContentHash;
use canal_proto::peer::Piece;
use parking_lot::Mutex;

mod index;
mod partial;
mod segment;
#[cfg(test)]
mod tests;

pub use partial::Partial;
pub use segment::{Encoder, SegmentWriter, events_in};

/// Bytes that are read from a file at a time to hash it.
const CHUNK: usize = 64 << 10;
/// Damaged files that are remembered until somebody takes them: they are found again when they are read again.
const MAX_DAMAGED: usize = 1024;

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk failed.
    #[error("cannot use `{}`: {source}; check the disk and its free space", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// A sync failed, now or before. What was written may never get to the disk, and no later sync would say so: nothing
    /// is written any more.
    #[error("cannot sync the files: {0}; check the disk, then restart the peer")]
    Unsynced(String),
    /// A file is not here.
    #[error("the file {0} is not here; get it from another replica")]
    Missing(ContentHash),
    /// What was received is not what the hash says. It was removed: receive it anew.
    #[error("what was received as {0} has another hash; it was removed: receive it anew")]
    Mismatch(ContentHash),
    /// A file's content was damaged on this disk, or is no segment of this version.
    #[error(
        "the file {hash} is damaged: {reason}; it is got from another replica. If there is none, restore it from a copy"
    )]
    Damaged {
        /// The file.
        hash: ContentHash,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The file is being received already.
    #[error("the file {0} is being received already; wait for it")]
    Busy(ContentHash),
    /// Events were not given in the order of their offsets, or no events, or more bytes than a file should have.
    #[error("a file can't be written: {0}")]
    Unfit(&'static str),
}

/// The files of a peer. Clones share them.
#[derive(Clone)]
pub struct Files {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    held: Mutex<Held>,
    indexes: Mutex<index::Cache>,
    next: AtomicU64,
    /// The sync that failed.
    unsynced: OnceLock<String>,
}

#[derive(Default)]
struct Held {
    sizes: BTreeMap<ContentHash, u64>,
    receiving: BTreeSet<ContentHash>,
    /// Files that are here and damaged, with their sizes. They count as not here, until they were made or received again;
    /// what is whole of a segment can be read meanwhile.
    damaged: BTreeMap<ContentHash, u64>,
    /// Those of them that nobody has been told of.
    untold: BTreeSet<ContentHash>,
    found: u64,
    repaired: u64,
}

impl Files {
    /// Opens the files in `dir`, which is created if it does not exist. What was left half written is removed; what was
    /// left half received stays.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let failed = at(dir);
        fs::create_dir_all(dir).map_err(&failed)?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_dir(parent)?;
        }
        let mut held = Held::default();
        for entry in fs::read_dir(dir).map_err(&failed)? {
            let entry = entry.map_err(&failed)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".new") {
                fs::remove_file(entry.path()).map_err(at(&entry.path()))?;
            } else if let Ok(hash) = name.parse::<ContentHash>() {
                held.sizes.insert(hash, entry.metadata().map_err(at(&entry.path()))?.len());
            }
        }
        let shared = Shared {
            dir: dir.to_owned(),
            held: Mutex::new(held),
            indexes: Mutex::default(),
            next: AtomicU64::new(0),
            unsynced: OnceLock::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Nothing, as long as no sync has failed. When one has, the peer has to end.
    pub fn trusted(&self) -> Result<(), Error> {
        self.shared.unsynced.get().map_or(Ok(()), |reason| Err(Error::Unsynced(reason.clone())))
    }

    /// Stores these bytes; they are synced when it returns. What is here already is left as it is.
    pub fn put(&self, bytes: &[u8]) -> Result<Piece, Error> {
        let hash = ContentHash::of(bytes);
        if !self.contains(&hash) {
            let mut new = self.create()?;
            new.file.write_all(bytes).map_err(at(&new.path))?;
            new.keep(hash, bytes.len() as u64)?;
        }
        Ok(Piece { hash: hash.to_vec().into(), size: bytes.len() as u64 })
    }

    /// Whether the file is here, whole.
    pub fn contains(&self, hash: &ContentHash) -> bool {
        self.shared.held.lock().sizes.contains_key(hash)
    }

    /// Bytes of a file, if it is here.
    pub fn size(&self, hash: &ContentHash) -> Option<u64> {
        self.shared.held.lock().sizes.get(hash).copied()
    }

    /// At most `length` bytes of a file from `offset` on, unchecked; none behind its end. `None`: it is not here.
    pub fn read(&self, hash: &ContentHash, offset: u64, length: usize) -> Result<Option<Bytes>, Error> {
        let (Some(size), Some((path, mut file))) = (self.size(hash), self.opened(hash)?) else { return Ok(None) };
        let length = size.saturating_sub(offset).min(length as u64);
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
        if length > 0 {
            file.seek(SeekFrom::Start(offset)).map_err(at(&path))?;
            file.take(length).read_to_end(&mut bytes).map_err(at(&path))?;
        }
        Ok(Some(bytes.into()))
    }

    /// All of a file, checked against its hash; for pieces, which are small. `None`: it is not here.
    pub fn whole(&self, hash: &ContentHash) -> Result<Option<Bytes>, Error> {
        let Some(bytes) = self.read(hash, 0, usize::MAX)? else { return Ok(None) };
        if ContentHash::of(&bytes) == *hash { Ok(Some(bytes)) } else { Err(self.damaged(*hash, "its hash differs")) }
    }

    /// Reads all of a file and checks its hash.
    pub fn check(&self, hash: &ContentHash) -> Result<(), Error> {
        let Some((path, mut file)) = self.opened_anyway(hash)? else { return Err(Error::Missing(*hash)) };
        let mut hasher = blake3::Hasher::new();
        feed(&mut file, &mut hasher).map_err(at(&path))?;
        if hasher.finalize() == blake3::Hash::from(hash.0) {
            Ok(())
        } else {
            Err(self.damaged(*hash, "its hash differs"))
        }
    }

    /// Begins to receive a file, or goes on where it was left. One at a time receives a file.
    pub fn receive(&self, piece: &Piece) -> Result<Partial, Error> {
        Partial::open(self.clone(), piece)
    }

    /// Begins to write a segment of a topic whose first event has the offset `first`.
    pub fn segment(&self, topic: canal_proto::TopicId, first: u64) -> Result<SegmentWriter, Error> {
        SegmentWriter::begin(self.create()?, topic, first)
    }

    /// All files, with their bytes.
    pub fn list(&self) -> Vec<(ContentHash, u64)> {
        let held = self.shared.held.lock();
        held.sizes.iter().chain(&held.damaged).map(|(hash, size)| (*hash, *size)).collect()
    }

    /// Files of which a part was received.
    pub fn partials(&self) -> Result<Vec<ContentHash>, Error> {
        let dir = &self.shared.dir;
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).map_err(at(dir))? {
            let name = entry.map_err(at(dir))?.file_name();
            let hash = name.to_string_lossy().strip_suffix(".part").map(str::parse::<ContentHash>);
            found.extend(hash.into_iter().flatten());
        }
        Ok(found)
    }

    /// Removes a file, and what was received of it unless that goes on. Whoever reads it has it until they are done.
    pub fn remove(&self, hash: &ContentHash) -> Result<(), Error> {
        let mut held = self.shared.held.lock();
        held.untold.remove(hash);
        let damaged = held.damaged.remove(hash);
        // nobody needs it any more, so nothing of it is missing
        held.repaired += u64::from(damaged.is_some());
        let here = held.sizes.remove(hash).or(damaged).map(|_| self.path(hash));
        let part = (!held.receiving.contains(hash)).then(|| self.partial(hash));
        for path in here.into_iter().chain(part) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&path)(error)),
                _ => {}
            }
        }
        drop(held);
        self.shared.indexes.lock().forget(hash);
        Ok(())
    }

    /// Files, and their bytes together.
    pub fn count_and_bytes(&self) -> (u64, u64) {
        let held = self.shared.held.lock();
        (held.sizes.len() as u64, held.sizes.values().sum())
    }

    /// The files that were found damaged since the last call: to be made or received anew.
    pub fn take_damaged(&self) -> Vec<ContentHash> {
        std::mem::take(&mut self.shared.held.lock().untold).into_iter().collect()
    }

    /// Whether a file is here of which not all can be read.
    pub fn is_damaged(&self, hash: &ContentHash) -> bool {
        self.shared.held.lock().damaged.contains_key(hash)
    }

    /// How many files were found damaged, and how many of those were replaced by whole ones, since the start.
    pub fn found_and_repaired(&self) -> (u64, u64) {
        let held = self.shared.held.lock();
        (held.found, held.repaired)
    }

    /// Notes that a file is damaged.
    fn damaged(&self, hash: ContentHash, reason: &'static str) -> Error {
        let mut held = self.shared.held.lock();
        if held.damaged.len() < MAX_DAMAGED
            && let Some(size) = held.sizes.remove(&hash)
        {
            held.damaged.insert(hash, size);
            held.untold.insert(hash);
            held.found += 1;
        }
        Error::Damaged { hash, reason }
    }

    /// Bytes of a file that is here, whole or not.
    fn length(&self, hash: &ContentHash) -> Option<u64> {
        let held = self.shared.held.lock();
        held.sizes.get(hash).or_else(|| held.damaged.get(hash)).copied()
    }

    fn path(&self, hash: &ContentHash) -> PathBuf {
        self.shared.dir.join(hash.to_string())
    }

    fn partial(&self, hash: &ContentHash) -> PathBuf {
        self.shared.dir.join(format!("{hash}.part"))
    }

    /// A file that is here, open.
    fn opened(&self, hash: &ContentHash) -> Result<Option<(PathBuf, File)>, Error> {
        if !self.contains(hash) {
            return Ok(None);
        }
        self.opened_anyway(hash)
    }

    /// A file that is here, whole or not, open.
    fn opened_anyway(&self, hash: &ContentHash) -> Result<Option<(PathBuf, File)>, Error> {
        if self.length(hash).is_none() {
            return Ok(None);
        }
        let path = self.path(hash);
        match File::open(&path) {
            Ok(file) => Ok(Some((path, file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // removed meanwhile; or by somebody else, and then it has to come back
                let _ = self.damaged(*hash, "it is gone");
                Ok(None)
            }
            Err(error) => Err(at(&path)(error)),
        }
    }

    fn create(&self) -> Result<New, Error> {
        self.trusted()?;
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let path = self.shared.dir.join(format!("{number}.new"));
        let file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(at(&path))?;
        Ok(New { files: self.clone(), path, file })
    }

    /// Syncs a file that is written to the end, and gives it its name, for good.
    fn keep(&self, file: &File, path: &Path, hash: ContentHash, size: u64) -> Result<(), Error> {
        self.trusted()?;
        self.synced(path, sync(file, path))?;
        fs::rename(path, self.path(&hash)).map_err(at(path))?;
        self.synced(&self.path(&hash), sync_dir(&self.shared.dir))?;
        let mut held = self.shared.held.lock();
        held.sizes.insert(hash, size);
        held.untold.remove(&hash);
        held.repaired += u64::from(held.damaged.remove(&hash).is_some());
        Ok(())
    }

    /// A failed sync is the last. What it was for goes: read from memory, it would look as if it were on disk.
    fn synced(&self, path: &Path, result: Result<(), Error>) -> Result<(), Error> {
        result.map_err(|error| {
            let reason = self.shared.unsynced.get_or_init(|| error.to_string()).clone();
            let _ = fs::remove_file(path);
            Error::Unsynced(reason)
        })
    }
}

/// A file that is being written; it is removed unless it is kept.
struct New {
    files: Files,
    path: PathBuf,
    file: File,
}

impl New {
    /// Syncs it and gives it its name.
    fn keep(self, hash: ContentHash, size: u64) -> Result<(), Error> {
        self.files.keep(&self.file, &self.path, hash, size)
    }
}

impl Drop for New {
    fn drop(&mut self) {
        // it is gone when it was kept; if it can't be removed, the next opening does it
        let _ = fs::remove_file(&self.path);
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io { path: path.clone(), source }
}

fn sync(file: &File, path: &Path) -> Result<(), Error> {
    #[cfg(test)]
    crate::log_store::faults::sync(path).map_err(at(path))?;
    file.sync_all().map_err(at(path))
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at(dir))
}

/// Hashes the rest of a file, and says how long that was.
fn feed(file: &mut File, hasher: &mut blake3::Hasher) -> io::Result<u64> {
    let mut chunk = vec![0; CHUNK];
    let mut fed = 0;
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(fed),
            Ok(length) => {
                hasher.update(chunk.get(..length).unwrap_or_default());
                fed += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
