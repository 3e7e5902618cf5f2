//! A disk for the log as no test can ask for it: it loses power, tears writes, fills up, and fails to sync.
//!
//! Faults are set by the directory of a log. What a loss of power would leave is known file by file, since a file is
//! kept as it was at its last sync; names of files count as durable at once, but a file that was removed may come back
//! ([`Recorded::removed`]). Beside a log in `dir`, a directory `dir.durable`, if there is one, receives a copy of each
//! file as often as it is synced.

use std::collections::BTreeMap;
use std::io::{Error, Result, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission, WriteExt};

/// The errors of the operating system that disks give.
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

static DISKS: Mutex<BTreeMap<PathBuf, Disk>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct Disk {
    fail_syncs: bool,
    /// Bytes that there is still room for.
    room: Option<u64>,
    recorded: Option<Recorded>,
}

/// The content of files, by name.
pub type Content = BTreeMap<String, Arc<Vec<u8>>>;

/// What is known of the disk of a log.
#[derive(Default, Clone)]
pub struct Recorded {
    /// The files as they were synced last; empty ones were not.
    pub synced: Content,
    /// Files that were removed or renamed since the last call of [`recorded`], as they were synced.
    pub removed: Vec<(String, Arc<Vec<u8>>)>,
    /// The moments before each sync since the last call of [`recorded`].
    pub flights: Vec<Flight>,
    /// The note of how far the log is synced, as often as it was written since it was synced.
    pub notes: Vec<Vec<u8>>,
}

/// A moment right before a sync.
#[derive(Clone)]
pub struct Flight {
    /// The files as they were synced last.
    pub synced: Content,
    /// The file that is being synced, and all that was written to it.
    pub name: String,
    pub written: Arc<Vec<u8>>,
    /// As in [`Recorded`].
    pub notes: Vec<Vec<u8>>,
}

fn with<T>(path: &Path, then: impl FnOnce(&mut Disk) -> T) -> Option<T> {
    DISKS.lock().get_mut(path.parent()?).map(then)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Lets all syncs of the log in `dir` fail, or work again.
pub fn fail_syncs(dir: &Path, fail: bool) {
    DISKS.lock().entry(dir.to_owned()).or_default().fail_syncs = fail;
}

/// Leaves the disk of the log in `dir` room for so many more bytes, or for any number.
pub fn leave_room(dir: &Path, bytes: Option<u64>) {
    DISKS.lock().entry(dir.to_owned()).or_default().room = bytes;
}

/// Begins to record what the disk of the log in `dir` would hold.
pub fn record(dir: &Path) {
    DISKS.lock().entry(dir.to_owned()).or_default().recorded = Some(Recorded::default());
}

/// What is recorded; what happened since the last call is only told once.
pub fn recorded(dir: &Path) -> Recorded {
    let mut disks = DISKS.lock();
    let Some(recorded) = disks.get_mut(dir).and_then(|disk| disk.recorded.as_mut()) else { return Recorded::default() };
    let copy = recorded.clone();
    recorded.removed.clear();
    recorded.flights.clear();
    copy
}

/// Forgets all of a directory's faults.
pub fn forget(dir: &Path) {
    DISKS.lock().remove(dir);
}

/// The note was written, or synced.
pub fn note(path: &Path, written: bool) {
    with(path, |disk| {
        let Some(recorded) = &mut disk.recorded else { return };
        match written {
            true => recorded.notes.extend(std::fs::read(path)),
            false => drop(recorded.notes.drain(..recorded.notes.len().saturating_sub(1))),
        }
    });
}

/// Where the synced state of the log in `dir` is kept, if the directory exists.
pub fn durable(dir: &Path) -> PathBuf {
    let mut path = dir.as_os_str().to_owned();
    path.push(".durable");
    path.into()
}

type Plain = <DefaultFileSystem as FileSystem>::Handle;

pub struct Files;

pub struct File {
    plain: Arc<Plain>,
    path: PathBuf,
}

impl File {
    fn new(plain: Plain, path: &Path) -> Self {
        with(path, |disk| {
            if let Some(recorded) = &mut disk.recorded {
                recorded.synced.entry(name_of(path)).or_default();
            }
        });
        Self { plain: Arc::new(plain), path: path.to_owned() }
    }
}

impl Handle for File {
    fn truncate(&self, offset: usize) -> Result<()> {
        Handle::truncate(self.plain.as_ref(), offset)
    }

    fn file_size(&self) -> Result<usize> {
        self.plain.file_size()
    }

    fn sync(&self) -> Result<()> {
        let durable = durable(self.path.parent().unwrap_or(&self.path));
        let watched = durable.exists() || with(&self.path, |disk| disk.recorded.is_some()) == Some(true);
        let written = Arc::new(if watched { std::fs::read(&self.path)? } else { Vec::new() });
        let name = name_of(&self.path);
        let fails = with(&self.path, |disk| {
            if let Some(recorded) = &mut disk.recorded {
                let (synced, notes) = (recorded.synced.clone(), recorded.notes.clone());
                recorded.flights.push(Flight { synced, name: name.clone(), written: written.clone(), notes });
            }
            disk.fail_syncs
        });
        if fails == Some(true) {
            return Err(Error::from_raw_os_error(EIO));
        }
        self.plain.sync()?;
        with(&self.path, |disk| {
            if let Some(recorded) = &mut disk.recorded {
                recorded.synced.insert(name.clone(), written.clone());
            }
        });
        if durable.exists() {
            std::fs::write(durable.join(name), written.as_slice())?;
        }
        Ok(())
    }
}

pub struct Writer {
    plain: <DefaultFileSystem as FileSystem>::Writer,
    path: PathBuf,
}

impl Write for Writer {
    /// A full disk takes what there is room for, and then nothing.
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let length = with(&self.path, |disk| {
            let length =
                disk.room.map_or(bytes.len(), |room| bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            disk.room = disk.room.map(|room| room - length as u64);
            length
        });
        let length = length.unwrap_or(bytes.len());
        if length == 0 && !bytes.is_empty() {
            return Err(Error::from_raw_os_error(ENOSPC));
        }
        self.plain.write(bytes.get(..length).unwrap_or_default())
    }

    fn flush(&mut self) -> Result<()> {
        self.plain.flush()
    }
}

impl Seek for Writer {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.plain.seek(to)
    }
}

