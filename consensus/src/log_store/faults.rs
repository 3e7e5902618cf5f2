//! Files that lose power, and files whose sync fails: what no test can ask of a healthy disk.
//!
//! Beside a log in `dir`, a directory `dir.durable` receives a copy of each file as often as it is synced: what a
//! loss of power would leave at least.

use std::collections::BTreeSet;
use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission};

static FAILING: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Lets all syncs of the log in `dir` fail, or work again.
pub fn fail_syncs(dir: &Path, fail: bool) {
    let mut failing = FAILING.lock();
    if fail {
        failing.insert(dir.to_owned())
    } else {
        failing.remove(dir)
    };
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
        let dir = self.path.parent().unwrap_or(&self.path);
        if FAILING.lock().contains(dir) {
            return Err(Error::other("the disk is gone"));
        }
        self.plain.sync()?;
        if let Some(name) = self.path.file_name()
            && durable(dir).exists()
        {
            std::fs::copy(&self.path, durable(dir).join(name))?;
        }
        Ok(())
    }
}

impl FileSystem for Files {
    type Handle = File;
    type Reader = <DefaultFileSystem as FileSystem>::Reader;
    type Writer = <DefaultFileSystem as FileSystem>::Writer;

    fn create<P: AsRef<Path>>(&self, path: P) -> Result<File> {
        Ok(File::new(DefaultFileSystem.create(&path)?, path.as_ref()))
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> Result<File> {
        Ok(File::new(DefaultFileSystem.open(&path, permission)?, path.as_ref()))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        DefaultFileSystem.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> Result<()> {
        DefaultFileSystem.rename(from, to)
    }

    fn new_reader(&self, handle: Arc<File>) -> Result<Self::Reader> {
        DefaultFileSystem.new_reader(handle.plain.clone())
    }

    fn new_writer(&self, handle: Arc<File>) -> Result<Self::Writer> {
        DefaultFileSystem.new_writer(handle.plain.clone())
    }
}
