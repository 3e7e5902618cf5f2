//! A file that comes from another peer, bit by bit.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;

use canal_proto::ContentHash;
use canal_proto::peer::Piece;

use super::{Error, Files, at, feed};

/// What has been received of a file. Dropping it keeps that, and whoever receives the file next goes on there.
pub struct Partial {
    files: Files,
    hash: ContentHash,
    size: u64,
    next: u64,
    /// `None`: the file is here already.
    open: Option<Open>,
}

struct Open {
    path: PathBuf,
    file: File,
    hasher: blake3::Hasher,
}

impl Partial {
    pub(super) fn open(files: Files, piece: &Piece) -> Result<Self, Error> {
        files.trusted()?;
        let hash = ContentHash::from_slice(&piece.hash).map_err(|_| Error::Unfit("its hash has not 32 bytes"))?;
        let shared = files.shared.clone();
        let mut partial = Self { files, hash, size: piece.size, next: piece.size, open: None };
        {
            let mut held = shared.held.lock();
            if held.sizes.contains_key(&hash) {
                return Ok(partial);
            }
            if !held.receiving.insert(hash) {
                return Err(Error::Busy(hash));
            }
        }
        match partial.resume() {
            Ok(()) => Ok(partial),
            Err(error) => {
                shared.held.lock().receiving.remove(&hash);
                Err(error)
            }
        }
    }

    /// Hashes what is there. More than the file should have is damage, so it begins anew.
    fn resume(&mut self) -> Result<(), Error> {
        let path = self.files.partial(&self.hash);
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(at(&path))?;
        if file.metadata().map_err(at(&path))?.len() > self.size {
            file.set_len(0).map_err(at(&path))?;
        }
        let mut hasher = blake3::Hasher::new();
        self.next = feed(&mut file, &mut hasher).map_err(at(&path))?;
        file.seek(SeekFrom::Start(self.next)).map_err(at(&path))?;
        self.open = Some(Open { path, file, hasher });
        Ok(())
    }

    /// Offset of the next byte to receive; the file's size when there is none.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Takes the bytes that come next.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let next = self.next.saturating_add(bytes.len() as u64);
        if next > self.size {
            return Err(Error::Unfit("more bytes were received than the file should have"));
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        open.file.write_all(bytes).map_err(at(&open.path))?;
        open.hasher.update(bytes);
        self.next = next;
        Ok(())
    }

    /// Checks the whole file, syncs it, and gives it its name. If it is wrong it is removed.
    pub fn finish(mut self) -> Result<(), Error> {
        if self.next != self.size {
            return Err(Error::Unfit("bytes of the file are still to be received"));
        }
        let Some(open) = self.open.take() else { return Ok(()) };
        let done = if open.hasher.finalize() == blake3::Hash::from(self.hash.0) {
            self.files.keep(&open.file, &open.path, self.hash, self.size)
        } else {
            fs::remove_file(&open.path).map_err(at(&open.path)).and(Err(Error::Mismatch(self.hash)))
        };
        self.files.shared.held.lock().receiving.remove(&self.hash);
        done
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.open.is_some() {
            self.files.shared.held.lock().receiving.remove(&self.hash);
        }
    }
}