impl WriteExt for Writer {
    fn truncate(&mut self, offset: usize) -> Result<()> {
        WriteExt::truncate(&mut self.plain, offset)
    }

    fn allocate(&mut self, offset: usize, size: usize) -> Result<()> {
        match with(&self.path, |disk| disk.room.is_some()) {
            Some(true) => Err(Error::from_raw_os_error(ENOSPC)),
            _ => self.plain.allocate(offset, size),
        }
    }
}

/// A file goes, or gets another name.
fn goes(path: &Path, to: Option<&Path>) {
    with(path, |disk| {
        let Some(recorded) = &mut disk.recorded else { return };
        let content = recorded.synced.remove(&name_of(path)).unwrap_or_default();
        recorded.removed.push((name_of(path), content.clone()));
        if let Some(to) = to {
            recorded.synced.insert(name_of(to), content);
        }
    });
}

impl FileSystem for Files {
    type Handle = File;
    type Reader = <DefaultFileSystem as FileSystem>::Reader;
    type Writer = Writer;

    fn create<P: AsRef<Path>>(&self, path: P) -> Result<File> {
        if with(path.as_ref(), |disk| disk.room == Some(0)) == Some(true) {
            return Err(Error::from_raw_os_error(ENOSPC));
        }
        Ok(File::new(DefaultFileSystem.create(&path)?, path.as_ref()))
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> Result<File> {
        Ok(File::new(DefaultFileSystem.open(&path, permission)?, path.as_ref()))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        goes(path.as_ref(), None);
        DefaultFileSystem.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> Result<()> {
        goes(from.as_ref(), Some(to.as_ref()));
        DefaultFileSystem.rename(from, to)
    }

    fn new_reader(&self, handle: Arc<File>) -> Result<Self::Reader> {
        DefaultFileSystem.new_reader(handle.plain.clone())
    }

    fn new_writer(&self, handle: Arc<File>) -> Result<Self::Writer> {
        Ok(Writer { plain: DefaultFileSystem.new_writer(handle.plain.clone())?, path: handle.path.clone() })
    }
}
